"""Runs of one recipe, each with one fault at a random moment, repeated until they are done: all digests must be equal.

python tests/distributed/kill_campaign.py --runs 20 --seed 0

Prints one line of JSON per run. Faults: SIGKILL or a SIGSTOP of 20 s of a random process of the run, the supervisor and
Ray's own processes included; an S3 server that is silent for 20 s; a full disk; a storage that becomes read-only. The
last two mount a tmpfs, which needs root; without it they are replaced by a SIGKILL.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil

RECIPE = [
    "train.epochs=40",
    "tickets.cycle_rate=0.1",
    "tickets.cycle_epochs=2",
    "tickets.num_chains=3",
    "train.checkpoint_every_epochs=5",
]
FAULTS = ("kill", "kill", "kill", "stop", "silent_s3", "full_disk", "read_only")
SILENCE_SECONDS = 20.0
LEFT_SECONDS = 10.0
"""Time within which all processes of a local Ray must have ended after their driver."""
HUNG_SECONDS = 240.0
MOST_TRIES = 5


class Campaign:
    """A folder, and what is common to all runs."""

    def __init__(self, folder, seed, digest=None, victim=""):
        """Makes an undisturbed run, unless its digest is known.

        Args:
            folder: A short path: Ray makes sockets below it.
            seed: Of moments and victims.
            digest: Of the sup-ticket of an undisturbed run.
            victim: Start of the title of the processes that are struck; all when left out.
        """
        self.folder, self.random, self.digest, self.seconds = Path(folder), random.Random(seed), digest, 35.0
        self.victim = victim
        self.can_mount = self._mount(self.folder / "probe", "1m")
        if self.can_mount:
            self._unmount(self.folder / "probe")
        if digest is not None:
            return
        began = time.monotonic()
        self.digest, first = self.run("none")
        assert first["tries"] == 1, first
        self.seconds = time.monotonic() - began

    def run(self, fault):
        """One run, with one fault in its first try. Returns the sup-ticket's digest, and what was seen."""
        name = uuid.uuid4().hex[:8]
        base = self.folder / name
        base.mkdir()
        if fault in ("full_disk", "read_only") and not self.can_mount:
            fault = "kill"
        seen = {"fault": fault, "codes": [], "left": 0, "hung": False}
        with self._storage(fault, base) as (storage, strike, repair):
            while not seen["codes"] or seen["codes"][-1] != 0:
                assert len(seen["codes"]) < MOST_TRIES, seen
                self._try(base, storage, seen, strike if not seen["codes"] and fault != "none" else None)
                repair()
            seen["tries"] = len(seen["codes"])
            return self._digest(storage, base), seen

    def _try(self, base, storage, seen, strike):
        mark = uuid.uuid4().hex
        environment = {**os.environ, "HOME": str(base), "RAY_TMPDIR": str(base), "SUPTICKETS_TEST_MARK": mark}
        command = [sys.executable, "-m", "suptickets_ray.cli", "train", *RECIPE, f"storage={storage}", "name=run"]
        with (base / f"output-{len(seen['codes'])}.txt").open("wb") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        known, deadline = {}, time.monotonic() + HUNG_SECONDS
        delay = self.random.uniform(0.5, self.seconds * 0.85) if strike else None
        began = time.monotonic()
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    known.setdefault(child.pid, child)
            if delay is not None and time.monotonic() - began > delay and (victim := strike(process.pid)):
                seen["after_seconds"], delay = round(time.monotonic() - began, 1), None
                seen["victim"] = victim
            if time.monotonic() > deadline:
                seen["hung"] = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        seen["codes"].append(process.returncode)
        _, left = psutil.wait_procs(known.values(), LEFT_SECONDS)
        seen["left"] += len(left)
        for one in left:
            seen.setdefault("left_names", []).append(_title(one))
            with contextlib.suppress(psutil.Error):
                one.kill()

    @contextlib.contextmanager
    def _storage(self, fault, base):
        """Gives the storage, what strikes during a run (returning whom), and what repairs afterwards."""
        folder = base / "storage"
        folder.mkdir()
        if fault == "silent_s3":
            with self._s3() as (storage, silence):
                yield storage, silence, lambda: None
        elif fault in ("full_disk", "read_only"):
            self._mount(folder, "50m")
            strike = self._fill if fault == "full_disk" else self._make_read_only
            try:
                yield str(folder), lambda pid: strike(folder), lambda: self._repair(folder)
            finally:
                self._unmount(folder)
        else:
            yield str(folder), self._kill if fault == "kill" else self._stop, lambda: None

    def _victim(self, pid):
        parent = psutil.Process(pid)
        found = [one for one in (parent, *parent.children(recursive=True)) if _title(one).startswith(self.victim)]
        return self.random.choice(found) if found else None

    def _kill(self, pid):
        if (victim := self._victim(pid)) is None:
            return None
        title = _title(victim)
        victim.kill()
        return title

    def _stop(self, pid):
        if (victim := self._victim(pid)) is None:
            return None
        title = _title(victim)
        victim.suspend()

        def go_on():
            with contextlib.suppress(psutil.Error):
                victim.resume()

        threading.Timer(SILENCE_SECONDS, go_on).start()
        return title

    @contextlib.contextmanager
    def _s3(self):
        import logging

        import boto3
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        servers, timers = [ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)], []
        servers[0].start()
        host, port = servers[0].get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="campaign")

        def silence(pid):
            servers[-1].stop()
            servers.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
            timers.append(threading.Timer(SILENCE_SECONDS, servers[-1].start))
            timers[-1].start()
            return "the S3 server"

        try:
            yield f"s3://campaign/runs?endpoint_override={host}:{port}&scheme=http&region=us-east-1", silence
        finally:
            for timer in timers:
                timer.join()
            servers[-1].stop()

    def _digest(self, storage, base):
        from suptickets_ray.tickets.store import RunStore, child

        store = RunStore(child(storage, "run") if "://" in storage else str(Path(storage) / "run"))
        return json.loads(store.read("result.json"))["superposed"]["digest"]

    def _mount(self, folder, size):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        return not subprocess.run(command, check=False, capture_output=True).returncode

    def _unmount(self, folder):
        subprocess.run(["umount", "-l", folder], check=True)

    def _fill(self, folder):
        subprocess.run(["mount", "-o", "remount,size=4k", folder], check=False, capture_output=True)
        with contextlib.suppress(OSError), (folder / "filler").open("wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()
        return "the disk"

    def _make_read_only(self, folder):
        # A file that is open for writing keeps the mount writable, until it is closed.
        while subprocess.run(["mount", "-o", "remount,ro", folder], check=False, capture_output=True).returncode:
            time.sleep(0.01)
        return "the storage"

    def _repair(self, folder):
        subprocess.run(["mount", "-o", "remount,rw,size=50m", folder], check=True)
        (folder / "filler").unlink(missing_ok=True)


def _title(process):
    with contextlib.suppress(psutil.Error):
        words = [word for word in process.cmdline() if word]
        kinds = (word for word in words if word.startswith("ray::") or "/ray/" in word)
        return Path(next(kinds, words[0] if words else "gone").split()[0]).name
    return "gone"


def say(content):
    sys.stdout.write(f"{json.dumps(content)}\n")
    sys.stdout.flush()


def main(runs, seed, folder):
    """Prints a line per run; returns how many had another digest, hung, or left a process behind."""
    campaign, wrong = Campaign(folder, seed), 0
    say({"undisturbed_seconds": round(campaign.seconds, 1)})
    faults = [FAULTS[number % len(FAULTS)] for number in range(runs)]
    campaign.random.shuffle(faults)
    for fault in faults:
        digest, seen = campaign.run(fault)
        seen["equal"] = digest == campaign.digest
        wrong += not seen["equal"] or seen["hung"] or seen["left"] > 0
        say(seen)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = tempfile.mkdtemp(prefix="kc-")
    try:
        sys.exit(main(options.runs, options.seed, base) > 0)
    finally:
        shutil.rmtree(base, ignore_errors=True)

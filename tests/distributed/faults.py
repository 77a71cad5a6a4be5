"""What test_faults.py runs: one recipe through every fault, on a real cluster of several raylets in a Ray of its own.

Prints one line of JSON per scenario: its name, the digest of the sup-ticket, and what was seen on the way.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from suptickets_ray import load_config, train
from suptickets_ray.config import ClusterConfig
from suptickets_ray.distributed.cluster import polling
from suptickets_ray.distributed.cluster.capacity import actor_options, explorer_bundle, worker_capacity, worker_labels
from suptickets_ray.distributed.pipeline import superposer_client
from suptickets_ray.distributed.pipeline.superposer import Superposer
from suptickets_ray.distributed.tune.tune import tune
from suptickets_ray.progress.events import EpochEnded, PhaseStarted, Resumed, TicketFinished, TicketMerged, Waiting
from suptickets_ray.recipes.load import to_yaml
from suptickets_ray.tickets.store import RunStore, child
from suptickets_ray.training.checkpoint import read_state

# Seconds instead of half a minute: who is dead refuses at once. Who lives may take 15 s to answer, on a busy machine.
FAST_DETECTION = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}
OBJECT_STORE = 100 * 2**20
# Small batches: epochs long enough for a machine to go while they run. Three ranks: of two the sum has but one order.
PRETRAINING = [
    "cluster.num_workers=3",
    "data.batch_size=24",
    "train.epochs=50",
    "tickets.cycle_rate=0.32",
    "tickets.cycle_epochs=8",
    "train.checkpoint_every_epochs=10",
    "cluster.num_explorers=1",
]
# Of runs that fork from the pretraining of the finished run. Cycles are long enough for a machine to go in between.
EXPLORATION = [
    "train.epochs=52",
    "tickets.cycle_rate=0.31",
    "tickets.cycle_epochs=8",
    "tickets.num_chains=4",
    "cluster.num_explorers=2",
]
S3_SILENCE_SECONDS = 20


class Faults:
    """The cluster, and the folder that all its machines see."""

    def __init__(self, folder, temp_dir, finished):
        """Starts the cluster.

        Args:
            folder: What all machines see.
            temp_dir: Of Ray; short, as a Unix socket's path has at most 107 bytes.
            finished: Folder of a finished run of the built-in recipe, from whose pretraining a scenario may fork.
        """
        self.folder, self.finished = Path(folder), Path(finished)
        head = {"num_cpus": 1, "_system_config": FAST_DETECTION, "include_dashboard": False, "temp_dir": temp_dir}
        head["object_store_memory"] = OBJECT_STORE
        self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.nodes = []
        self.add_node()
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.cluster.wait_for_nodes()

    def add_node(self, num_cpus=2, resources=None, **more):
        own = {"num_cpus": num_cpus, "resources": resources or {"spot": 1}, **more}
        node = self.cluster.add_node(object_store_memory=OBJECT_STORE, **own)
        self.nodes.append(node)
        return node

    def replace_node(self):
        """Kills the last node, and starts another one in its place."""
        self.cluster.remove_node(self.nodes.pop(), False)
        self.add_node()

    def config(self, name, overrides):
        return load_config(None, [*overrides, f"storage={self.folder}", f"name={name}"])

    def fork(self, name, storage=None, overrides=EXPLORATION):
        """A run whose pretraining is finished; returns its recipe."""
        place = [f"storage={storage or self.folder}", f"name={name}"]
        config = load_config(self.finished / "config.yaml", [*overrides, *place])
        store = RunStore(child(config.storage, name))
        store.write("config.yaml", to_yaml(config).encode())
        store.write("pretrained.pt", (self.finished / "pretrained.pt").read_bytes())
        return config


def run_with_fault(config, act, kind, epoch=0):
    """Trains, and acts once at the first event of a kind: in the main thread, the only one where Ray starts nodes."""
    seen, acted = [], []

    def watch(event):
        seen.append(event)
        if isinstance(event, kind) and getattr(event, "epoch", 0) >= epoch and not acted:
            acted.append(event)
            act()

    result = train(config, watch).result
    assert acted
    return result["superposed"], seen


def tickets_of(seen):
    return [(event.chain, event.cycle) for event in seen if isinstance(event, TicketFinished)]


def undisturbed(faults):
    result = train(faults.fork("undisturbed", overrides=[*EXPLORATION, "cluster.num_explorers=1"])).result
    return {"digest": result["superposed"]["digest"]}


def pretrain(config, watch):
    """Trains until pretraining is finished. Returns the digest of its final state: weights, masks and optimizer.

    The digest is of the values. The bytes of a file also depend on which of the values are one object.
    """

    def until_explored(event):
        watch(event)
        if isinstance(event, PhaseStarted) and event.name == "explore":
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        train(config, until_explored)
    state = read_state(RunStore(child(config.storage, config.name)).read("pretrained.pt"))
    values = json.dumps(state, default=lambda tensor: [str(tensor.dtype), tensor.tolist()])
    return hashlib.sha256(values.encode()).hexdigest()


def undisturbed_pretraining(faults):
    return {"digest": pretrain(faults.config("first", PRETRAINING), lambda event: None)}


def node_lost_in_pretraining(faults):
    """Three ranks on two machines: without the late one there is no room."""
    epochs, lost = [], []

    def watch(event):
        if isinstance(event, EpochEnded):
            epochs.append(event.epoch)
            if event.epoch >= 15 and not lost:
                lost.append(event)
                faults.replace_node()

    digest = pretrain(faults.config("pretraining", PRETRAINING), watch)
    again = next(index for index in range(1, len(epochs)) if epochs[index] <= epochs[index - 1])
    return {"digest": digest, "reached": epochs[again - 1], "went_on_with": epochs[again]}


def node_lost_in_exploration(faults):
    """Explorers ask for what only the lost machine, and then the late one, has. It forks from the finished run."""
    before = {node["NodeID"] for node in ray.nodes()}
    own = ["cluster.explorer_resources={spot: 0.01}", "cluster.num_explorers=2"]
    config = faults.fork("exploration", overrides=own)
    superposed, seen = run_with_fault(config, faults.replace_node, TicketFinished)
    late = [event for event in seen if isinstance(event, TicketFinished) and event.node not in before]
    return {"digest": superposed["digest"], "tickets_of_the_late_node": len(late)}


def node_lost_while_merging(faults):
    """The superposer, and the tickets that wait for it, are on the node that goes."""
    pinned, started = [faults.nodes[-1].node_id], []

    class Pinned:
        @staticmethod
        def options(**options):
            labels = {"ray.io/node-id": pinned.pop()} if pinned else None
            started.append(labels)
            return Superposer.options(**{**options, "label_selector": labels})

    superposer_client.Superposer = Pinned
    try:
        superposed, _ = run_with_fault(faults.fork("merging"), faults.replace_node, TicketMerged)
    finally:
        superposer_client.Superposer = Superposer
    return {"digest": superposed["digest"], "superposers": len(started)}


def preemption_with_notice(faults):
    """As a cloud's notice of a spot machine reaches Ray, through its autoscaler."""
    node, noticed = faults.nodes[-1].node_id, []

    def drain():
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + 60) * 1000)
        accepted, text = GcsClient(address=faults.cluster.address).drain_node(node, reason, "a spot machine", deadline)
        assert accepted, text
        noticed.append(time.time())
        faults.add_node()

    # One explorer: it is under notice before it has done all cycles.
    alone = ["cluster.explorer_resources={spot: 0.01}", "cluster.num_explorers=1"]
    config = faults.fork("preemption", overrides=[*EXPLORATION, *alone])
    # However fast the machine is: the notice is seen before all cycles are done.
    usual, polling.CLUSTER_POLL_SECONDS = polling.CLUSTER_POLL_SECONDS, 0.2
    try:
        superposed, seen = run_with_fault(config, drain, TicketFinished)
    finally:
        polling.CLUSTER_POLL_SECONDS = usual
    there = [event.began for event in seen if isinstance(event, TicketFinished) and event.node == node]
    faults.cluster.remove_node(faults.nodes.pop(0), False)
    return {
        "digest": superposed["digest"],
        "tickets": len(tickets_of(seen)),
        "distinct": len(set(tickets_of(seen))),
        "began_late": sum(began > noticed[0] + 5 for began in there),
        "there": len(there),
    }


def driver_killed_and_started_on_another_machines_view(faults):
    here, there = faults.folder / "here", faults.folder / "there"
    alone = [*EXPLORATION, "cluster.num_explorers=1"]
    faults.fork("moved", here, alone)
    code = (
        "import os, signal, sys; from suptickets_ray import load_config, train\n"
        "from suptickets_ray.progress.events import TicketFinished\n"
        "kill = lambda event: isinstance(event, TicketFinished) and os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(load_config(sys.argv[1], sys.argv[2:]), kill)\n"
    )
    overrides = ["name=moved", f"storage={here}", f"cluster.address={faults.cluster.address}"]
    killed = subprocess.run([sys.executable, "-c", code, here / "moved/config.yaml", *overrides], check=False)
    assert killed.returncode == -signal.SIGKILL
    here.rename(there)  # the shared storage has another path on the machine that takes over
    seen = []
    place = [f"storage={there}", "name=moved"]
    result = train(load_config(there / "moved/config.yaml", place), seen.append).result
    resumed = next(event.tickets for event in seen if isinstance(event, Resumed) and event.tickets)
    return {"digest": result["superposed"]["digest"], "resumed": resumed}


def object_store_out_of_reach(faults):
    """Twice: while pretraining stores a checkpoint, which Ray Train tries three times, and while cycles run."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import ThreadedMotoServer

    servers, silences, seen = [ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)], [], []
    servers[0].start()
    host, port = servers[0].get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="faults")

    def go_silent():
        servers[-1].stop()
        servers.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
        silences.append(threading.Timer(S3_SILENCE_SECONDS, servers[-1].start))
        silences[-1].start()

    def watch(event):
        seen.append(event)
        is_due = [isinstance(event, EpochEnded) and event.epoch >= 15, isinstance(event, TicketFinished), False]
        if is_due[len(silences)]:
            go_silent()

    storage = f"s3://faults/runs?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    began = time.monotonic()
    own = [f"storage={storage}", "name=silent", "cluster.num_explorers=1"]
    config = load_config(faults.finished / "config.yaml", own)
    superposed = train(config, watch).result["superposed"]
    for silence in silences:
        silence.join()
    servers[-1].stop()
    lost = [event.text for event in seen if isinstance(event, Waiting)]
    return {
        "digest": superposed["digest"],
        "silences": len(silences),
        "seconds": time.monotonic() - began,
        "lost": lost,
    }


def machine_with_a_folder_of_its_own(faults):
    """It joins while the run works. What is mounted for it alone hides the folder that the others share."""
    options = [f"--address={faults.cluster.address}", "--num-cpus=1", f"--object-store-memory={OBJECT_STORE}"]
    start = f"mount -t tmpfs tmpfs {faults.folder} && exec {Path(sys.executable).parent / 'ray'} start --block"
    hidden = ["unshare", "--mount", "sh", "-c", " ".join([start, *options])]
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", faults.folder], check=False).returncode:
        return {"skipped": "a mount of one's own needs root"}
    before, started, seen = len(ray.nodes()), [], []

    def join():
        started.append(subprocess.Popen(hidden, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while len(ray.nodes()) == before:
            assert started[0].poll() is None
            time.sleep(0.2)

    # Long enough for the machine to be asked while it works.
    more = ["tickets.num_chains=60", "cluster.explorer_resources={spot: 0.01}"]
    config = faults.fork("own-folder", overrides=[*EXPLORATION, *more])

    def refused(act):
        def watch(event):
            seen.append(event)
            if isinstance(event, TicketFinished) and act and not started:
                act()

        try:
            train(config, watch)
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    try:
        late, early = refused(join), refused(None)
    finally:
        for process in started:
            process.terminate()  # --block: it ends what it started
            process.wait(60)
    return {"late": late, "early": early, "tickets": len(tickets_of(seen))}


def full_disk(faults):
    disk = faults.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False).returncode:
        return {"skipped": "mounting a file system needs root"}
    try:
        config, seen = faults.fork("full", disk, [*EXPLORATION, "cluster.num_explorers=1"]), []
        try:
            train(config, seen.append)
        except RuntimeError as error:
            message = str(error)
        kept = sorted(path.name for path in disk.rglob("cycle-*.arrow"))
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        again = []
        result = train(config, again.append).result
        resumed = next((event.tickets for event in again if isinstance(event, Resumed) and event.tickets), 0)
        return {
            "digest": result["superposed"]["digest"],
            "message": message,
            "kept": len(kept),
            "made": len(tickets_of(seen)),
            "resumed": resumed,
        }
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def elastic_pretraining(faults):
    """With [least, most] ranks, pretraining goes on with those that are left; another number of ranks, other bits."""
    # Ray Train looks every 20 s for what is left, and tries in between to start as many ranks as before.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"
    short = ["train.epochs=35", "tickets.cycle_rate=0.03", "tickets.cycle_epochs=1", "tickets.num_chains=2"]
    config = faults.config("elastic", [*PRETRAINING, "cluster.num_workers=[1, 3]", *short])
    superposed, _ = run_with_fault(
        config, lambda: faults.cluster.remove_node(faults.nodes.pop(), False), EpochEnded, 15
    )
    return {"density": superposed["density"], "alive": sum(node["Alive"] for node in ray.nodes())}


@ray.remote(num_cpus=1)
class Probe:
    def node(self):
        return ray.get_runtime_context().get_node_id()


def head_kept_free(faults):
    free = ClusterConfig(exclude_head_node=True)
    labels = worker_labels(free)
    probe = Probe.options(label_selector=labels).remote()
    head = ray.get_runtime_context().get_node_id()
    used = ray.get(probe.node.remote(), timeout=60) == head
    ray.kill(probe)
    return {"places": worker_capacity(free, {"CPU": 1.0}), "head_used": used}


def explorers_spread(faults):
    """Two explorers, and two machines that each have room for both; one of them goes, and the other does its work."""
    for _ in range(2):
        faults.add_node(resources={"big": 1})
    config = faults.fork("spread", overrides=[*EXPLORATION, "cluster.explorer_resources={big: 0.01}"])
    seen, nodes = [], {}

    def watch(event):
        seen.append(event)
        if isinstance(event, TicketFinished):
            nodes.setdefault(event.node, sum(node["Alive"] for node in ray.nodes()))
            if len(nodes) == 2 and len(faults.nodes) == 3:
                faults.cluster.remove_node(faults.nodes.pop(), False)

    superposed = train(config, watch).result["superposed"]
    faults.cluster.remove_node(faults.nodes.pop(), False)
    return {
        "digest": superposed["digest"],
        "machines": len(nodes),
        "alive_before": max(nodes.values()),
        "tickets": len(tickets_of(seen)),
    }


def fractions_of_a_gpu(faults):
    """A made-up GPU, which Ray counts like a real one."""
    faults.add_node(num_cpus=8, num_gpus=1)
    bundle = explorer_bundle(ClusterConfig(gpus_per_worker=0.25))
    places = worker_capacity(ClusterConfig(gpus_per_worker=0.25), bundle)
    probes = [Probe.options(**actor_options(bundle)).remote() for _ in range(5)]
    ready, _ = ray.wait([probe.node.remote() for probe in probes], num_returns=5, timeout=8)
    for probe in probes:
        ray.kill(probe)
    faults.cluster.remove_node(faults.nodes.pop(), False)
    return {"places": places, "started": len(ready)}


def search_on_two_machines(faults):
    """Trials and their explorers on other machines than the driver's, in one folder that all see."""
    space = "search.space={tickets.lr_high: {grid_search: [0.2, 0.1]}, superposition.method: {grid_search: [cia, caa]}}"
    short = ["train.epochs=30", "tickets.cycle_rate=0.2", "tickets.cycle_epochs=3", "tickets.num_chains=2"]
    short += ["train.limit_batches=10", "cluster.num_workers=1", "cluster.num_explorers=1"]
    short += ["search.max_concurrent_trials=2"]
    result = tune(faults.config("search", [*short, space])).result
    return {
        "states": [row["state"] for row in result["trials"]],
        "pretrainings": result["pretrainings"],
        "cycles": result["cycles_trained"],
    }


SCENARIOS = [
    undisturbed,
    undisturbed_pretraining,
    head_kept_free,
    explorers_spread,
    search_on_two_machines,
    fractions_of_a_gpu,
    node_lost_in_exploration,
    node_lost_while_merging,
    preemption_with_notice,
    driver_killed_and_started_on_another_machines_view,
    object_store_out_of_reach,
    machine_with_a_folder_of_its_own,
    full_disk,
    node_lost_in_pretraining,
    elastic_pretraining,
]


def main(folder, temp_dir, finished, *only):
    faults = Faults(folder, temp_dir, finished)
    for scenario in SCENARIOS:
        if only and scenario.__name__ not in only:
            continue
        began = time.monotonic()
        try:
            found = scenario(faults)
        except Exception as error:  # noqa: BLE001 - the other scenarios are run all the same
            found = {"error": f"{type(error).__name__}: {error}"}
        found["seconds_taken"] = round(time.monotonic() - began, 1)
        sys.stdout.write(f"SCENARIO {json.dumps({'name': scenario.__name__, **found})}\n")
        sys.stdout.flush()
    ray.shutdown()
    faults.cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

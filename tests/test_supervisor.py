"""A driver under its parent process; both are real processes, Ray is not needed."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the driver runs without a parent")


def start(body, tmp_path):
    """Starts a supervised driver that has a function `first()`: whether it is the first one."""
    code = (
        "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        "from suptickets_ray.supervisor import report_local_ray, report_lost_ray, supervise\n"
        f"runs = Path({str(tmp_path / 'runs')!r})\n"
        "def first():\n"
        "    runs.open('a').write('x')\n"
        "    return runs.read_text() == 'x'\n"
        "def drive():\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "sys.exit(supervise(drive))\n"
    )
    arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **arguments)


def run(body, tmp_path):
    process = start(body, tmp_path)
    output, errors = process.communicate(timeout=60)
    runs = tmp_path / "runs"
    return process.returncode, len(runs.read_text()) if runs.exists() else 0, output, errors


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_of_the_driver_is_that_of_the_command(tmp_path, code):
    assert run(f"first()\nprint('here')\nreturn {code}", tmp_path) == (code, 1, "here\n", "")


def test_a_usage_error_is_not_taken_for_a_lost_ray(tmp_path):
    assert run("first()\nreport_local_ray()\nsys.exit(2)", tmp_path) == (2, 1, "", "")


@pytest.mark.parametrize("end", ["os._exit(1)", "os.abort()", "report_lost_ray(); return 1"])
def test_a_driver_that_lost_its_local_ray_is_started_again(tmp_path, end):
    code, runs, _, errors = run(f"report_local_ray()\nif first(): {end}\nreturn 0", tmp_path)
    assert (code, runs) == (0, 2)
    assert errors.splitlines()[-1].startswith("The local Ray failed.")


def test_a_driver_that_loses_it_twice_is_a_failed_run(tmp_path):
    code, runs, _, errors = run("first()\nreport_local_ray()\nos._exit(1)", tmp_path)
    assert (code, runs) == (1, 2)
    assert errors.splitlines()[-1].startswith("Cannot continue: the local Ray failed again.")


@pytest.mark.parametrize(("end", "cause"), [("os._exit(1)", "exit code 1"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_driver_that_ends_without_a_local_ray_or_is_killed_is_not_started_again(tmp_path, end, cause):
    local = "report_local_ray()\n" if cause == "SIGKILL" else ""
    code, runs, _, errors = run(f"first()\n{local}{end}", tmp_path)
    assert (code, runs) == (1, 1)
    assert cause in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_the_driver_and_ends_it_for_good(tmp_path, number):
    # Short sleeps, as a real driver polls: Python handles a signal that arrives just before a sleep only after it.
    body = (
        "def stop(number, frame): raise KeyboardInterrupt\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)\n"
        "report_local_ray()\n"
        "try:\n    print('ready', flush=True)\n    while True: time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n    first()\n    os._exit(1)"
    )
    process = start(body, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert (tmp_path / "runs").read_text() == "x"


def test_a_killed_parent_takes_its_driver_along(tmp_path):
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)", tmp_path)
    driver = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate(timeout=30)
    assert psutil.wait_procs([driver], timeout=10)[1] == []


def test_what_ray_leaves_behind_is_ended_and_other_programs_are_not(tmp_path):
    body = (
        "for title in ('ray::DashboardAgent', 'other'):\n"
        "    shell = subprocess.Popen(['bash', '-c', f'exec -a {title} sleep 100'])\n"
        "    while title not in Path(f'/proc/{shell.pid}/cmdline').read_text(): time.sleep(0.01)\n"
        "    print(shell.pid, flush=True)\n"
        "os._exit(1)"
    )
    process = start(body, tmp_path)
    agent, other = (psutil.Process(int(process.stdout.readline())) for _ in range(2))
    began = time.monotonic()
    process.wait(timeout=30)
    try:
        assert time.monotonic() - began < 10
        assert psutil.wait_procs([agent], timeout=5)[1] == []
        assert other.is_running()
    finally:
        os.kill(other.pid, signal.SIGKILL)
        process.communicate()

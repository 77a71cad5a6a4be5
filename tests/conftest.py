"""A private HOME for all tests, and one Ray for those that need it."""

import itertools
import os
import pickle
import random
import socket
import tempfile
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

from suptickets_ray.process_start import collect_normally, collect_rarely

pytest_plugins = ["small_runs"]
_PRIVATE = tempfile.TemporaryDirectory(prefix="suptickets-", ignore_cleanup_errors=True)
# Before anything is imported that reads them. Short: a Unix socket's path has at most 107 bytes.
os.environ["HOME"] = _PRIVATE.name
os.environ["RAY_TMPDIR"] = _PRIVATE.name
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Of the S3 that tests play on this machine; workers inherit them.
os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "test"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
os.environ["RAY_preload_python_modules"] = "suptickets_ray.distributed.cluster.preload"  # noqa: SIM112 - as a local Ray has it
collect_rarely()  # imports are faster
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("untimed")
# Tensors are small here: a second thread only waits for the first one.
os.environ["OMP_NUM_THREADS"] = "1"


_slow_left_out = pytest.StashKey[int]()
_LAST = (
    "tests/distributed/",
    "tests/test_evidence.py",
    "tests/test_notebook.py",
    "tests/test_cli.py",
    "tests/test_readme.py",
)
_SHORT = (
    "tests/distributed/test_session.py",
    "tests/distributed/test_superpose.py",
    "tests/distributed/test_exploration.py",
)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests as well: everything that CI runs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks and sorts tests, and leaves the slow ones out unless they were asked for."""
    for item in items:
        if "ray_address" in item.fixturenames:
            item.add_marker(pytest.mark.ray)
    items.sort(key=_place)
    asked = (
        config.getoption("--all") or "slow" in config.getoption("markexpr") or any("::" in arg for arg in config.args)
    )
    slow = [] if asked else [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.stash[_slow_left_out] = len(slow)


def pytest_collection_finish(session):
    """All test modules are imported. Rare collections would let large tensors in reference cycles pile up."""
    collect_normally()


def _place(item):
    """Tests on a cluster of raylets first, which mostly wait; beside them those that compute; then those on Ray.

    Two tests on Ray at once take the cores from each other. Short files come last, so that both processes end together.
    """
    if item.nodeid.startswith("tests/distributed/test_faults.py"):
        return 0
    return 1 + item.nodeid.startswith(_LAST) + item.nodeid.startswith(_SHORT)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """A process of xdist tells the first one, which collects nothing itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["slow_left_out"] = session.config.stash.get(_slow_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    output = getattr(node, "workeroutput", None) or {}  # a process that crashed left none
    node.config.stash[_slow_left_out] = output.get("slow_left_out", node.config.stash.get(_slow_left_out, 0))


def pytest_terminal_summary(terminalreporter, config):
    """With --all: the seconds that the tests of each tier took in each process of xdist."""
    if not config.getoption("--all"):
        return
    seconds = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            process = getattr(getattr(report, "node", None), "gateway", None)
            key = (process.id if process else "main", "slow" if "slow" in report.keywords else "default")
            seconds[key] = seconds.get(key, 0.0) + report.duration
    terminalreporter.section("seconds by process and tier")
    for (process, tier), total in sorted(seconds.items()):
        terminalreporter.write_line(f"{process} {tier}: {total:.0f} s")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """The last line of a run without the slow tests says so."""
    count = config.stash.get(_slow_left_out, 0)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if count and reporter is not None and not hasattr(config, "workerinput"):
        reporter.write_line(f"{count} slow tests were left out; python -m pytest --all runs them too.")


@pytest.fixture(scope="session")
def free_ports():
    """Gives so many ports for a Ray of a test's own, each once.

    They lie below the ephemeral ports of the system and above those of Ray's workers, so that no other test is given
    one of them before it is used. Each process of xdist has its own.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    order = random.sample(range(20_000 + number, 32_000, 4), 3_000)

    def given(count):
        found = []
        while len(found) < count:
            port = order.pop()
            with socket.socket() as one:
                try:
                    one.bind(("127.0.0.1", port))
                except OSError:
                    continue
            found.append(port)
        return found

    return given


@pytest.fixture(scope="session")
def ray_address():
    """The address of a Ray with 4 logical CPUs, shared by all tests of the session."""
    import logging

    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=150 * 2**20,
        _temp_dir=_PRIVATE.name,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    """HOST:PORT of an S3 that runs on this machine. One for all tests: each makes buckets of its own names."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


TINY = [
    "train.epochs=40",
    "tickets.cycle_rate=0.1",
    "tickets.cycle_epochs=2",
    "tickets.num_chains=3",
    "train.checkpoint_every_epochs=5",
]
"""Overrides of the digits recipe: 36 epochs of pretraining, then 3 chains of 2 cycles."""


@pytest.fixture
def tiny():
    """See `TINY`."""
    return list(TINY)


@pytest.fixture(scope="session")
def finished_run(request, tmp_path_factory):
    """A tiny run of the built-in recipe, undisturbed, with three explorers allowed; one for all processes of xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base
    stored = shared / "finished.pickle"
    with FileLock(shared / "finished.lock"):
        if not stored.exists():
            request.getfixturevalue("ray_address")
            from suptickets_ray import load_config, train

            events = []
            config = load_config(
                None, [*TINY, f"storage={shared}/finished", "name=undisturbed", "cluster.num_explorers=3"]
            )
            finished = train(config, events.append)
            finished.result["events"] = events
            stored.write_bytes(pickle.dumps(finished))
    return pickle.loads(stored.read_bytes())


@pytest.fixture
def forked_run(finished_run, ray_address, tmp_path):
    """A folder that holds nothing but the finished pretraining of `finished_run`, to be continued on the shared Ray."""
    run = tmp_path / "forked"
    run.mkdir()
    for name in ("config.yaml", "pretrained.pt"):
        (run / name).write_bytes((Path(finished_run.path) / name).read_bytes())
    return run

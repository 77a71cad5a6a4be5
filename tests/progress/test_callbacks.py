"""Receivers of events: shipped loggers, user-defined classes, and errors in them."""

import json

import pytest

from suptickets_ray import load_config
from suptickets_ray.metric import Metric
from suptickets_ray.progress.callbacks import CALLBACKS, Callbacks, JsonLines, make_callbacks
from suptickets_ray.progress.events import (
    CycleEpochEnded,
    EpochEnded,
    PhaseStarted,
    RunFinished,
    TicketFinished,
    TicketMerged,
    Warned,
)
from suptickets_ray.progress.logged_metrics import MetricStream
from suptickets_ray.recipes.load import config_digest

EVENTS = [
    PhaseStarted("pretrain", epochs=2),
    EpochEnded(1, 2, 0.5, 0.75),
    EpochEnded(2, 2, float("nan"), 0.8),
    CycleEpochEnded(0, 0, 1, 0.3),
    CycleEpochEnded(0, 1, 1, 0.2),
    TicketFinished(0, 0, 0.7, "a", 7, 1.0, 2.0),
    TicketMerged(0, 0, True, 0.72),
    RunFinished("/runs/a", 0.9, 0.4, "0a", []),
]


class Recorder:
    """A user-defined receiver."""

    def __init__(self, config=None, path=None):
        self.config, self.path, self.events, self.closed = config, path, [], False

    def __call__(self, event):
        self.events.append(event)

    def close(self):
        self.closed = True


class Broken(Recorder):
    def __call__(self, event):
        raise OSError("no network")

    def close(self):
        raise OSError("no network")


def test_an_error_of_a_receiver_is_reported_once_and_the_others_continue():
    warnings, recorder = [], Recorder()
    callbacks = Callbacks([Broken(), recorder], warnings.append, ["earlier"])
    for event in EVENTS:
        callbacks(event)
    callbacks.close()
    assert recorder.events == [Warned("earlier"), *EVENTS] and recorder.closed
    assert [warning.text for warning in warnings] == [
        "the callback Broken failed: OSError: no network. Its later errors are not reported."
    ]


def test_an_interrupt_in_a_receiver_ends_the_run():
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([interrupt], print)(EVENTS[0])


def test_receivers_of_the_recipe_get_the_arguments_that_they_name(tmp_path, monkeypatch):
    (tmp_path / "own_receiver.py").write_text(
        "class Receiver:\n    def __init__(self, path):\n        self.path = path\n"
        "    def __call__(self, event):\n        pass\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(None, ["run.callbacks=[own_receiver:Receiver, jsonlines]"])
    own, lines = make_callbacks(config, str(tmp_path))
    assert own.path == str(tmp_path) and isinstance(lines, JsonLines)
    with pytest.raises(ValueError, match="objects can be called; got 'own_receiver:nothing'"):
        make_callbacks(load_config(None, ["run.callbacks=[own_receiver:nothing]"]), str(tmp_path))
    with pytest.raises(ValueError, match="unknown run.callbacks 'jsonline'; did you mean 'jsonlines'?"):
        make_callbacks(load_config(None, ["run.callbacks=[jsonline]"]), str(tmp_path))


def test_receivers_never_change_the_digest_of_a_recipe():
    assert config_digest(load_config(None, ["run.callbacks=[jsonlines]"])) == config_digest(load_config(None))


@pytest.mark.parametrize("where", ["{}", "file://{}"])
def test_json_lines_hold_every_event_of_every_start(tmp_path, where):
    for _ in range(2):
        lines = JsonLines(where.format(tmp_path / "run"))
        for event in EVENTS:
            lines(event)
        lines.close()
    found = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in found[:4]] == ["phase", "epoch", "epoch", "cycle_epoch"]
    assert found[2]["loss"] is None and found[1]["validation_accuracy"] == 0.75
    assert len(found) == 2 * len(EVENTS)


def test_numbers_of_events_have_steps_of_their_own_and_the_name_of_the_metric():
    stream = MetricStream()
    assert [stream.read(event) for event in EVENTS] == [
        None,
        (1, {"pretrain/loss": 0.5, "pretrain/validation_accuracy": 0.75}),
        (2, {"pretrain/validation_accuracy": 0.8}),
        (1, {"chain-000/loss": 0.3}),
        (2, {"chain-000/loss": 0.2}),
        (1, {"tickets/validation_accuracy": 0.7}),
        (1, {"superposition/accepted": 1.0, "superposition/validation_accuracy": 0.72}),
        (0, {"test/accuracy": 0.9, "test/loss": 0.4}),
    ]
    event = EpochEnded(1, 2, 0.5, 3.0, Metric("mse", "min"))
    assert stream.read(event)[1]["pretrain/validation_mse"] == 3.0


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_with_its_extra(name, package, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ValueError, match=rf"must have the package {package}; .*'suptickets-ray\[{package}\]'"):
        make_callbacks(load_config(None, [f"run.callbacks=[{name}]"]), str(tmp_path))
    assert name in CALLBACKS


@pytest.mark.slow  # its client starts a process
@pytest.mark.filterwarnings("ignore")  # of the client
def test_weights_and_biases_gets_the_numbers_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        [logger] = make_callbacks(load_config(None, ["run.callbacks=[wandb]", "name=w"]), str(tmp_path))
        for event in EVENTS:
            logger(event)
        assert logger._run.summary["test/accuracy"] == 0.9
        assert logger._run.id.startswith("w-")
        logger.close()
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.wandb")]
    assert len(sizes) == 2 and min(sizes) > 0


@pytest.mark.filterwarnings("ignore")  # of the client
def test_mlflow_gets_the_numbers_and_a_later_start_continues_the_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    config = load_config(None, ["run.callbacks=[mlflow]", "name=m"])
    for events in (EVENTS[:3], EVENTS[3:]):
        [logger] = make_callbacks(config, str(tmp_path))
        for event in events:
            logger(event)
        logger.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("suptickets")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == 0.9
    assert run.data.params["train.lr"] == str(config.train.lr)
    assert [point.value for point in client.get_metric_history(run.info.run_id, "pretrain/validation_accuracy")] == [
        0.75,
        0.8,
    ]

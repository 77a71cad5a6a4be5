import dataclasses
import io
import json
import math
import pickle
from typing import get_args

import pytest

from suptickets_ray.progress.events import (
    KINDS,
    CycleEpochEnded,
    CycleStarted,
    EpochEnded,
    Event,
    JobPlanned,
    PhaseStarted,
    ResultWritten,
    Resumed,
    RunFinished,
    Starting,
    TicketFinished,
    TicketMerged,
    TrialFinished,
    Waiting,
    Warned,
)
from suptickets_ray.progress.log import EventLog, json_logs

LINES = [
    (
        JobPlanned(36, 3, 2, 8, 4),
        '"event": "plan", "epochs": 36, "chains": 3, "cycles": 2, "cycle_epochs": 8, "explorers": 4',
    ),
    (JobPlanned(trials=5), '"event": "plan", "trials": 5'),
    (Starting("Ray"), '"event": "starting", "what": "Ray"'),
    (PhaseStarted("pretrain", epochs=36), '"event": "phase", "name": "pretrain", "epochs": 36'),
    (
        PhaseStarted("pretrain", epochs=36, number=1, of=2),
        '"event": "phase", "name": "pretrain", "epochs": 36, "number": 1, "of": 2',
    ),
    (
        PhaseStarted("explore", chains=3, cycles=2),
        '"event": "phase", "name": "explore", "chains": 3, "cycles": 2',
    ),
    (PhaseStarted("superpose"), '"event": "phase", "name": "superpose"'),
    (PhaseStarted("search", trials=4), '"event": "phase", "name": "search", "trials": 4'),
    (Resumed("the finished pretraining"), '"event": "resumed", "what": "the finished pretraining"'),
    (
        Resumed("2 finished tickets", 2, (1, 1)),
        '"event": "resumed", "what": "2 finished tickets", "tickets": 2, "cycles": [1, 1]',
    ),
    (
        Resumed("the pretraining of 9 epochs", epoch=9),
        '"event": "resumed", "what": "the pretraining of 9 epochs", "epoch": 9',
    ),
    (
        EpochEnded(3, 36, 0.5, 0.75),
        '"event": "epoch", "epoch": 3, "epochs": 36, "loss": 0.5, "validation_accuracy": 0.75',
    ),
    (
        EpochEnded(3, 36, 0.5, 0.75, examples_per_second=1000.0),
        '"event": "epoch", "epoch": 3, "epochs": 36, "loss": 0.5, "validation_accuracy": 0.75, '
        '"examples_per_second": 1000.0',
    ),
    (CycleStarted(2, 1), '"event": "cycle", "chain": 2, "cycle": 1'),
    (
        CycleEpochEnded(2, 1, 3, math.nan),
        '"event": "cycle_epoch", "chain": 2, "cycle": 1, "epoch": 3, "loss": null',
    ),
    (
        TicketFinished(2, 1, 0.75, "a", 7, 1.0, 2.0),
        '"event": "ticket", "chain": 2, "cycle": 1, "validation_accuracy": 0.75, "node": "a", "process": 7, '
        '"began": 1.0, "ended": 2.0',
    ),
    (TicketMerged(2, 1, False), '"event": "merge", "chain": 2, "cycle": 1, "accepted": false'),
    (
        TicketMerged(2, 1, True, 0.75, 0.5, 0.1, 0.2, 0.9, 1.0, 2.0),
        '"event": "merge", "chain": 2, "cycle": 1, "accepted": true, "validation_accuracy": 0.75, '
        '"validation_loss": 0.5, "density": 0.1, "density_before_pruning": 0.2, "overlap": 0.9, "began": 1.0, '
        '"ended": 2.0',
    ),
    (
        TrialFinished({"seed": 1, "method.density": 0.1}, 0.75, math.inf),
        '"event": "trial", "values": {"seed": 1, "method.density": 0.1}, "validation_accuracy": 0.75, '
        '"validation_loss": null',
    ),
    (Waiting("for machines"), '"event": "waiting", "text": "for machines"'),
    (Warned("no token"), '"event": "warning", "text": "no token"'),
    (
        ResultWritten("/runs/a", 0.75, "0a"),
        '"event": "result", "path": "/runs/a", "accuracy": 0.75, "digest": "0a"',
    ),
    (
        RunFinished("/runs/a", 0.75, None, "0a", ["no token"]),
        '"event": "done", "path": "/runs/a", "accuracy": 0.75, "loss": null, "digest": "0a", "warnings": ["no token"]',
    ),
]


@pytest.mark.parametrize(("event", "expected"), LINES)
def test_the_json_line_of_an_event_has_its_name_and_the_fields_that_apply(event, expected):
    stream = io.StringIO()
    with json_logs(stream):
        EventLog("digits")(event)
    line = stream.getvalue()
    assert line.endswith(f"{expected}}}\n")
    assert list(json.loads(line))[:5] == ["time", "level", "run", "phase", "event"]


def test_every_event_has_a_name_in_logs_and_an_example_above():
    assert set(get_args(Event)) == set(KINDS) == {type(event) for event, _ in LINES}
    assert len(set(KINDS.values())) == len(KINDS)


@pytest.mark.parametrize("event", [event for event, _ in LINES])
def test_an_event_is_a_frozen_value_that_can_be_sent_to_another_process(event):
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.text = "changed"
    assert repr(pickle.loads(pickle.dumps(event))) == repr(event)


def test_the_help_of_train_points_to_the_events():
    from suptickets_ray import train, tune

    for function in (train, tune):
        assert "suptickets_ray.progress.events" in function.__doc__

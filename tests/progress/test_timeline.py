import json

import pytest

from suptickets_ray.progress.events import EpochEnded, PhaseStarted, TicketFinished, TicketMerged
from suptickets_ray.progress.timeline import Timeline
from suptickets_ray.tickets.run_folder import TIMELINE_FILE
from suptickets_ray.tickets.store import RunStore


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    return RunStore(str(tmp_path))


def stored(store):
    return json.loads(store.read(TIMELINE_FILE))


def test_phases_cycles_and_merges_become_spans(store):
    clock = Clock(100.0)
    timeline = Timeline(store, "0a", 90.0, now=clock)
    timeline.record(PhaseStarted("pretrain", epochs=3))
    clock.now = 130.0
    timeline.record(PhaseStarted("explore"))
    ticket = {"chain": 1, "cycle": 0, "node": "a", "process": 7, "began": 131.0, "ended": 140.0}
    timeline.record(TicketFinished(validation_score=0.5, **ticket))
    timeline.record(TicketMerged(1, 0, accepted=True, began=140.0, ended=141.0))
    timeline.record(TicketMerged(2, 0, accepted=True))
    clock.now = 141.0
    timeline.record(PhaseStarted("superpose"))
    clock.now = 150.0
    timeline.close()
    assert stored(store) == {
        "config_digest": "0a",
        "starts": [{"began": 90.0, "ended": 150.0}],
        "spans": [
            {"kind": "starting", "began": 90.0, "ended": 100.0, "start": 0},
            {"kind": "pretrain", "began": 100.0, "ended": 130.0, "start": 0},
            {"kind": "cycle", **ticket, "validation_accuracy": 0.5, "start": 0},
            {"kind": "merge", "chain": 1, "cycle": 0, "accepted": True, "began": 140.0, "ended": 141.0, "start": 0},
            {"kind": "explore", "began": 130.0, "ended": 141.0, "start": 0},
            {"kind": "superpose", "began": 141.0, "ended": 150.0, "start": 0},
        ],
    }


def test_a_later_start_adds_to_the_earlier_ones(store):
    clock = Clock(1.0)
    Timeline(store, "0a", now=clock).close()
    clock.now = 50.0
    again = Timeline(store, "0a", now=clock)
    again.record(TicketFinished(0, 0, 0.5, "a", 7, began=51.0, ended=52.0))
    again.close()
    assert [start["began"] for start in stored(store)["starts"]] == [1.0, 50.0]
    assert [(span["kind"], span["start"]) for span in stored(store)["spans"]] == [
        ("starting", 0),
        ("cycle", 1),
        ("starting", 1),
    ]


def test_a_killed_start_leaves_the_phase_it_was_in(store):
    clock = Clock(1.0)
    killed = Timeline(store, "0a", now=clock)
    killed.record(PhaseStarted("pretrain", epochs=3))
    clock.now = 30.0
    killed.record(EpochEnded(1, 3, 1.0, 0.5))
    assert {"kind": "pretrain", "began": 1.0, "ended": 30.0, "start": 0} in stored(store)["spans"]


def test_it_is_saved_while_the_run_goes_on(store):
    clock = Clock(1.0)
    timeline = Timeline(store, "0a", now=clock)
    timeline.record(EpochEnded(1, 3, 1.0, 0.5))
    assert not store.exists(TIMELINE_FILE)
    clock.now = 12.0
    timeline.record(EpochEnded(1, 3, 1.0, 0.5))
    assert stored(store)["starts"] == [{"began": 1.0, "ended": 12.0}]


def test_a_damaged_file_is_begun_anew(store):
    store.write(TIMELINE_FILE, b'{"starts": 3')
    Timeline(store, "0a", now=Clock(5.0)).close()
    assert len(stored(store)["starts"]) == 1


def test_the_file_of_another_recipe_is_not_continued(store):
    Timeline(store, "0b", now=Clock(1.0)).close()
    Timeline(store, "0a", now=Clock(5.0)).close()
    assert [start["began"] for start in stored(store)["starts"]] == [5.0]


def test_the_last_epoch_is_stored_for_other_terminals(store):
    timeline = Timeline(store, "0a", 90.0, now=Clock(100.0))
    timeline.record(PhaseStarted("pretrain", epochs=3))
    timeline.record(EpochEnded(2, 3, 0.5, 0.75))
    timeline.close()
    epoch = {"ended": 100.0, "epoch": 2, "epochs": 3, "loss": 0.5, "validation_accuracy": 0.75}
    assert stored(store)["epoch"] == epoch

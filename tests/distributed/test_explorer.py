"""What an explorer does within a cycle, in this process; Ray is played by the test."""

from types import SimpleNamespace

import pytest
import torch

from suptickets_ray import load_config
from suptickets_ray.distributed.cluster import polling
from suptickets_ray.distributed.pipeline import explorer as explorer_module
from suptickets_ray.progress.events import CycleEpochEnded
from suptickets_ray.tickets.run_folder import chain_state_path, partial_state_path
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data import load_data
from suptickets_ray.training.loop import build_learner

SMALL = ["model.options.widths=[16]", "data.num_train_examples=60", "train.epochs=40", "tickets.cycle_epochs=4"]
CONFIG = load_config(None, SMALL)
CPU = torch.device("cpu")


class TakenAwayError(Exception):
    """A machine that is gone."""


@pytest.fixture
def explorer(tmp_path, monkeypatch):
    """Makes an explorer of the run in tmp_path, whose machine goes after so many epochs of a cycle."""
    splits = load_data(CONFIG.data)

    def made(ends_after=None, under_notice=False, long_cycles=False):
        monkeypatch.setattr(explorer_module, "draining_nodes", lambda: {"here"} if under_notice else set())
        monkeypatch.setattr(polling, "CLUSTER_POLL_SECONDS", -1.0)
        monkeypatch.setattr(explorer_module, "_CHECKPOINT_SECONDS", -1.0 if long_cycles else 1e9)
        one = object.__new__(explorer_module.Explorer.__ray_metadata__.modified_class)
        one.epochs = []

        def send(event):
            if isinstance(event, CycleEpochEnded):
                one.epochs.append(event.epoch)
                if len(one.epochs) == (ends_after or 0) + 1 and ends_after is not None:
                    raise TakenAwayError

        one._worker = SimpleNamespace(
            config=CONFIG,
            splits=splits,
            store=RunStore(str(tmp_path)),
            tensorboard=str(tmp_path / "tensorboard"),
            send=send,
        )
        one._learner = build_learner(CONFIG, splits, CPU, restores=True)
        one._digest, one._node = "d", "here"
        return one

    return made


@pytest.fixture(scope="module")
def state():
    """What pretraining ended in."""
    return build_learner(CONFIG, load_data(CONFIG.data), CPU).to_bytes(epoch=36)


def digest(table):
    return Ticket.from_arrow(table).digest


@pytest.mark.parametrize("why", ["under_notice", "long_cycles"])
def test_a_cycle_whose_machine_goes_is_gone_on_with_elsewhere_and_ends_in_the_same_bits(explorer, state, tmp_path, why):
    undisturbed, after, _, _ = explorer().run_cycle(state, 0, 0, again=False)
    with pytest.raises(TakenAwayError):
        explorer(ends_after=2, **{why: True}).run_cycle(state, 1, 0, again=False)
    with pytest.raises(TakenAwayError):
        explorer(ends_after=2, **{why: True}).run_cycle(state, 0, 0, again=False)
    assert (tmp_path / partial_state_path(0)).exists()
    elsewhere = explorer()
    table, own_after, _, _ = elsewhere.run_cycle(state, 0, 0, again=True)
    assert elsewhere.epochs == [3, 4]
    assert digest(table) == digest(undisturbed)
    assert own_after == after == (tmp_path / chain_state_path(0)).read_bytes()
    assert not (tmp_path / partial_state_path(0)).exists()
    assert (tmp_path / partial_state_path(1)).exists()


def test_without_a_notice_a_short_cycle_stores_nothing_in_between(explorer, state, tmp_path):
    with pytest.raises(TakenAwayError):
        explorer(ends_after=2).run_cycle(state, 0, 0, again=False)
    assert not (tmp_path / partial_state_path(0)).exists()


@pytest.mark.parametrize("harm", ["damaged", "of another cycle", "of another state"])
def test_what_is_no_good_is_not_gone_on_with(explorer, state, tmp_path, harm):
    undisturbed, after, _, _ = explorer().run_cycle(state, 0, 0, again=False)
    with pytest.raises(TakenAwayError):
        explorer(ends_after=2, under_notice=True).run_cycle(state, 0, 0, again=False)
    path = tmp_path / partial_state_path(0)
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-40])
    again, cycle = explorer(), int(harm == "of another cycle")
    start = state if harm == "damaged" else after
    again.run_cycle(start, 0, cycle, again=True)
    assert again.epochs == [1, 2, 3, 4]
    if harm == "damaged":
        assert (tmp_path / chain_state_path(0)).read_bytes() == after
        assert undisturbed is not None

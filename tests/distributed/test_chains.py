"""What chains go on from, without a cluster: references are the values themselves."""

import pytest
import torch

from suptickets_ray import Ticket
from suptickets_ray.distributed.pipeline import chains
from suptickets_ray.distributed.pipeline.chains import Chains
from suptickets_ray.tickets.run_folder import chain_state_path
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket_store import Origin, TicketStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A run's files; a state is stored as the number of its cycle, in digits."""

    def read_progress(content):
        if not content.isdigit():
            raise ValueError("damaged")
        return {"cycle": int(content), "ticket": int(Ticket({"w": torch.ones(1)}, {}, {}).digest, 16)}

    monkeypatch.setattr(chains, "read_progress", read_progress)
    monkeypatch.setattr(chains.ray, "put", lambda state: ("put", state))
    return RunStore(str(tmp_path))


ORIGIN = Origin("exploration", "pretrained state")
DIGEST = Ticket({"w": torch.ones(1)}, {}, {}).digest
OWN = {"exploration": "exploration", "pretrained": "pretrained state", "parent": DIGEST}


def keep(store, chain, *cycles, **other):
    for cycle in cycles:
        provenance = {**OWN, "chain": chain, "cycle": cycle, **other}
        TicketStore(store).put(Ticket({"w": torch.ones(1)}, {}, provenance), chain, cycle)
        store.write(chain_state_path(chain), str(cycle).encode())


def test_a_cycle_that_was_stored_before_its_machine_died_is_not_run_again_and_the_lost_reference_is_let_go(store):
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    assert run.state_of(0) == "pretrained"
    keep(store, 0, 0)
    run.finish(0, 1, "on the machine that dies")
    keep(store, 0, 1)  # stored; then the machine goes, and with it the answer
    run.reload_after_loss(0)
    assert (run.done, run.num_trained) == ({0: 2}, 2)
    assert run.state_of(0) == ("put", b"1")


def test_a_lost_state_is_read_from_the_storage(store):
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    keep(store, 0, 0)
    run.finish(0, 1, "lost")
    run.reload_after_loss(0)
    assert run.done == {0: 1}
    assert run.state_of(0) == ("put", b"0")


def test_a_state_that_the_storage_does_not_have_is_kept(store):
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    run.finish(0, 1, "in memory")
    run.reload_after_loss(0)
    assert run.state_of(0) == "in memory"


def test_the_old_state_of_a_chain_that_is_made_anew_does_not_count(store):
    keep(store, 0, 0, 1)
    path = TicketStore.path(0, 0)
    store.write(path, store.read(path)[:-9])
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    assert (run.done, run.restarted) == ({0: 0}, [0])
    run.reload_after_loss(0)
    assert run.done == {0: 0}
    assert run.state_of(0) == "pretrained"


def test_no_state_is_held_of_a_chain_that_has_ended_or_was_not_asked_for(store):
    keep(store, 0, 0, 1)
    keep(store, 1, 0)
    run = Chains(store, 3, 2, "pretrained", ORIGIN)
    assert (run.done, run.num_unfinished, run.num_states) == ({0: 2, 1: 1, 2: 0}, 2, 0)
    run.state_of(1)
    assert run.num_states == 1
    run.finish(1, 2, "last")
    assert run.num_states == 0
    run.finish(2, 1, "more to come")
    assert run.num_states == 1


def test_a_state_that_was_damaged_meanwhile_is_named(store):
    keep(store, 0, 0)
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    store.write(chain_state_path(0), b"x")
    with pytest.raises(RuntimeError, match=r"Cannot continue chain 0: chains/chain-000.pt was changed or damaged"):
        run.state_of(0)


@pytest.mark.parametrize("key", ["exploration", "pretrained", "parent"])
def test_tickets_of_another_run_are_not_taken_over(store, key):
    keep(store, 0, 0)
    keep(store, 0, 1, **{key: "of another run"})
    keep(store, 0, 2)
    run = Chains(store, 1, 4, "pretrained", ORIGIN)
    assert list(TicketStore(store).own(ORIGIN)) == [(0, 0)]
    assert run.done == {0: 0}  # the state that is stored comes after a cycle that does not count
    assert run.restarted == [0]


def test_a_state_that_is_not_that_of_its_ticket_does_not_count(store, monkeypatch):
    keep(store, 0, 0)
    monkeypatch.setattr(chains, "read_progress", lambda content: {"cycle": 0, "ticket": 1})
    assert Chains(store, 1, 4, "pretrained", ORIGIN).done == {0: 0}

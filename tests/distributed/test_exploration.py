"""Exploration on its own, without a superposer that asks for tickets."""

from pathlib import Path

import pytest
import ray

from suptickets_ray import Ticket, load_config
from suptickets_ray.distributed.cluster.event_queue import Monitor
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.training.checkpoint import state_digest
from suptickets_ray.training.data import load_source
from suptickets_ray.training.loop import budget_of

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_explorers_go_on_while_tickets_wait_and_no_more_than_two_each_stay_in_memory(finished_run, forked_run, tiny):
    settings = [
        *tiny,
        f"storage={forked_run.parent}",
        "name=forked",
        "tickets.cycle_epochs=1",
        "cluster.num_explorers=2",
    ]
    config = load_config(None, [*settings, "tickets.num_chains=2"])
    state = ray.put((forked_run / "pretrained.pt").read_bytes())
    context = WorkerContext.create(config, str(forked_run), Monitor.remote(), load_source(config.data))
    cycles = budget_of(config).cycles
    digest = state_digest((forked_run / "pretrained.pt").read_bytes())
    with Exploration(context, state, cycles, lambda: None, pretrained_digest=digest) as exploration:
        while not exploration.is_done:
            exploration.advance()
        assert len(list(forked_run.glob("tickets/*/*.arrow"))) == 2 * cycles
        assert exploration.num_in_memory == 4
        sizes = []
        for chain in (0, 1):
            for cycle in range(cycles):
                finished = exploration.ticket(chain, cycle)
                ticket = Ticket.from_arrow(ray.get(finished.table))
                if finished.measured is not None:
                    measured = ray.get(finished.measured)
                    sizes.append({split: tuple(found.predictions.shape) for split, found in measured.items()})
                assert (ticket.provenance["chain"], ticket.provenance["cycle"]) == (chain, cycle)
        assert exploration.num_in_memory == 0
        assert exploration.num_states == 0
    assert sizes == [{"validation": (297, 10), "test": (1000, 10)}] * 4  # of the tickets in memory
    assert cycles == 4


def test_a_resumed_exploration_holds_no_state_until_a_cycle_needs_it(finished_run, ray_address):
    config = load_config(f"{finished_run.path}/config.yaml")
    context = WorkerContext.create(config, finished_run.path, Monitor.remote(), load_source(config.data))
    digest = state_digest((Path(finished_run.path) / "pretrained.pt").read_bytes())
    exploration = Exploration(context, None, budget_of(config).cycles, lambda: None, pretrained_digest=digest)
    assert exploration.num_stored == 6
    assert exploration.num_states == 0
    with exploration:
        assert Ticket.from_arrow(ray.get(exploration.ticket(2, 1).table)).provenance["cycle"] == 1

"""How many explorers can one driver and one superposer keep up with?

    python experiments/benchmarks/scale.py [EXPLORERS [CHAINS [CYCLE_SECONDS]]]

Runs the product's driver and superposer on a Ray of its own against explorers that only wait (200, for 1,000 chains of
one cycle, 2 s each, when left out): tickets per second, how long an explorer waits for its next cycle, the driver's
memory and the peak of Ray's object store. Beside it what one merge of a ResNet-50's ticket costs. Some minutes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from typing import Any
from unittest.mock import patch

import ray
import torch
from rich.console import Console

from suptickets_ray import Ticket, load_config, plan_budget
from suptickets_ray.config import Config, ModelConfig
from suptickets_ray.distributed.cluster.event_queue import monitoring, show_events
from suptickets_ray.distributed.pipeline import explorer_pool
from suptickets_ray.distributed.pipeline.context import WorkerContext
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.distributed.pipeline.superposer_client import SuperposerClient
from suptickets_ray.progress.events import Event, TicketMerged
from suptickets_ray.recipes.load import to_yaml
from suptickets_ray.sparse import Sparsifier
from suptickets_ray.tickets.accumulator import split_into_shards, start
from suptickets_ray.tickets.averaging import finish, merge
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.run_folder import chain_state_path
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import RunStore
from suptickets_ray.tickets.ticket_store import TicketStore
from suptickets_ray.training.data import load_source
from suptickets_ray.training.data.splits import make_splits
from suptickets_ray.training.loop import build_learner
from suptickets_ray.training.models import build_model

EXPLORERS_PER_PROCESS = 25
CPU = torch.device("cpu")


@ray.remote(num_cpus=0, max_concurrency=1000)
class Host:
    """Many explorers in one process: they wait as long as a cycle takes, and hand back a ticket made beforehand."""

    def __init__(self, path: str, cycle_seconds: float, ticket: Ticket, state: bytes) -> None:
        self._store, self._seconds, self._ticket, self._state = RunStore(path), cycle_seconds, ticket, state
        self._ended: dict[int, float] = {}
        self._gaps: list[float] = []

    async def node(self) -> str:
        """As an explorer."""
        return str(ray.get_runtime_context().get_node_id())

    async def run_cycle(self, number: int, chain: int, cycle: int) -> tuple[Any, bytes, bool]:
        """As an explorer; `number` says which of this process."""
        if number in self._ended:
            self._gaps.append(time.monotonic() - self._ended[number])
        await asyncio.sleep(self._seconds)
        ticket = Ticket.of_parts(self._ticket.parts, {"chain": chain, "cycle": cycle})
        TicketStore(self._store).put(ticket, chain, cycle)
        self._store.write(chain_state_path(chain), self._state)
        self._ended[number] = time.monotonic()
        return ticket.to_arrow(), self._state, True

    async def gaps(self) -> list[float]:
        """Seconds between the end of a cycle and the start of its explorer's next one."""
        return self._gaps


class FakeExplorer:
    """Stands where the product has the handle of an explorer."""

    def __init__(self, host: Any, number: int) -> None:
        self.node = host.node
        self.run_cycle = _RunCycle(host, number)


class _RunCycle:
    def __init__(self, host: Any, number: int) -> None:
        self._host, self._number = host, number

    def options(self, **options: Any) -> _RunCycle:
        self._options = options
        return self

    def remote(self, state: Any, chain: int, cycle: int, again: bool) -> Any:
        return self._host.run_cycle.options(**self._options).remote(self._number, chain, cycle)


class FakeExplorers:
    """Stands where the product has the class of explorers."""

    def __init__(self, hosts: list[Any]) -> None:
        self._hosts, self._started = hosts, 0

    def options(self, **options: Any) -> FakeExplorers:
        """As an actor class."""
        return self

    def remote(self, context: WorkerContext) -> FakeExplorer:
        """As an actor class."""
        number, self._started = self._started, self._started + 1
        return FakeExplorer(self._hosts[number % len(self._hosts)], number)


def object_store_mb() -> float:
    """What lies in Ray's object store now."""
    from ray._private.internal_api import memory_summary

    found = re.search(r"Plasma memory usage (\d+) MiB", memory_summary(stats_only=True))
    return float(found.group(1)) if found else 0.0


def control_plane(config: Config, explorers: int, cycle_seconds: float, console: Console) -> None:
    """Driver and superposer against explorers that only wait."""
    path = f"{config.storage}/{config.name}"
    loaded = load_source(config.data)
    learner = build_learner(config, make_splits(loaded, config.data), CPU)
    state, ticket = learner.to_bytes(cycle=0), learner.ticket({})
    RunStore(path).write("config.yaml", to_yaml(config).encode())
    hosts = [
        Host.remote(path, cycle_seconds, ticket, state)  # type: ignore[attr-defined]
        for _ in range(-(-explorers // EXPLORERS_PER_PROCESS))
    ]
    ray.get([host.node.remote() for host in hosts])
    peak, seen = 0.0, 0
    cycles = plan_budget(config.train.epochs, config.tickets.cycle_epochs, config.tickets.cycle_rate).cycles

    def watch(event: Event) -> None:
        nonlocal peak, seen
        seen += isinstance(event, TicketMerged)
        if isinstance(event, TicketMerged) and seen % 50 == 0:
            peak = max(peak, object_store_mb())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        monitoring() as monitor,
        patch.object(explorer_pool, "Explorer", FakeExplorers(hosts)),
        patch.object(explorer_pool.ray, "kill", lambda actor: None),
    ):
        context = WorkerContext.create(config, path, monitor, loaded)
        pretrained = ray.put(learner.to_bytes(epoch=0))
        running = Exploration(context, pretrained, cycles, lambda: show_events(monitor, watch), pretrained_digest="")
        merging = SuperposerClient(context, pretrained, running)
        began = time.monotonic()
        with running:
            for key in canonical_order(config.tickets.num_chains, cycles):
                merging.merge(*key)
        handed_over = time.monotonic() - began
        merging._catch_up(0)
        merged = time.monotonic() - began
    tickets = config.tickets.num_chains * cycles
    gaps = [gap for host in hosts for gap in ray.get(host.gaps.remote())]
    least = tickets * cycle_seconds / explorers
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    console.print(f"{tickets} tiny tickets from {explorers} explorers of {cycle_seconds:g} s a cycle:")
    console.print(f"  explored in {handed_over:.1f} s and merged in {merged:.1f} s; explorers alone need {least:.1f} s")
    console.print(f"  {tickets / merged:.0f} tickets/s, offered were at most {explorers / cycle_seconds:.0f}")
    console.print(
        f"  an explorer waits {statistics.median(gaps):.2f} s for its next cycle (median), "
        f"{sorted(gaps)[int(0.99 * len(gaps))]:.2f} s (99th percentile)"
    )
    console.print(
        f"  driver's peak memory {after / 1024:.0f} MB, {(after - before) / 1024:.0f} MB of it while exploring"
    )
    console.print(f"  object store's peak {peak:.0f} MB")


def one_merge(console: Console) -> None:
    """What the superposer does with one ticket of a ResNet-50 for 100 classes at density 0.05, evaluation apart."""
    torch.set_num_threads(1)
    tickets = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = build_model(ModelConfig(name="cifar_resnet50"), (3, 32, 32), 100)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(seed)
        sparsifier = Sparsifier(model, optimizer, "static", density=0.05, total_steps=10, generator=generator)
        tickets.append(Ticket(model.state_dict(), sparsifier.masks, {}).to_arrow())
    sizes = {name: tensor.numel() for name, tensor in Ticket.from_arrow(tickets[0]).state_dict().items()}
    for count in (4, 8, 16):
        largest = max(split_into_shards(sizes, count), key=lambda names: sum(sizes[name] for name in names))
        apart = merge_when_dense(tickets, Rule("cia", 0.05, prune_at="end"), set(largest))
        console.print(f"the largest of {count} shards of it (num_merge_shards, 1 thread): {1000 * apart:.0f} ms then")
    for prune in ("end", "every_ticket"):
        rule, merged, seconds = Rule("cia", 0.05, prune_at=prune), start(Ticket.from_arrow(tickets[0])), []
        for table in tickets[1:]:
            began = time.perf_counter()
            merged = merge(merged, Ticket.from_arrow(table), rule)
            if prune == "every_ticket":
                finish(merged, rule, {})
            seconds.append(time.perf_counter() - began)
        took = f"{1000 * statistics.median(seconds):.0f} ms"
        if prune == "end":
            took += (
                f", {1000 * merge_when_dense(tickets, rule):.0f} ms once 60 tickets have touched nearly every weight"
            )
        console.print(f"one merge of a ResNet-50's ticket (1 thread, prune {prune}): {took}")


def merge_when_dense(tickets: list[Any], rule: Rule, names: set[str] | None = None) -> float:
    """Median seconds of a merge onto an average in which nearly all weights are active."""
    read = Ticket.from_arrow if names is None else partial(Ticket.some_of, names=names)
    first = read(tickets[0])
    masks = {name: torch.ones_like(mask) for name, mask in first.masks.items()}
    merged = merge(start(Ticket(first.state_dict(), masks, {})), first, rule)
    seconds = []
    for table in tickets[1:]:
        began = time.perf_counter()
        merge(merged, read(table), rule)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Runs both and prints."""
    explorers, chains, cycle_seconds = ([float(text) for text in sys.argv[1:]] + [200, 1000, 2.0][len(sys.argv) - 1 :])[
        :3
    ]
    console = Console(highlight=False, soft_wrap=True)
    recipe = [
        "method.name=static",
        "model.options.widths=[16]",
        "data.label_noise=0",
        "data.num_train_examples=50",
        "train.epochs=10",
        "tickets.cycle_epochs=1",
        "tickets.cycle_rate=0.1",
        f"tickets.num_chains={int(chains)}",
        f"cluster.num_explorers={int(explorers)}",
        "superposition.gate_tolerance=none",
        "superposition.prune_at=end",
    ]
    with tempfile.TemporaryDirectory() as storage:
        ray.init(num_cpus=int(explorers), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        control_plane(load_config(None, [*recipe, f"storage={storage}"]), int(explorers), cycle_seconds, console)
        ray.shutdown()
    one_merge(console)  # last: its networks would count as the driver's memory


if __name__ == "__main__":
    main()

"""The actor that merges tickets into one, keeps the gate, and judges the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import torch

from suptickets_ray.distributed.cluster.event_queue import reported_warnings
from suptickets_ray.distributed.pipeline.context import start_worker
from suptickets_ray.distributed.pipeline.result import versions
from suptickets_ray.recipes.load import config_digest
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.accumulator import Accumulator, joined
from suptickets_ray.tickets.averaging import Rule
from suptickets_ray.tickets.store import TicketStore
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_ticket
from suptickets_ray.training.tensorboard import Scalars

_LONGEST_LOOK_SECONDS = 60.0
"""What a look may take that only serves the curves."""


@ray.remote(num_cpus=0)
class Superposer:
    """Merges tickets in the order in which they are given. Single-threaded; keys it has seen are not merged twice."""

    def __init__(self, settings: dict[str, Any], pretrained: bytes) -> None:
        """Starts from the pretrained network.

        Args:
            settings: What `worker_settings` gave.
            pretrained: State that pretraining ended in.
        """
        device = torch.device("cuda" if settings["config"]["cluster"]["superposer_gpus"] else "cpu")
        self._worker = start_worker(settings, device)
        config, splits = self._worker.config, self._worker.splits
        provenance = {"run": config.name, "config_digest": config_digest(config), "versions": versions()}
        net = read_ticket(pretrained, provenance, device)
        began = time.monotonic()
        self._merger = Merger(config, splits, net, device)  # looks at the pretrained network on validation
        seconds = (time.monotonic() - began) * self._merger.look_examples / len(splits.validation)
        self._looks_when_free = seconds <= _LONGEST_LOOK_SECONDS
        self._merged: dict[tuple[int, int], dict[str, Any]] = {}
        self._standing: tuple[float, float] | None = None
        """Validation accuracy and loss of the network as it stands, once a ticket was accepted and looked at."""
        self._scalars = Scalars(self._worker.tensorboard, "superposition", first_step=1)

    def merge(self, table: pa.Table, chain: int, cycle: int, look: bool = True) -> dict[str, Any]:
        """Merges one ticket, unless merged with the others it costs too much validation accuracy.

        Args:
            table: The ticket's Arrow form.
            chain: Its chain.
            cycle: Its cycle.
            look: Whether the merged network is evaluated even where nothing depends on that: not while others wait. Nor
                is it where that takes minutes: a large network on one thread of a CPU.

        Returns:
            chain, cycle, accepted, and, if looked at, the merged network's validation accuracy (a fraction).
        """
        if (chain, cycle) in self._merged:
            return self._merged[chain, cycle]
        began = time.time()
        with reported_warnings(self._worker.send):
            ticket = Ticket.from_arrow(table)
            report = self._merger.merge(ticket, chain, cycle, look=look and self._looks_when_free)
        self._merged[chain, cycle] = report
        scalars = {"superposition__accepted": float(report["accepted"])}
        if "density" in report:
            scalars["superposition__candidate_accuracy"] = report["validation_accuracy"]
            scalars["superposition__candidate_loss"] = report["validation_loss"]
            if report["accepted"]:
                self._standing = report["validation_accuracy"], report["validation_loss"]
            if self._standing is not None:
                scalars["superposition__accuracy"], scalars["superposition__loss"] = self._standing
            for key in ("density", "density_before_pruning", "overlap"):
                scalars[f"superposition__{key}"] = report[key]
        self._scalars.write(len(self._merged), **scalars)
        self._worker.report("merge", **report, began=began, ended=time.time())
        return report

    def first(self) -> tuple[Accumulator | None, Rule, dict[str, int]]:
        """Returns the merge before any ticket, how tickets are superposed, and the number of entries of each tensor."""
        parts = self._merger.superposed.parts
        sizes = {name: math.prod(part.shape) for name, part in parts.items()}
        return self._merger.first, self._merger.rule, sizes

    def note(self, table: pa.Table, chain: int, cycle: int) -> None:
        """Takes note of a ticket that others merge, unless it has diverged."""
        accepted = not Ticket.provenance_of(table).get("diverged")
        report = {"chain": chain, "cycle": cycle, "accepted": accepted}
        if self._merged.setdefault((chain, cycle), report) is report:
            self._scalars.write(len(self._merged), superposition__accepted=float(accepted))
            self._worker.report("merge", **report)

    def adopt(self, *merges: Accumulator) -> None:
        """Takes over what others have merged: each some tensors of every ticket noted."""
        names = self._merger.superposed.parts
        accepted = [key for key, report in self._merged.items() if report["accepted"]]
        if accepted:
            self._merger.adopt(joined(merges, names), accepted)

    def validate(self, table: pa.Table) -> float:
        """Returns a single ticket's validation accuracy, a fraction."""
        return self._merger.score(Ticket.from_arrow(table), "validation")["accuracy"]

    def judge(self) -> tuple[pa.Table, dict[str, Any]]:
        """Returns the sup-ticket's Arrow table, and the final numbers; here the test set is read, once."""
        store = TicketStore(self._worker.store)

        def tickets() -> Iterator[tuple[dict[str, Any], Ticket]]:
            for (chain, cycle), merged in self._merged.items():
                yield merged, store.get(chain, cycle)

        report = self._merger.judge(tickets())
        self._scalars.write(
            len(self._merged),
            test__pretrained=report["pretrained"]["accuracy"],
            test__superposed=report["superposed"]["accuracy"],
            test__unpruned_mean=report["unpruned_mean"]["accuracy"],
            test__ensemble=report["ensemble"]["accuracy"],
        )
        self._scalars.close()
        return self._merger.superposed.to_arrow(), report

"""The actor that merges tickets behind the gate, and evaluates the result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import torch

from suptickets_ray.distributed.cluster.event_queue import reported_warnings
from suptickets_ray.distributed.pipeline.context import WorkerContext, start_worker
from suptickets_ray.distributed.pipeline.result import versions
from suptickets_ray.progress.events import TicketMerged
from suptickets_ray.recipes.recorded_run import pretrained_ticket
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.superposition.ticket_scores import MeasuredSplits
from suptickets_ray.tickets.accumulator import Accumulator, join_shards
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import TicketStore
from suptickets_ray.training.tensorboard import Scalars

_MAX_OPTIONAL_VALIDATION_SECONDS = 60.0
"""Longest duration of a validation that is done only for the curves."""


@ray.remote(num_cpus=0)
class Superposer:
    """Merges tickets in the order of the calls. Single-threaded; each (chain, cycle) is merged only once."""

    def __init__(self, context: WorkerContext, pretrained: bytes) -> None:
        """Starts from the pretrained network.

        Args:
            context: What the driver has sent.
            pretrained: Final state of pretraining.
        """
        device = torch.device("cuda" if context.config.cluster.superposer_gpus else "cpu")
        self._worker = start_worker(context, device)
        config, splits = self._worker.config, self._worker.splits
        net = pretrained_ticket(config, pretrained, versions=versions())
        began = time.monotonic()
        self._merger = Merger(config, splits, net, device)  # validates the pretrained network
        seconds = (time.monotonic() - began) * self._merger.validation_examples / len(splits.validation)
        self._validates_when_idle = seconds <= _MAX_OPTIONAL_VALIDATION_SECONDS
        self._merger.score_pretrained()  # now, while the explorers work
        self._merged: dict[tuple[int, int], dict[str, Any]] = {}
        self._current_scores: tuple[float, float] | None = None
        """Validation score and loss of the current merged network, once an accepted ticket was validated."""
        self._scalars = Scalars(self._worker.tensorboard, "superposition", first_step=1)

    def merge(
        self, table: pa.Table, measured: MeasuredSplits | None, chain: int, cycle: int, validate: bool = True
    ) -> dict[str, Any]:
        """Merges one ticket, unless it has diverged or costs the merged network too much of its validation score.

        Args:
            table: The ticket's Arrow form.
            measured: What its explorer has measured of it. None measures it here.
            chain: Its chain.
            cycle: Its cycle.
            validate: Whether the merged network is validated even if no decision depends on it. False while tickets
                wait. Has no effect if that takes minutes, as for a large network on one CPU thread.

        Returns:
            chain, cycle, accepted, and, if validated, the merged network's validation scores.
        """
        if (chain, cycle) in self._merged:
            return self._merged[chain, cycle]
        began = time.time()
        with reported_warnings(self._worker.send):
            ticket = Ticket.from_arrow(table)
            self._merger.score_ticket(ticket, chain, cycle, measured)
            report = self._merger.merge(ticket, chain, cycle, validate=validate and self._validates_when_idle)
        self._merged[chain, cycle] = report
        scalars = {"superposition__accepted": float(report["accepted"])}
        if "density" in report:
            name = self._merger.metric.name
            found = report[f"validation_{name}"], report["validation_loss"]
            scalars[f"superposition__candidate_{name}"], scalars["superposition__candidate_loss"] = found
            if report["accepted"]:
                self._current_scores = found
            if self._current_scores is not None:
                scalars[f"superposition__{name}"], scalars["superposition__loss"] = self._current_scores
            for key in ("density", "density_before_pruning", "overlap"):
                scalars[f"superposition__{key}"] = report[key]
        self._scalars.write(len(self._merged), **scalars)
        metric = self._merger.metric
        kept = {
            key: report[key]
            for key in ("validation_loss", "density", "density_before_pruning", "overlap")
            if key in report
        }
        score = report.get(f"validation_{metric.name}")
        merged = TicketMerged(
            chain, cycle, report["accepted"], score, **kept, began=began, ended=time.time(), metric=metric
        )
        self._worker.send(merged)
        return report

    def initial_merge(self) -> tuple[Accumulator | None, Rule, dict[str, int]]:
        """Returns the merge before the first ticket, its rule, and the number of entries of each tensor."""
        parts = self._merger.superposed.parts
        sizes = {name: math.prod(part.shape) for name, part in parts.items()}
        return self._merger.initial_accumulator, self._merger.rule, sizes

    def record_ticket(self, table: pa.Table, measured: MeasuredSplits | None, chain: int, cycle: int) -> None:
        """Records a ticket that merge shards merge. A diverged ticket is recorded as rejected."""
        accepted = not Ticket.provenance_of(table).get("diverged")
        report = {"chain": chain, "cycle": cycle, "accepted": accepted}
        if self._merged.setdefault((chain, cycle), report) is report:
            self._merger.score_ticket(Ticket.from_arrow(table), chain, cycle, measured)
            self._scalars.write(len(self._merged), superposition__accepted=float(accepted))
            self._worker.send(TicketMerged(chain, cycle, accepted))

    def set_merged(self, *merges: Accumulator) -> None:
        """Replaces the merge by those of the merge shards. They must have merged every recorded ticket."""
        names = self._merger.superposed.parts
        accepted = [key for key, report in self._merged.items() if report["accepted"]]
        if accepted:
            self._merger.set_merged(join_shards(merges, names), accepted)

    def validate(self, table: pa.Table, measured: MeasuredSplits | None, chain: int, cycle: int) -> float:
        """Returns the validation score of a single ticket."""
        return self._merger.score_ticket(Ticket.from_arrow(table), chain, cycle, measured)

    def evaluate(self) -> tuple[pa.Table, dict[str, Any]]:
        """Returns the sup-ticket's Arrow table, and the final report."""
        store = TicketStore(self._worker.store)
        superposed = self._merger.superposed

        def tickets() -> Iterator[tuple[dict[str, Any], Ticket]]:
            for (chain, cycle), merged in self._merged.items():
                yield merged, store.get(chain, cycle)

        report = self._merger.evaluate(tickets())
        networks = ("pretrained", "superposed", "unpruned_mean", "ensemble")
        name = self._merger.metric.name
        self._scalars.write(len(self._merged), **{f"test__{key}": report[key][name] for key in networks})
        self._scalars.close()
        return superposed.to_arrow(), report

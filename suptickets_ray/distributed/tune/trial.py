"""One trial of a search: trains the missing tickets, merges them, and reports scores after every cycle."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune

from suptickets_ray.config import Config
from suptickets_ray.distributed.pipeline.context import WorkerContext, start_worker, use_driver_paths
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.distributed.pipeline.result import versions, without_nan
from suptickets_ray.distributed.tune.leases import leased
from suptickets_ray.progress.events import TrialFinished
from suptickets_ray.recipes.recorded_run import pretrained_ticket
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.search.points import config_of, normalize_point, point_key
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.run_folder import TENSORBOARD_FOLDER
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.tickets.ticket_store import Origin, TicketStore
from suptickets_ray.training.checkpoint import state_digest
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.task import validation_metrics
from suptickets_ray.training.tasks import make_task
from suptickets_ray.training.tensorboard import Scalars

Scores = dict[str, float]


@dataclass(frozen=True)
class TrialContext:
    """What the driver sends to every trial of a search."""

    worker: WorkerContext
    """The search's recipe, its folder, and the data."""
    lease_server: Any
    """Handle of the `LeaseServer`."""
    num_explorers: int
    """Number of explorers of each trial."""


def run_trial(values: dict[str, Any], context: TrialContext) -> None:
    """Runs one point with all its seeds, and reports to Ray Tune after every cycle and at the end.

    Seeds that an earlier start of the search has finished are not run again.

    Args:
        values: The point from Tune: under the key "point", or key by key.
        context: What the driver has sent.
    """
    # Tune waits this long for a stopped trial to end before the next trial reuses its process. Meanwhile explorers are
    # ended, and curves are written to a storage that may be unreachable. After the default of 2 s the next trial fails.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "120"
    use_driver_paths(context.worker)
    suggested = values.get("point", values)
    base = context.worker.config
    point = normalize_point(suggested, base.superposition.method)
    files = SearchFiles(context.worker.run_path, base)
    cyclic_epochs = budget_of(config_of(base, point)).cyclic_epochs
    task = make_task(base)
    metrics = validation_metrics(task)
    metric = base.search.metric or next(iter(metrics))
    stored = [files.row(point, number) for number in range(base.search.num_seeds)]
    rows: list[Scores] = []
    began = time.monotonic()
    name = f"trial-{point_key(point)}"
    first = first_epoch(stored, cyclic_epochs) if files.store.list(f"{TENSORBOARD_FOLDER}/{name}") else None
    with Scalars(files.tensorboard, name, first) as scalars:

        def on_cycle(epochs: int, scores: Scores) -> None:
            """Reports the mean over the finished seeds and the current one."""
            means = mean_scores([*rows, scores])
            epochs += len(rows) * cyclic_epochs
            scalars.write(epochs, **{f"search__{key}": value for key, value in means.items()})
            files.write_running(point, without_nan({**means, "seconds": time.monotonic() - began}))
            # A seed's end is reported after its row is stored, because Tune may stop the trial at the report.
            if epochs % cyclic_epochs:
                report(means, epochs)

        def report(means: Scores, epochs: int) -> None:
            try:
                tune.report(comparable(means, metric, metrics[metric]) | {"cyclic_epochs": epochs})
            except SystemExit:  # Tune raises it in the function of a stopped trial
                files.mark_stopped(point)
                raise

        for number, row in enumerate(stored):
            if row is None:
                seed = _Seed(config_of(base, point, number), context, files)
                row = seed.run(on_cycle)  # noqa: PLW2901 - replaces the missing row
                row |= {"point": point, "suggested": suggested, "finished": time.time()}
                files.write_row(point, number, without_nan(row), seed.superposed)
            rows.append(row)
            means = mean_scores(rows)
            if len(rows) == len(stored):
                score = means[f"validation_{task.metric.name}"]
                event = TrialFinished(point, score, means["validation_loss"], task.metric)
                context.worker.monitor.report.remote(event)
            report(means, len(rows) * cyclic_epochs)


def mean_scores(rows: Sequence[Mapping[str, float]]) -> Scores:
    """Returns the means of the validation scores over seeds; NaN if a seed has diverged."""
    keys = [key for key in rows[0] if key.startswith("validation_")]
    return {key: sum(row[key] for row in rows) / len(rows) for key in keys}


def comparable(means: Scores, metric: str, mode: str) -> Scores:
    """Returns the scores with a NaN `metric` replaced by the worst value, because a scheduler cannot compare NaN."""
    worst = -math.inf if mode == "max" else math.inf
    return {**means, metric: worst if math.isnan(means[metric]) else means[metric]}


def first_epoch(stored: Sequence[Mapping[str, Any] | None], cyclic_epochs: int) -> int | None:
    """Returns the first epoch whose TensorBoard points are written again, or None if there is none.

    TensorBoard then hides the points of an interrupted attempt from this epoch on. Points of finished seeds, which are
    not run again, remain.

    Args:
        stored: The row that an earlier start stored for each seed, or None.
        cyclic_epochs: Epochs of all cycles of one seed.
    """
    return next((number * cyclic_epochs + 1 for number, row in enumerate(stored) if row is None), None)


def trial_device(config: Config) -> torch.device:
    """Returns the device on which a trial merges and validates: the same as a run's superposer uses."""
    return torch.device("cuda" if config.cluster.superposer_gpus else "cpu")


@dataclass
class _Seed:
    """One point with one seed."""

    config: Config
    context: TrialContext
    files: SearchFiles

    def __post_init__(self) -> None:
        config, files = self.config, self.files
        self._began = time.monotonic()
        tensorboard = child(files.tensorboard, f"exploration-{exploration_key(config)}")
        sized = replace(config, cluster=replace(config.cluster, num_explorers=self.context.num_explorers))
        self._own_context = replace(
            self.context.worker, config=sized, run_path=files.exploration_path(config), tensorboard=tensorboard
        )
        device = trial_device(config)
        self._worker = start_worker(self._own_context, device)
        self._state = files.pretrained_state(config)
        net = pretrained_ticket(config, self._state, versions=versions())
        self._merger = Merger(config, self._worker.splits, net, device)

    @property
    def superposed(self) -> Ticket:
        """The merged network so far."""
        return self._merger.superposed

    def run(self, on_cycle: Callable[[int, Scores], None]) -> dict[str, Any]:
        """Explores and merges. Returns the validation scores and their cost.

        Args:
            on_cycle: Called after every cycle with the number of cyclic epochs so far, and the validation scores.
        """
        config = self.config
        order = list(canonical_order(config.tickets.num_chains, budget_of(config).cycles))
        accepted, epochs = 0, 0
        with self._tickets() as (ticket, num_trained):
            if self._merger.merges_best_first:
                name = self._merger.metric.name
                order = self._merger.best_first(order, lambda key: self._merger.score(ticket(*key), "validation")[name])
            for position, (chain, cycle) in enumerate(order):
                merged = self._merger.merge(ticket(chain, cycle), chain, cycle)
                accepted += merged["accepted"]
                if (position + 1) % config.tickets.num_chains == 0:
                    epochs += config.tickets.cycle_epochs
                    on_cycle(epochs, self._scores())
            trained = num_trained()
        return {
            **self._scores(),
            "digest": self.superposed.digest,
            "density": self.superposed.density,
            "accepted": accepted,
            "tickets": len(order),
            "cycles_trained": trained,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def _scores(self) -> Scores:
        scores = self._merger.validation_scores()
        return {f"validation_{key}": value for key, value in scores.items()}

    @contextmanager
    def _tickets(self) -> Iterator[tuple[Callable[[int, int], Ticket], Callable[[], int]]]:
        """Yields a function that returns a ticket, and one that returns the number of cycles trained for them.

        Tickets that are stored already are only read.
        """
        config, cycles = self.config, budget_of(self.config).cycles
        store = TicketStore(self._worker.store)
        digest = state_digest(self._state)
        origin = Origin(exploration_key(config), digest)
        if set(store.own(origin)) >= set(canonical_order(config.tickets.num_chains, cycles)):
            yield store.get, lambda: 0
            return
        key = exploration_key(config)
        with leased(self.context.lease_server, key, str(tune.get_context().get_trial_id())) as lease:
            state = ray.put(self._state)
            with Exploration(self._own_context, state, cycles, lease.check, pretrained_digest=digest) as exploration:

                def ticket(chain: int, cycle: int) -> Ticket:
                    exploration.advance()
                    return Ticket.from_arrow(ray.get(exploration.ticket(chain, cycle).table))

                yield ticket, lambda: exploration.num_trained

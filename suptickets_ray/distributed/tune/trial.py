"""One trial of a search: explore what nobody has explored yet, merge, and say after every cycle how good it is."""

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
from suptickets_ray.distributed.pipeline.context import follow, start_worker
from suptickets_ray.distributed.pipeline.exploration import Exploration
from suptickets_ray.distributed.pipeline.result import versions, without_nan
from suptickets_ray.distributed.tune.leases import leased
from suptickets_ray.recipes.load import config_digest, from_dict, to_dict
from suptickets_ray.search.files import SearchFiles
from suptickets_ray.search.keys import exploration_key
from suptickets_ray.search.space import METRICS, config_of, point_key, settle
from suptickets_ray.superposition.merger import Merger
from suptickets_ray.tickets.schedule import canonical_order
from suptickets_ray.tickets.store import Origin, TicketStore, child
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import read_ticket, state_digest
from suptickets_ray.training.loop import budget_of
from suptickets_ray.training.tensorboard import Scalars

SCORES = ("validation_accuracy", "validation_loss")
Scores = dict[str, float]


def run_trial(values: dict[str, Any], search: dict[str, Any]) -> None:
    """Runs one point with all its seeds; Ray Tune is told after every cycle, and at the end.

    Seeds that an earlier start of the search has done are not run again.

    Args:
        values: The point, as Tune gives it: under "point", or key by key.
        search: The recipe, where the search's files lie, and what `worker_settings` gave.
    """
    # How long Tune waits for a stopped trial to end before the next one may have its process: explorers are ended, and
    # curves written to a storage that may be out of reach. By default 2 s, and then the next one fails.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "120"
    follow(search["worker"])
    suggested = values.get("point", values)
    base = from_dict(search["recipe"])
    point = settle(suggested, base.superposition.method)
    files = SearchFiles(search["path"], base)
    monitor = search["worker"]["monitor"]
    cyclic_epochs = budget_of(config_of(base, point)).cyclic_epochs
    kept = [files.row(point, number) for number in range(base.search.num_seeds)]
    rows: list[Scores] = []
    began = time.monotonic()
    name = f"trial-{point_key(point)}"
    first = first_epoch(kept, cyclic_epochs) if files.store.list(f"tensorboard/{name}") else None
    with Scalars(files.tensorboard, name, first) as scalars:

        def running(epochs: int, scores: Scores) -> None:
            """The mean over the seeds that are done and the one that is under way."""
            means = mean_scores([*rows, scores])
            epochs += len(rows) * cyclic_epochs
            scalars.write(epochs, **{f"search__{key}": value for key, value in means.items()})
            files.keep_running(point, without_nan({**means, "seconds": time.monotonic() - began}))
            if epochs % cyclic_epochs:  # at a seed's end Tune is told once it is kept: it may stop the trial there
                told(means, epochs)

        def told(means: Scores, epochs: int) -> None:
            try:
                tune.report(comparable(means, base.search.metric) | {"cyclic_epochs": epochs})
            except SystemExit:  # so Tune ends the function of a trial that it has stopped
                files.mark_stopped(point)
                raise

        for number, row in enumerate(kept):
            if row is None:
                seed = _Seed(config_of(base, point, number), search, files)
                row = seed.run(running)  # noqa: PLW2901 - what is kept from here on
                row |= {"point": point, "suggested": suggested, "finished": time.time()}
                files.keep(point, number, without_nan(row), seed.superposed)
            rows.append(row)
            means = mean_scores(rows)
            if len(rows) == len(kept):
                monitor.report.remote({"kind": "trial", "values": point, **means})
            told(means, len(rows) * cyclic_epochs)


def mean_scores(rows: Sequence[Mapping[str, float]]) -> Scores:
    """Returns the means of the scores over seeds; NaN where one has diverged."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in SCORES}


def comparable(means: Scores, metric: str) -> Scores:
    """Returns scores in which one that has diverged is the worst there is; to a scheduler NaN is worse than nothing."""
    worst = -math.inf if METRICS[metric] == "max" else math.inf
    return {**means, metric: worst if math.isnan(means[metric]) else means[metric]}


def first_epoch(kept: Sequence[Mapping[str, Any] | None], cyclic_epochs: int) -> int | None:
    """Returns the first epoch whose points for TensorBoard are written anew, None if there is none.

    Those of an interrupted try are then hidden, while those of the seeds before it, which are not run again, stay.

    Args:
        kept: What an earlier start has kept of each seed, None for nothing.
        cyclic_epochs: Epochs of one seed's cycles.
    """
    return next((number * cyclic_epochs + 1 for number, row in enumerate(kept) if row is None), None)


def trial_device(config: Config) -> torch.device:
    """Returns where a trial merges and judges: as the superposer of a run, which its bundle makes room for."""
    return torch.device("cuda" if config.cluster.superposer_gpus else "cpu")


@dataclass
class _Seed:
    """A point under one seed."""

    config: Config
    search: dict[str, Any]
    files: SearchFiles

    def __post_init__(self) -> None:
        config, files = self.config, self.files
        self._began = time.monotonic()
        self._settings = {
            **self.search["worker"],
            "config": to_dict(config),
            "run_path": files.exploration_path(config),
            "tensorboard": child(files.tensorboard, f"exploration-{exploration_key(config)}"),
        }
        device = trial_device(config)
        self._worker = start_worker(self._settings, device)
        self._state = files.pretrained_state(config)
        provenance = {"run": config.name, "config_digest": config_digest(config), "versions": versions()}
        net = read_ticket(self._state, provenance, device)
        self._merger = Merger(config, self._worker.splits, net, device)

    @property
    def superposed(self) -> Ticket:
        """The network as it stands."""
        return self._merger.superposed

    def run(self, running: Callable[[int, Scores], None]) -> dict[str, Any]:
        """Explores and merges; returns the scores on validation, and what they cost."""
        config = self.config
        order = list(canonical_order(config.tickets.num_chains, budget_of(config).cycles))
        accepted, epochs = 0, 0
        with self._tickets() as (ticket, num_trained):
            if self._merger.takes_best_first:
                accuracies = {key: self._merger.score(ticket(*key), "validation")["accuracy"] for key in order}
                order.sort(key=lambda key: -accuracies[key])
            for position, (chain, cycle) in enumerate(order):
                merged = self._merger.merge(ticket(chain, cycle), chain, cycle)
                accepted += merged["accepted"]
                if (position + 1) % config.tickets.num_chains == 0:
                    epochs += config.tickets.cycle_epochs
                    running(epochs, self._scores())
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
        scores = self._merger.score(self.superposed, "validation")
        return {f"validation_{key}": value for key, value in scores.items()}

    @contextmanager
    def _tickets(self) -> Iterator[tuple[Callable[[int, int], Ticket], Callable[[], int]]]:
        """Yields who gives a ticket, and who says how many cycles were run for it. What is stored is only read."""
        config, cycles = self.config, budget_of(self.config).cycles
        store = TicketStore(self._worker.store)
        digest = state_digest(self._state)
        origin = Origin(exploration_key(config), digest)
        if set(store.own(origin)) >= set(canonical_order(config.tickets.num_chains, cycles)):
            yield store.get, lambda: 0
            return
        key = exploration_key(config)
        sized = replace(config, cluster=replace(config.cluster, num_explorers=self.search["explorers_per_trial"]))
        with leased(self.search["lease_server"], key, str(tune.get_context().get_trial_id())) as lease:
            state = ray.put(self._state)
            with Exploration(
                sized, self._settings, state, cycles, lease.check, pretrained_digest=digest
            ) as exploration:

                def ticket(chain: int, cycle: int) -> Ticket:
                    exploration.advance()
                    return Ticket.from_arrow(ray.get(exploration.ticket(chain, cycle)))

                yield ticket, lambda: exploration.num_trained

"""The state of a running job, read from its folder, for a view in another terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.offline.run_folders import RunFolder, at
from suptickets_ray.progress.events import (
    EpochEnded,
    Event,
    JobPlanned,
    PhaseStarted,
    Resumed,
    TicketFinished,
    TicketMerged,
)
from suptickets_ray.progress.job_state import PHASES, JobState
from suptickets_ray.tickets.schedule import plan_budget


def stored_state(folder: RunFolder) -> JobState:
    """Returns the state of a job as its folder tells it, with times in seconds since 1970. It may be seconds old.

    Args:
        folder: The run or search.
    """
    state = JobState()
    for seconds, event in _events(folder):
        state.update(event, seconds)
    return state


def _events(folder: RunFolder) -> Iterator[tuple[float, Event]]:
    """Yields what the last start of the job told its listeners, as far as it is stored, with the times."""
    starts = folder.timeline.get("starts") or [{"began": 0.0}]
    began, last = float(starts[-1]["began"]), len(starts) - 1
    plan = _plan(folder)
    yield began, plan
    if folder.is_search:
        yield began, PhaseStarted("search")
        return
    if folder.is_pretrained:
        yield began, PhaseStarted("pretrain", epochs=plan.epochs)
        yield began, Resumed("the finished pretraining")
    spans = [span for span in folder.timeline.get("spans") or [] if isinstance(span, dict)]
    for span in sorted(spans, key=lambda span: (span.get("start") == last, float(span.get("began") or 0.0))):
        with suppress(KeyError, TypeError):
            yield from _span_events(span, plan, is_last=span["start"] == last)
    if (epoch := folder.timeline.get("epoch")) and not folder.is_pretrained:
        yield began, PhaseStarted("pretrain", epochs=plan.epochs)
        with suppress(KeyError, TypeError):
            score, metric = _validation_score(epoch)
            counts = (epoch["epoch"], epoch["epochs"], epoch["loss"])
            speed = epoch.get("examples_per_second")
            yield float(epoch["ended"]), EpochEnded(*counts, score, metric, speed)


def _span_events(span: Mapping[str, Any], plan: JobPlanned, *, is_last: bool) -> Iterator[tuple[float, Event]]:
    kind, began, ended = span["kind"], float(span["began"]), float(span["ended"])
    if kind in PHASES and is_last and kind != "pretrain":
        yield began, PhaseStarted(kind, chains=plan.chains, cycles=plan.cycles)
    elif kind == "cycle":
        score, metric = _validation_score(span)
        place = (span["node"], span["process"], began, ended)
        yield ended, TicketFinished(span["chain"], span["cycle"], score, *place, metric=metric)
    elif kind == "merge" and is_last:
        yield ended, TicketMerged(span["chain"], span["cycle"], span.get("accepted", True))


def _validation_score(record: Mapping[str, Any]) -> tuple[float, Metric]:
    """Returns the score that a record names validation_<metric>, and its metric; 0 without one."""
    prefix = "validation_"
    name = next((key.removeprefix(prefix) for key in record if key.startswith(prefix)), ACCURACY.name)
    return float(record.get(prefix + name, 0.0)), ACCURACY if name == ACCURACY.name else Metric(name)


def _plan(folder: RunFolder) -> JobPlanned:
    recipe = folder.recipe
    if folder.is_search:
        return JobPlanned(trials=0)
    with suppress(KeyError, TypeError, ValueError):  # a damaged recipe, or one of another version
        tickets = recipe["tickets"]
        budget = plan_budget(recipe["train"]["epochs"], tickets["cycle_epochs"], tickets["cycle_rate"])
        chains = int(tickets["num_chains"])
        explorers = min(at(recipe, "cluster", "num_explorers") or chains, chains)
        return JobPlanned(budget.pretrain_epochs, chains, budget.cycles, budget.cycle_epochs, explorers)
    return JobPlanned()

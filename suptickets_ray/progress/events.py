"""Progress events of a run or search: one class for each thing that happens.

`train` and `tune` call their `on_event` with these objects, in the driver's process. Epochs count from 1, chains and
cycles from 0. A score is the value of the event's `metric`, e.g. an accuracy as a fraction; times are in seconds since
1970.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from suptickets_ray.metric import ACCURACY, Metric

Phase: TypeAlias = Literal["pretrain", "explore", "superpose", "search"]


@dataclass(frozen=True)
class JobPlanned:
    """A run or search begins. The first event, unless it is already complete."""

    epochs: int | None = None
    """Epochs of pretraining; None in a search, whose pretrainings may differ."""
    chains: int | None = None
    """Chains to explore; None in a search."""
    cycles: int | None = None
    """Cycles of each chain; None in a search."""
    cycle_epochs: int | None = None
    """Epochs of each cycle; None in a search."""
    explorers: int | None = None
    """Explorers that may run at once; None in a search."""
    trials: int | None = None
    """Trials of the search; None in a run."""


@dataclass(frozen=True)
class Starting:
    """Processes start, which takes seconds. It ends with the next event about training or evaluation."""

    what: str
    """What starts, for the user."""


@dataclass(frozen=True)
class PhaseStarted:
    """A phase has started. It lasts until the next phase starts, or until the run or search ends."""

    name: Phase
    """"pretrain", "explore" (cycles run and tickets are merged), "superpose" (the result is evaluated) or "search"."""
    epochs: int | None = None
    """Epochs of pretraining; None in other phases."""
    number: int | None = None
    """Number of this pretraining of a search, from 1; None in a run."""
    of: int | None = None
    """Number of pretrainings of the search; None in a run."""
    chains: int | None = None
    """Chains to explore; None in other phases."""
    cycles: int | None = None
    """Cycles of each chain; None in other phases."""
    trials: int | None = None
    """Trials of the search; None in other phases."""


@dataclass(frozen=True)
class Resumed:
    """Work of an earlier start of the run was found and is used."""

    what: str
    """The work, as text for the user."""
    tickets: int | None = None
    """Number of finished tickets; None if the work is the pretraining."""
    cycles: tuple[int, ...] | None = None
    """Number of finished cycles by chain; None if the work is the pretraining."""
    epoch: int | None = None
    """Epochs of an unfinished pretraining, which continues; None for other work."""


@dataclass(frozen=True)
class EpochEnded:
    """An epoch of pretraining has ended."""

    epoch: int
    """Epochs so far."""
    epochs: int
    """Epochs of pretraining."""
    loss: float
    """Mean training loss of the epoch."""
    validation_score: float
    """Score on validation."""
    metric: Metric = ACCURACY
    """The task's metric."""
    examples_per_second: float | None = None
    """Training examples per second, of all ranks together."""


@dataclass(frozen=True)
class CycleStarted:
    """An explorer has started a cycle, possibly again after a loss."""

    chain: int
    """The chain."""
    cycle: int
    """The cycle within the chain."""


@dataclass(frozen=True)
class CycleEpochEnded:
    """An epoch of a cycle has ended."""

    chain: int
    """The chain."""
    cycle: int
    """The cycle within the chain."""
    epoch: int
    """Epochs of the cycle so far."""
    loss: float
    """Mean training loss of the epoch."""
    examples_per_second: float | None = None
    """Training examples per second of this explorer."""


@dataclass(frozen=True)
class TicketFinished:
    """A cycle has ended and its ticket is stored."""

    chain: int
    """The chain."""
    cycle: int
    """The cycle within the chain."""
    validation_score: float
    """The ticket's score on validation."""
    node: str
    """Ray's id of the machine that ran the cycle."""
    process: int
    """Process id of the explorer on that machine."""
    began: float
    """When the cycle began."""
    ended: float
    """When the cycle ended."""
    metric: Metric = ACCURACY
    """The task's metric."""


@dataclass(frozen=True)
class TicketMerged:
    """A ticket was merged, or rejected. Scores are None unless the merged network was validated."""

    chain: int
    """The ticket's chain."""
    cycle: int
    """The ticket's cycle within the chain."""
    accepted: bool
    """Whether the ticket is part of the sup-ticket."""
    validation_score: float | None = None
    """Score on validation of the network with this ticket merged, also if the ticket is rejected."""
    validation_loss: float | None = None
    """Loss on validation of that network."""
    density: float | None = None
    """Density of that network, in (0, 1]."""
    density_before_pruning: float | None = None
    """Density of the average before it is pruned, in (0, 1]."""
    overlap: float | None = None
    """Overlap of that network's mask with the mask before this ticket, in [0, 1]."""
    began: float | None = None
    """When the merge began; None if merge shards do it."""
    ended: float | None = None
    """When the merge ended; None if merge shards do it."""
    metric: Metric = ACCURACY
    """The task's metric."""


@dataclass(frozen=True)
class TrialFinished:
    """A trial of a search has ended. A diverged trial has NaN scores."""

    values: Mapping[str, Any]
    """The trial's point: values by dotted key."""
    validation_score: float
    """Mean score on validation over the trial's seeds."""
    validation_loss: float
    """Mean loss on validation over the trial's seeds."""
    metric: Metric = ACCURACY
    """The task's metric."""


@dataclass(frozen=True)
class Waiting:
    """The run waits for something outside it, such as machines."""

    text: str
    """The reason, for the user."""


@dataclass(frozen=True)
class Warned:
    """Something may be wrong with the recipe or the cluster; the run continues."""

    text: str
    """The warning, for the user."""


@dataclass(frozen=True)
class ResultWritten:
    """The numbers of a run or search are final, and its `result.json` is written. Only a run's report follows."""

    path: str
    """Absolute path or URI of the folder."""
    score: float
    """Score on the test set of the sup-ticket, or of a search's best trial."""
    digest: str
    """Digest of that network."""
    metric: Metric = ACCURACY
    """The task's metric."""


@dataclass(frozen=True)
class RunFinished:
    """The run or search is done; the last event of callbacks, and the last line of a JSON log."""

    path: str
    """Absolute path or URI of the folder."""
    score: float
    """Score on the test set of the sup-ticket, or of a search's best trial."""
    loss: float | None
    """Loss of that network on the test set; None if it is not finite."""
    digest: str
    """Digest of that network."""
    warnings: list[str]
    """Warnings of the result."""
    metric: Metric = ACCURACY
    """The task's metric."""


Event: TypeAlias = (
    JobPlanned
    | Starting
    | PhaseStarted
    | Resumed
    | EpochEnded
    | CycleStarted
    | CycleEpochEnded
    | TicketFinished
    | TicketMerged
    | TrialFinished
    | Waiting
    | Warned
    | ResultWritten
    | RunFinished
)
OnEvent: TypeAlias = Callable[[Event], None]

KINDS: dict[type[Event], str] = {
    JobPlanned: "plan",
    Starting: "starting",
    PhaseStarted: "phase",
    Resumed: "resumed",
    EpochEnded: "epoch",
    CycleStarted: "cycle",
    CycleEpochEnded: "cycle_epoch",
    TicketFinished: "ticket",
    TicketMerged: "merge",
    TrialFinished: "trial",
    Waiting: "waiting",
    Warned: "warning",
    ResultWritten: "result",
    RunFinished: "done",
}
"""Names of the classes in logs."""
_SCORE_NAMES = {"validation_score": "validation_{}", "score": "{}"}


def to_record(event: Event) -> dict[str, Any]:
    """Returns an event as plain values, as in a JSON log: its name under `event`, then the fields that apply to it.

    Scores have the metric's name, e.g. validation_accuracy.
    """
    values = {field: getattr(event, field.name) for field in fields(event) if field.name != "metric"}
    kept = {field.name: value for field, value in values.items() if not (value is None and field.default is None)}
    metric = getattr(event, "metric", ACCURACY).name
    return {
        "event": KINDS[type(event)],
        **{_SCORE_NAMES.get(name, name).format(metric): value for name, value in kept.items()},
    }

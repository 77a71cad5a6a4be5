"""What a view of a running job shows: its state after all events so far, and an estimate of the remaining time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.progress.events import (
    CycleEpochEnded,
    CycleStarted,
    EpochEnded,
    Event,
    JobPlanned,
    Phase,
    PhaseStarted,
    ResultWritten,
    Resumed,
    Starting,
    TicketFinished,
    TicketMerged,
    TrialFinished,
)

PHASES: dict[Phase, str] = {
    "pretrain": "pretraining",
    "explore": "exploring",
    "superpose": "evaluating",
    "search": "searching",
}
"""Phases in the user's words."""


class TicketState(Enum):
    """How far a ticket is."""

    WAITING = "waiting"
    RUNNING = "running"
    TRAINED = "trained"
    MERGED = "merged"
    LEFT_OUT = "left out"


@dataclass
class JobState:
    """The state after all events so far. It reads no clock; times are arguments, in seconds."""

    began: float = 0.0
    """When the job began."""
    phase: Phase | None = None
    phase_began: float = 0.0
    starting: str = ""
    """What starts now; empty while the job trains or evaluates."""
    starting_began: float = 0.0
    is_done: bool = False

    epoch: int = 0
    epochs: int = 0
    """Epochs of the present pretraining, and of it altogether."""
    pretraining: tuple[int, int] = (1, 1)
    """Number of the present pretraining from 1, and of all; more than one only in a search."""
    chains: int = 0
    cycles: int = 0
    cycle_epochs: int = 0
    explorers: int = 1
    tickets: dict[tuple[int, int], TicketState] = field(default_factory=dict)
    """Tickets that are not waiting, by (chain, cycle)."""
    cycle_epoch: dict[int, int] = field(default_factory=dict)
    """Epochs of the running cycle, by chain."""
    is_search: bool = False
    trials: int = 0
    num_trials: int = 0
    num_trained: int = 0
    """Cycles that this start has finished."""

    loss: float | None = None
    metric: Metric = ACCURACY
    """The task's metric."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Its values on validation for the latest networks, by name."""
    speeds: dict[int, float] = field(default_factory=dict)
    """Examples per second by explorer's chain; of pretraining under -1."""

    _first_epoch: int | None = None
    _first_epoch_time: float = 0.0
    _epoch_seconds: float | None = None
    """Seconds of an epoch of pretraining by this start; None without two epochs."""

    @property
    def num_tickets(self) -> int:
        """Tickets of the finished run; 0 if unknown."""
        return self.chains * self.cycles

    @property
    def examples_per_second(self) -> float:
        """Training examples per second of all processes together; 0 if unknown."""
        return sum(self.speeds.values())

    @property
    def has_pretrained(self) -> bool:
        """Whether this start has run an epoch of the present pretraining."""
        return self._first_epoch is not None

    def count(self, *states: TicketState) -> int:
        """Returns the number of tickets in these states."""
        return sum(state in states for state in self.tickets.values())

    def update(self, event: Event, now: float) -> None:
        """Updates the state with one event.

        Args:
            event: An event of the run or search.
            now: The present time in seconds.
        """
        if isinstance(event, PhaseStarted | EpochEnded | CycleStarted | CycleEpochEnded | TrialFinished):
            self.starting = ""
        self.metric = getattr(event, "metric", self.metric)
        match event:
            case JobPlanned():
                self.began = now
                self.is_search = event.trials is not None
                self.epochs, self.num_trials = event.epochs or 0, event.trials or 0
                self.chains, self.cycles = event.chains or 0, event.cycles or 0
                self.cycle_epochs, self.explorers = event.cycle_epochs or 0, event.explorers or 1
            case Starting(what):
                self.starting, self.starting_began = what, now
            case PhaseStarted():
                self._start_phase(event, now)
            case Resumed(epoch=int(epoch)):
                self.epoch = epoch
            case Resumed(cycles=tuple(cycles)):
                for chain, done in enumerate(cycles):
                    self.tickets |= {(chain, cycle): TicketState.TRAINED for cycle in range(done)}
            case Resumed():
                self.epoch = self.epochs
            case EpochEnded():
                if self._first_epoch is None:
                    self._first_epoch, self._first_epoch_time = event.epoch, now
                elif event.epoch > self._first_epoch:
                    self._epoch_seconds = (now - self._first_epoch_time) / (event.epoch - self._first_epoch)
                self.epoch, self.epochs, self.loss = event.epoch, event.epochs, event.loss
                self.metrics["pretraining"] = event.validation_score
                if event.examples_per_second is not None:
                    self.speeds[-1] = event.examples_per_second
            case TrialFinished():
                self.trials += 1
                self.metrics["last trial"] = event.validation_score
                best = self.metrics.get("best trial", self.metric.worst)
                if "best trial" not in self.metrics or self.metric.is_better(event.validation_score, best):
                    self.metrics["best trial"] = event.validation_score
            case ResultWritten():
                self.is_done = True
            case CycleStarted() | CycleEpochEnded() | TicketFinished() | TicketMerged():
                self._update_ticket(event)

    def _start_phase(self, event: PhaseStarted, now: float) -> None:
        self.phase, self.phase_began = event.name, now
        self.speeds.clear()
        self.loss = None
        self.num_trials = event.trials or self.num_trials
        self.chains, self.cycles = event.chains or self.chains, event.cycles or self.cycles
        if event.name == "pretrain":
            self.epoch, self.epochs = 0, event.epochs or self.epochs
            self.pretraining = (event.number or 1, event.of or 1)
            self._first_epoch = None

    def _update_ticket(self, event: CycleStarted | CycleEpochEnded | TicketFinished | TicketMerged) -> None:
        key, state = (event.chain, event.cycle), TicketState.RUNNING
        match event:
            case CycleEpochEnded():
                self.loss, self.cycle_epoch[event.chain] = event.loss, event.epoch
                if event.examples_per_second is not None:
                    self.speeds[event.chain] = event.examples_per_second
            case TicketFinished():
                state = TicketState.TRAINED
                self.num_trained += 1
                self.metrics["last ticket"] = event.validation_score
                self._end_cycle(event.chain)
            case TicketMerged():
                state = TicketState.MERGED if event.accepted else TicketState.LEFT_OUT
                # A rejected merge does not change the sup-ticket.
                if event.validation_score is not None and event.accepted:
                    self.metrics["sup-ticket"] = event.validation_score
        is_final = self.tickets.get(key) in (TicketState.MERGED, TicketState.LEFT_OUT)
        if not (is_final and state in (TicketState.RUNNING, TicketState.TRAINED)):
            self.tickets[key] = state

    def _end_cycle(self, chain: int) -> None:
        self.cycle_epoch.pop(chain, None)
        self.speeds.pop(chain, None)

    def seconds_left(self, now: float) -> float | None:
        """Returns the estimated remaining seconds of the whole job, or None without an estimate.

        Before the first ticket, a cycle's epoch is taken to last as long as one of pretraining, and explorers to run in
        parallel.
        """
        if self.is_search:
            elapsed = now - self.phase_began
            is_known = self.phase == "search" and self.trials
            return elapsed / self.trials * (self.num_trials - self.trials) if is_known else None
        if self.phase == "explore" and self.num_trained:
            return (now - self.phase_began) / self.num_trained * self._tickets_left()
        if self._epoch_seconds is None or self.phase == "superpose":
            return None
        cycles = self._tickets_left() / self.explorers
        return self._epoch_seconds * (self.epochs - self.epoch + self.cycle_epochs * cycles)

    def _tickets_left(self) -> int:
        done = self.count(TicketState.TRAINED, TicketState.MERGED, TicketState.LEFT_OUT)
        return max(self.num_tickets - done, 0)

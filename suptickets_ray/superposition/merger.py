"""Merges tickets into one network behind the gate, and evaluates the result. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor

from suptickets_ray.config import Config
from suptickets_ray.metric import Metric
from suptickets_ray.superposition.gate import Gate
from suptickets_ray.superposition.network_meter import NetworkMeter
from suptickets_ray.superposition.ticket_scores import MeasuredSplits, TicketScores, compared, prefixed, scores_of
from suptickets_ray.tickets.accumulator import Accumulator, start
from suptickets_ray.tickets.averaging import finish, finish_unpruned, merge
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.ticket import Ticket, overlap
from suptickets_ray.training.data import Splits
from suptickets_ray.training.evaluation import Measured
from suptickets_ray.training.tasks import make_task

Scores = dict[str, float]
Key = TypeVar("Key")


class Merger:
    """The merge of one run and its evaluation. Every choice is made on validation.

    The test set is read only by `score_ticket`, `score_pretrained` and `evaluate`, once for each network.
    """

    def __init__(self, config: Config, splits: Splits, pretrained: Ticket, device: torch.device) -> None:
        """Starts from the pretrained network.

        Args:
            config: The recipe.
            splits: Its data.
            pretrained: The pretrained network, whose provenance the result inherits.
            device: Device of the evaluation.

        Raises:
            RuntimeError: If the pretrained network holds NaN or infinity.
        """
        if not pretrained.is_finite:
            raise RuntimeError("Cannot superpose: the pretrained network has diverged. Train it with a lower train.lr.")
        self._config, self._pretrained = config, pretrained
        self._meter = NetworkMeter(config, splits, device)
        self._task = make_task(config)
        section = config.superposition
        # The actual count of the pretrained network: structured initial masks are exact in channels, not in weights.
        # Half a weight is added, so that rounding down gives this count for any number of weights.
        density = min((pretrained.num_active + 0.5) / max(pretrained.num_maskable, 1), 1.0)
        self._rule = Rule(section.method, density, section.cima_factor, section.prune_at, section.prune_scope)
        self._accumulator: Accumulator | None = self.initial_accumulator
        self._superposed: Ticket | None = None
        self._pending: dict[str, Any] | None = None
        """Provenance of a merged network that `superposed` has not computed yet."""
        self._accepted: list[list[int]] = []
        self._is_evaluated = False
        self._tickets = TicketScores(splits, self._task)
        # What was measured by split, of the pretrained network and of the merged network that is based on tickets.
        self._of_pretrained: dict[str, Measured] = {}
        self._of_superposed: dict[str, Measured] = {}
        # Greedy without the pretrained network starts from the best ticket, whatever its score.
        starts_empty = section.method == "greedy" and not section.include_pretrained
        floor = self.metric.worst if starts_empty else self.validation_scores()[self.metric.name]
        self._gate = Gate(section.gate_tolerance, floor, self.metric)

    @property
    def metric(self) -> Metric:
        """The task's metric, by which networks are compared."""
        return self._task.metric

    @property
    def superposed(self) -> Ticket:
        """The current merged network: the pretrained network until a ticket is admitted."""
        if self._pending is not None and self._accumulator is not None:
            self._superposed = self._meter.recalibrated(finish(self._accumulator, self._rule, self._pending))
            self._of_superposed, self._pending = {}, None
        return self._superposed or self._pretrained

    @property
    def rule(self) -> Rule:
        """How tickets are superposed."""
        return self._rule

    @property
    def initial_accumulator(self) -> Accumulator | None:
        """The merge before any ticket."""
        return start(self._pretrained) if self._config.superposition.include_pretrained else None

    def set_merged(self, accumulator: Accumulator, keys: Iterable[tuple[int, int]]) -> None:
        """Replaces the merge by one computed elsewhere from the tickets `keys` (chain, cycle), in this order.

        Raises:
            RuntimeError: If the gate or the pruning needs every merged network.
        """
        if self.validates_every_merge or self._rule.prune_at == "every_ticket":
            raise RuntimeError(
                "Cannot set the merge: the gate or prune_at='every_ticket' needs every merged network. Merge the "
                "tickets with merge()."
            )
        self._accepted = [list(key) for key in keys]
        self._accumulator, self._pending = accumulator, self._provenance(accumulator.num_tickets, self._accepted)

    @property
    def validates_every_merge(self) -> bool:
        """Whether every merged network is validated, because the gate decides by its score."""
        return not self._gate.admits_all

    @property
    def validation_examples(self) -> int:
        """Number of examples in a forward pass for one validation: the validation set and the recalibration."""
        return self._meter.validation_examples

    def merge(self, ticket: Ticket, chain: int, cycle: int, *, validate: bool = True) -> dict[str, Any]:
        """Merges one ticket, unless it has diverged or the gate rejects the merged network.

        Args:
            ticket: The ticket.
            chain: Its chain.
            cycle: Its cycle.
            validate: Whether the merged network is validated even if no decision depends on it.

        Returns:
            chain, cycle, accepted, and, if validated, metrics and loss of the merged network on validation, its
            density, the density before pruning, and the overlap of its mask with that of the previous network.

        Raises:
            RuntimeError: If `evaluate` was called before.
        """
        if self._is_evaluated:
            raise RuntimeError("Cannot merge after evaluate(). Create a new Merger to merge more tickets.")
        if not ticket.is_finite:  # also without a gate: one NaN would make weights of the average NaN
            return {"chain": chain, "cycle": cycle, "accepted": False}
        accumulator = merge(self._accumulator, ticket, self._rule)
        accepted_with = [*self._accepted, [chain, cycle]]
        provenance = self._provenance(accumulator.num_tickets, accepted_with)
        if not validate and not self.validates_every_merge:
            self._accumulator, self._pending, self._accepted = accumulator, provenance, accepted_with
            return {"chain": chain, "cycle": cycle, "accepted": True}
        before, candidate = self.superposed, self._meter.recalibrated(finish(accumulator, self._rule, provenance))
        measured = self._meter.measure_split(candidate, "validation")
        accepted = self._gate.admit(measured.scores[self.metric.name])
        if accepted:
            self._accumulator, self._superposed, self._pending = accumulator, candidate, None
            self._of_superposed = {"validation": measured}
            self._accepted = accepted_with
        return {
            "chain": chain,
            "cycle": cycle,
            "accepted": accepted,
            **prefixed(measured.scores, "validation"),
            "density": candidate.density,
            "density_before_pruning": accumulator.num_unpruned / max(candidate.num_maskable, 1),
            "overlap": overlap(before, candidate),
        }

    @property
    def merges_best_first(self) -> bool:
        """Whether tickets must be merged in the order of their validation score, best first."""
        return self._config.superposition.method == "greedy"

    def score(self, ticket: Ticket, split: str) -> Scores:
        """Returns metrics and loss of a ticket on "validation" or "test"."""
        return self._meter.measure_split(ticket, split).scores

    def best_first(self, keys: Iterable[Key], score: Callable[[Key], float]) -> list[Key]:
        """Returns the keys, those with the best score first. Equal ones keep their order."""
        sign = -1 if self.metric.mode == "max" else 1
        scored = [(sign * score(key), key) for key in keys]
        return [key for _, key in sorted(scored, key=lambda pair: pair[0])]

    def validation_scores(self) -> Scores:
        """Returns metrics and loss on validation of the current merged network, which is evaluated only once."""
        network = self.superposed
        known = self._known(network)
        if "validation" not in known:
            known["validation"] = self._meter.measure_split(network, "validation")
        return known["validation"].scores

    def score_ticket(self, ticket: Ticket, chain: int, cycle: int, measured: MeasuredSplits | None = None) -> float:
        """Scores a ticket for `evaluate`, unless it is scored already. Reads the test set.

        Args:
            ticket: The ticket.
            chain: Its chain.
            cycle: Its cycle.
            measured: What was measured of it, with predictions. None measures it.

        Returns:
            The ticket's metric on validation.
        """
        key = (chain, cycle)
        if key not in self._tickets:
            self._tickets.add(key, ticket, measured or self._meter.measure(ticket, keep_predictions=True))
        return self._tickets.validation_score(key)

    def score_pretrained(self) -> None:
        """Scores the pretrained network for `evaluate`, so that it is done early. Reads the test set."""
        self._meter.measure(self._pretrained, self._of_pretrained)

    def evaluate(self, tickets: Iterable[tuple[dict[str, Any], Ticket]]) -> dict[str, Any]:
        """Returns the scores of every network on validation and test. Every choice was made before, on validation.

        Args:
            tickets: Pairs of the result of `merge` and the ticket; one pair is held at a time. Diverged tickets are
                counted, and excluded from the unpruned mean and the ensemble.

        Returns:
            `task_metric`, and `superposed`, `pretrained`, `tickets`, `unpruned_mean` and `ensemble`, with the task's
            metrics, e.g. accuracy (a fraction), and loss. Each except the first has a `gain_error`: the standard error,
            over the test examples, of the sup-ticket's score minus its own; `mean_ticket` has that of the tickets'
            mean. If examples are right or wrong, `only_one_right` counts those that only the sup-ticket has right, and
            those that only the other network has; otherwise `num_examples` counts the examples. `num_diverged` counts
            diverged tickets.
        """
        superposed = self.superposed
        measured = self._meter.measure(superposed, self._known(superposed))
        own = measured["test"].values[self.metric.name]
        self._accumulator, self._is_evaluated = None, True  # frees its memory before the next accumulator
        mean = start(self._pretrained) if self._config.superposition.include_pretrained else None
        mean_rule = Rule("cia", 1.0, prune_at="end")
        rows: list[dict[str, Any]] = []
        for merged, ticket in tickets:
            chain, cycle = merged["chain"], merged["cycle"]
            self.score_ticket(ticket, chain, cycle)
            if ticket.is_finite:
                mean = merge(mean, ticket, mean_rule)
            row = {"chain": chain, "cycle": cycle, "accepted": merged["accepted"]}
            row |= self._tickets.row((chain, cycle), own)
            rows.append(row | {"density": ticket.density, "digest": ticket.digest})
        pretrained = self._row(self._pretrained, self._meter.measure(self._pretrained, self._of_pretrained), own)
        unpruned = self._meter.recalibrated(finish_unpruned(mean, {})) if mean is not None else self._pretrained
        described = ("density", "digest")
        return {
            "task_metric": self.metric.to_dict(),
            "superposed": scores_of(measured) | {key: getattr(superposed, key) for key in described},
            "pretrained": pretrained,
            "tickets": rows,
            "unpruned_mean": self._row(unpruned, self._meter.measure(unpruned), own),
            # If every ticket has diverged, only the pretrained network remains.
            "ensemble": self._tickets.ensemble(own)
            or {key: value for key, value in pretrained.items() if key not in described},
            "mean_ticket": self._tickets.mean_ticket(own),
            "num_diverged": self._tickets.num_diverged,
        }

    def _provenance(self, num_tickets: int, accepted: list[list[int]]) -> dict[str, Any]:
        return {
            **self._pretrained.provenance,
            "seed": self._config.seed,
            "parent": self._pretrained.digest,
            "superposition": asdict(self._config.superposition),
            "num_tickets": num_tickets,
            "accepted": accepted,
        }

    def _known(self, network: Ticket) -> dict[str, Measured]:
        """Returns what is measured already of the pretrained or the merged network, by split."""
        return self._of_pretrained if network is self._pretrained else self._of_superposed

    def _row(self, network: Ticket, measured: MeasuredSplits, own: Tensor) -> dict[str, Any]:
        """Returns a network's scores, compared with the sup-ticket."""
        scores = scores_of(measured) | {"density": network.density, "digest": network.digest}
        return scores | compared(own, measured["test"].values[self.metric.name])

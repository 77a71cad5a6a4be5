"""Merges tickets into one network behind the gate, and evaluates the result. No Ray."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.seeding import derive_seed
from suptickets_ray.superposition.gate import Gate
from suptickets_ray.superposition.ticket_scores import (
    EVALUATED_SPLITS,
    Logits,
    TicketScores,
    classified,
    compared,
    prefixed,
    scores_of,
)
from suptickets_ray.tickets.accumulator import Accumulator, start
from suptickets_ray.tickets.averaging import finish, finish_unpruned, merge
from suptickets_ray.tickets.rules import Rule
from suptickets_ray.tickets.ticket import Ticket, overlap
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.evaluation import batch_norms, predict, recalibrate, recalibration_size, score
from suptickets_ray.training.loop import seed_torch
from suptickets_ray.training.models import build_model

Scores = dict[str, float]


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
        self._config, self._splits, self._pretrained = config, splits, pretrained
        self._model = build_model(config.model, splits.sample_shape, splits.num_classes).to(device)
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
        # Greedy without the pretrained network starts from the best ticket, whatever its accuracy.
        starts_empty = section.method == "greedy" and not section.include_pretrained
        self._tickets = TicketScores(splits)
        # Logits by split of the pretrained network, and of the merged network that is based on tickets.
        self._pretrained_logits: dict[str, Tensor] = {}
        self._superposed_logits: dict[str, Tensor] = {}
        floor = -math.inf if starts_empty else self.validation_scores()["accuracy"]
        self._gate = Gate(section.gate_tolerance, floor)

    @property
    def superposed(self) -> Ticket:
        """The current merged network: the pretrained network until a ticket is admitted."""
        if self._pending is not None and self._accumulator is not None:
            self._superposed = self._recalibrated(finish(self._accumulator, self._rule, self._pending))
            self._superposed_logits, self._pending = {}, None
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
        """Whether every merged network is validated, because the gate decides by its accuracy."""
        return not self._gate.admits_all

    @property
    def validation_examples(self) -> int:
        """Number of examples in a forward pass for one validation: the validation set and the recalibration."""
        section, count = self._config.superposition, len(self._splits.validation)
        if section.batchnorm == "recalibrate" and batch_norms(self._model):
            count += recalibration_size(section, len(self._splits.train))
        return count

    def merge(self, ticket: Ticket, chain: int, cycle: int, *, validate: bool = True) -> dict[str, Any]:
        """Merges one ticket, unless it has diverged or the gate rejects the merged network.

        Args:
            ticket: The ticket.
            chain: Its chain.
            cycle: Its cycle.
            validate: Whether the merged network is validated even if no decision depends on it.

        Returns:
            chain, cycle, accepted, and, if validated, accuracy (a fraction) and loss of the merged network on
            validation, its density, the density before pruning, and the overlap of its mask with that of the previous
            network.

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
        before, candidate = self.superposed, self._recalibrated(finish(accumulator, self._rule, provenance))
        logits = self._predict(candidate, "validation")
        validation = score(logits, self._splits.validation.all_labels())
        accepted = self._gate.admit(validation["accuracy"])
        if accepted:
            self._accumulator, self._superposed, self._pending = accumulator, candidate, None
            self._superposed_logits = {"validation": logits}
            self._accepted = accepted_with
        return {
            "chain": chain,
            "cycle": cycle,
            "accepted": accepted,
            **prefixed(validation, "validation"),
            "density": candidate.density,
            "density_before_pruning": accumulator.num_unpruned / max(candidate.num_maskable, 1),
            "overlap": overlap(before, candidate),
        }

    @property
    def merges_best_first(self) -> bool:
        """Whether tickets must be merged in the order of their validation accuracy, best first."""
        return self._config.superposition.method == "greedy"

    def score(self, ticket: Ticket, split: str) -> Scores:
        """Returns accuracy and loss of a ticket on "validation" or "test"."""
        return score(self._predict(ticket, split), getattr(self._splits, split).all_labels())

    def validation_scores(self) -> Scores:
        """Returns accuracy and loss on validation of the current merged network, which is evaluated only once."""
        network = self.superposed
        known = self._known_logits(network)
        if "validation" not in known:
            known["validation"] = self._predict(network, "validation")
        return score(known["validation"], self._splits.validation.all_labels())

    def score_ticket(self, ticket: Ticket, chain: int, cycle: int, logits: Logits | None = None) -> float:
        """Scores a ticket for `evaluate`, unless it is scored already. Reads the test set.

        Args:
            ticket: The ticket.
            chain: Its chain.
            cycle: Its cycle.
            logits: Its logits, if they are known. None computes them.

        Returns:
            The ticket's validation accuracy, a fraction.
        """
        key = (chain, cycle)
        if key not in self._tickets:
            self._tickets.add(key, ticket, logits or self._logits(ticket))
        return self._tickets.accuracy(key)

    def score_pretrained(self) -> None:
        """Scores the pretrained network for `evaluate`, so that it is done early. Reads the test set."""
        self._logits(self._pretrained, self._pretrained_logits)

    def evaluate(self, tickets: Iterable[tuple[dict[str, Any], Ticket]]) -> dict[str, Any]:
        """Returns the scores of every network on validation and test. Every choice was made before, on validation.

        Args:
            tickets: Pairs of the result of `merge` and the ticket; one pair is held at a time. Diverged tickets are
                counted, and excluded from the unpruned mean and the ensemble.

        Returns:
            `superposed`, `pretrained`, `tickets`, `unpruned_mean` and `ensemble`, with accuracies (fractions) and
            losses (nats). Each except the first has a `gain_error`: the standard error, over the test examples, of the
            sup-ticket's accuracy minus its own; `mean_ticket` has that of the tickets' mean. `only_one_right` counts
            the examples that only the sup-ticket classifies correctly, and those that only the other network does.
            `num_diverged` counts diverged tickets.
        """
        superposed = self.superposed
        logits = self._logits(superposed, self._known_logits(superposed))
        right = classified(logits["test"], self._splits.test)
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
            row |= self._tickets.row((chain, cycle), right)
            rows.append(row | {"density": ticket.density, "digest": ticket.digest})
        pretrained = self._row(self._pretrained, self._logits(self._pretrained, self._pretrained_logits), right)
        unpruned = self._recalibrated(finish_unpruned(mean, {})) if mean is not None else self._pretrained
        own = ("density", "digest")
        return {
            "superposed": scores_of(logits, self._splits) | {key: getattr(superposed, key) for key in own},
            "pretrained": pretrained,
            "tickets": rows,
            "unpruned_mean": self._row(unpruned, self._logits(unpruned), right),
            # If every ticket has diverged, only the pretrained network remains.
            "ensemble": self._tickets.ensemble(right)
            or {key: value for key, value in pretrained.items() if key not in own},
            "mean_ticket": self._tickets.mean_ticket(right),
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

    def _recalibrated(self, ticket: Ticket) -> Ticket:
        """Returns the ticket with recalibrated BatchNorm statistics, unless the recipe averages the tickets' own."""
        config = self._config
        if config.superposition.batchnorm == "average":
            return ticket
        model = self._load(ticket)
        seed_torch(config.seed, "recalibrate")
        seed = derive_seed(config.seed, "recalibrate")
        recalibrate(model, self._splits, seed, recalibration_size(config.superposition, len(self._splits.train)))
        return Ticket(model.state_dict(), ticket.masks, ticket.provenance)

    def _load(self, ticket: Ticket) -> Module:
        restore(self._model, ticket.state_dict())
        return self._model

    def _predict(self, ticket: Ticket, split: str) -> Tensor:
        return predict(self._load(ticket), getattr(self._splits, split))

    def _known_logits(self, network: Ticket) -> dict[str, Tensor]:
        """Returns the logits of the pretrained or the merged network that are computed already."""
        return self._pretrained_logits if network is self._pretrained else self._superposed_logits

    def _logits(self, ticket: Ticket, known: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Returns a network's logits on both splits. `known` holds those that are not computed again, and keeps all."""
        known = {} if known is None else known
        for split in EVALUATED_SPLITS:
            if split not in known:
                known[split] = self._predict(ticket, split)
        return known

    def _row(self, ticket: Ticket, logits: Logits, right: Tensor) -> dict[str, Any]:
        """Returns a network's scores, compared with the sup-ticket."""
        own_right = classified(logits["test"], self._splits.test)
        scores = scores_of(logits, self._splits) | {"density": ticket.density, "digest": ticket.digest}
        return scores | compared(right, own_right)

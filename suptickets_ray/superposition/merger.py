"""Merging tickets into one network, behind the gate, and judging what came of it. No Ray."""

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
from suptickets_ray.tickets.accumulator import Accumulator, start
from suptickets_ray.tickets.averaging import Rule, finish, finish_unpruned, merge
from suptickets_ray.tickets.ticket import Ticket, overlap
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.evaluation import (
    batch_norms,
    evaluate,
    predict,
    recalibrate,
    score,
    score_probabilities,
)
from suptickets_ray.training.loop import seed_torch
from suptickets_ray.training.models import build_model

Scores = dict[str, float]


class Merger:
    """The merge of one run, and its judge. Choices are made on validation; the test set is read by `judge` alone."""

    def __init__(self, config: Config, splits: Splits, pretrained: Ticket, device: torch.device) -> None:
        """Starts from the pretrained network.

        Args:
            config: The recipe.
            splits: Its data.
            pretrained: the pretrained network; its provenance is taken over.
            device: Where to evaluate.

        Raises:
            RuntimeError: If that network holds NaN or infinity.
        """
        if not pretrained.is_finite:
            raise RuntimeError("Cannot superpose: the pretrained network has diverged. Train it with a lower train.lr.")
        self._config, self._splits, self._pretrained = config, splits, pretrained
        self._model = build_model(config.model, splits.sample_shape, splits.num_classes).to(device)
        section = config.superposition
        # The count that pretraining really has: structured initial masks are exact in channels, not in weights. Half a
        # weight more, so that rounding down gives that count back however many weights there are.
        density = min((pretrained.num_active + 0.5) / max(pretrained.num_maskable, 1), 1.0)
        self._rule = Rule(section.method, density, section.cima_factor, section.prune_at, section.prune_scope)
        self._accumulator: Accumulator | None = self.first
        self._superposed: Ticket | None = None
        self._due: dict[str, Any] | None = None
        """Provenance of the merged network that nobody has looked at yet: `superposed` is behind what is merged."""
        self._accepted: list[list[int]] = []
        self._judged_already = False
        # Greedy without the pretrained network starts from the best ticket, whatever that is worth.
        starts_free = section.method == "greedy" and not section.include_pretrained
        floor = -math.inf if starts_free else self._score(pretrained, splits.validation)["accuracy"]
        self._gate = Gate(section.gate_tolerance, floor)

    @property
    def superposed(self) -> Ticket:
        """The network as it stands: that of pretraining until a ticket is admitted."""
        if self._due is not None and self._accumulator is not None:
            self._superposed = self._settle(finish(self._accumulator, self._rule, self._due))
            self._due = None
        return self._superposed or self._pretrained

    @property
    def rule(self) -> Rule:
        """How tickets are superposed."""
        return self._rule

    @property
    def first(self) -> Accumulator | None:
        """The merge before any ticket."""
        return start(self._pretrained) if self._config.superposition.include_pretrained else None

    def adopt(self, accumulator: Accumulator, keys: Iterable[tuple[int, int]]) -> None:
        """Takes over what was merged elsewhere, in the order of the keys (chain, cycle); only where no look is needed.

        Raises:
            RuntimeError: If a look is needed at every merged network.
        """
        if self.needs_every_look or self._rule.prune_at == "every_ticket":
            raise RuntimeError("adopt() must come with prune last and without a gate. Merge the tickets here.")
        self._accepted = [list(key) for key in keys]
        self._accumulator, self._due = accumulator, self._provenance(accumulator.num_tickets, self._accepted)

    @property
    def needs_every_look(self) -> bool:
        """Whether what comes next depends on a look at every merged network: the gate's."""
        return not self._gate.admits_all

    @property
    def look_examples(self) -> int:
        """How many examples the network computes for one look: those of validation, and of the recalibration."""
        section, count = self._config.superposition, len(self._splits.validation)
        if section.batchnorm == "recalibrate" and batch_norms(self._model):
            most = section.recalibration_examples or len(self._splits.train)
            count += min(most, len(self._splits.train))
        return count

    def merge(self, ticket: Ticket, chain: int, cycle: int, *, look: bool = True) -> dict[str, Any]:
        """Merges one ticket, unless it has diverged, or merged with the others costs too much validation accuracy.

        Args:
            ticket: The ticket.
            chain: Its chain.
            cycle: Its cycle.
            look: Whether the merged network is evaluated even where nothing depends on that.

        Returns:
            chain, cycle, accepted, and, if looked at, accuracy (a fraction) and loss of the merged network on
            validation, its density, the density before pruning, and the overlap of its mask with that of the network
            before it.

        Raises:
            RuntimeError: If `judge` came before.
        """
        if self._judged_already:
            raise RuntimeError("merge() must come before judge(). Make a new Merger to merge more tickets.")
        if not ticket.is_finite:  # whatever the gate: one NaN would make every weight of the average NaN
            return {"chain": chain, "cycle": cycle, "accepted": False}
        accumulator = merge(self._accumulator, ticket, self._rule)
        accepted_with = [*self._accepted, [chain, cycle]]
        provenance = self._provenance(accumulator.num_tickets, accepted_with)
        if not look and not self.needs_every_look:
            self._accumulator, self._due, self._accepted = accumulator, provenance, accepted_with
            return {"chain": chain, "cycle": cycle, "accepted": True}
        before, candidate = self.superposed, self._settle(finish(accumulator, self._rule, provenance))
        validation = self._score(candidate, self._splits.validation)
        accepted = self._gate.admit(validation["accuracy"])
        if accepted:
            self._accumulator, self._superposed, self._due = accumulator, candidate, None
            self._accepted = accepted_with
        return {
            "chain": chain,
            "cycle": cycle,
            "accepted": accepted,
            **_prefixed(validation, "validation"),
            "density": candidate.density,
            "density_before_pruning": accumulator.num_unpruned / max(candidate.num_maskable, 1),
            "overlap": overlap(before, candidate),
        }

    @property
    def takes_best_first(self) -> bool:
        """Whether tickets are to be merged in the order of their own validation accuracy, best first."""
        return self._config.superposition.method == "greedy"

    def score(self, ticket: Ticket, split: str) -> Scores:
        """Returns accuracy and loss of a ticket on "validation" or "test"."""
        return self._score(ticket, getattr(self._splits, split))

    def judge(self, tickets: Iterable[tuple[dict[str, Any], Ticket]]) -> dict[str, Any]:
        """Returns the scores of every network on validation and test: here the test set is read, once.

        Args:
            tickets: What `merge` returned for each ticket, with the ticket; one is held at a time. Those that have
                diverged are left out of the unpruned mean and of the ensemble, and counted.

        Returns:
            `superposed`, `pretrained`, `tickets`, `unpruned_mean` and `ensemble`, with accuracies (fractions) and
            losses (nats). Each but the first has a `gain_error`: the standard error, over the examples of the test
            set, of the sup-ticket's accuracy less its own; `mean_ticket` holds that of their mean. `only_one_right`
            counts the examples that the sup-ticket alone gets right, and those that it alone gets wrong. `num_diverged`
            counts tickets.
        """
        rows: list[dict[str, Any]] = []
        probabilities: dict[str, Tensor] = {}
        num_finite = 0
        superposed, right = self._judged(self.superposed)
        total_right = torch.zeros(())
        self._accumulator, self._judged_already = None, True  # one accumulator is held at a time
        mean = start(self._pretrained) if self._config.superposition.include_pretrained else None
        mean_rule = Rule("cia", 1.0, prune_at="end")
        for merged, ticket in tickets:
            row: dict[str, Any] = {key: merged[key] for key in ("chain", "cycle", "accepted")}
            model, is_finite = self._load(ticket), ticket.is_finite
            for split in ("validation", "test"):
                examples = getattr(self._splits, split)
                logits = predict(model, examples)
                row |= _prefixed(score(logits, examples.all_labels()), split)
                if split == "test":
                    own_right = _right(logits, examples)
                    row |= _compared(right, own_right)
                    total_right = total_right + own_right
                if is_finite:
                    probabilities[split] = probabilities.get(split, torch.zeros(())) + logits.softmax(1)
            if is_finite:
                num_finite += 1
                mean = merge(mean, ticket, mean_rule)
            rows.append(row | {"density": ticket.density, "digest": ticket.digest})
        pretrained = self._rival(self._pretrained, right)
        ensemble: dict[str, Any] = {}
        for split, total in probabilities.items():
            examples = getattr(self._splits, split)
            ensemble |= _prefixed(score_probabilities(total / num_finite, examples.all_labels()), split)
            if split == "test":
                ensemble |= _compared(right, _right(total, examples))
        unpruned = self._settle(finish_unpruned(mean, {})) if mean is not None else self._pretrained
        return {
            "superposed": superposed,
            "pretrained": pretrained,
            "tickets": rows,
            "unpruned_mean": self._rival(unpruned, right),
            # Where every ticket has diverged, what is left is the pretrained network.
            "ensemble": ensemble
            or {key: value for key, value in pretrained.items() if key not in ("density", "digest")},
            "mean_ticket": {"gain_error": _error(right - total_right / len(rows))} if rows else {},
            "num_diverged": len(rows) - num_finite,
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

    def _settle(self, ticket: Ticket) -> Ticket:
        """The ticket with BatchNorm statistics that fit its weights, unless those of the tickets are to be averaged."""
        config = self._config
        if config.superposition.batchnorm == "average":
            return ticket
        model = self._load(ticket)
        seed_torch(config.seed, "recalibrate")
        seed = derive_seed(config.seed, "recalibrate")
        recalibrate(model, self._splits, seed, config.superposition.recalibration_examples)
        return Ticket(model.state_dict(), ticket.masks, ticket.provenance)

    def _load(self, ticket: Ticket) -> Module:
        restore(self._model, ticket.state_dict())
        return self._model

    def _score(self, ticket: Ticket, examples: Examples) -> Scores:
        return evaluate(self._load(ticket), examples)

    def _judged(self, ticket: Ticket) -> tuple[dict[str, Any], Tensor]:
        """Scores on both splits, and for each example of the test set whether it is right, as 0 or 1."""
        scores: dict[str, Any] = {}
        model, right = self._load(ticket), torch.zeros(())
        for split in ("validation", "test"):
            examples = getattr(self._splits, split)
            logits = predict(model, examples)
            scores |= _prefixed(score(logits, examples.all_labels()), split)
            right = _right(logits, examples)
        return scores | {"density": ticket.density, "digest": ticket.digest}, right

    def _rival(self, ticket: Ticket, right: Tensor) -> dict[str, Any]:
        scores, own_right = self._judged(ticket)
        return scores | _compared(right, own_right)


def _right(scores: Tensor, examples: Examples) -> Tensor:
    return scores.argmax(1).eq(examples.all_labels()).double()


def _compared(right: Tensor, other: Tensor) -> dict[str, Any]:
    """What tells a gain from chance, of two networks each right or wrong (0 or 1) on every example of the test set."""
    alone = [int((right > other).sum()), int((other > right).sum())]
    return {"gain_error": _error(right - other), "only_one_right": alone}


def _error(differences: Tensor) -> float:
    """Standard error of the mean, which a single example does not have."""
    return float(differences.std() / math.sqrt(len(differences))) if len(differences) > 1 else math.nan


def _prefixed(scores: Scores, split: str) -> Scores:
    """Test scores have plain names, validation scores a prefix."""
    return scores if split == "test" else {f"{split}_{key}": value for key, value in scores.items()}

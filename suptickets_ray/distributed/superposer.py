"""The actor that folds tickets into one, keeps the gate, and judges the result."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import ray
import torch

from suptickets_ray import __version__
from suptickets_ray.config_io import config_digest
from suptickets_ray.distributed.monitor import reported_warnings
from suptickets_ray.distributed.worker import start_worker
from suptickets_ray.seeding import derive_seed
from suptickets_ray.tickets.store import TicketStore
from suptickets_ray.tickets.superposition import Accumulator, Rule, finish, fold, start
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.data.splits import Examples
from suptickets_ray.training.evaluation import evaluate, predict, recalibrate, score, score_probabilities
from suptickets_ray.training.gate import Gate
from suptickets_ray.training.loop import budget_of, build_learner, seed_torch
from suptickets_ray.training.models import build_model
from suptickets_ray.training.tensorboard import Scalars


@ray.remote(num_cpus=0)
class Superposer:
    """Folds tickets in the order in which they are given. Single-threaded; keys it has seen are not folded twice."""

    def __init__(self, settings: dict[str, Any], pretrained: bytes) -> None:
        """Starts from the network of phase one.

        Args:
            settings: What `worker_settings` gave.
            pretrained: State that phase one ended in.
        """
        self._worker = start_worker(settings, torch.device("cpu"))  # it asks Ray for no GPU, so it has none
        config, splits = self._worker.config, self._worker.splits
        section = config.superposition
        learner = build_learner(config, splits, torch.device("cpu"))
        learner.load_bytes(pretrained)
        self._pretrained = learner.ticket({"run": config.name, "config_digest": config_digest(config)})
        # The density that phase one really has: structured first masks are exact in channels, not in weights.
        density = self._pretrained.density
        self._rule = Rule(section.method, density, section.cima_factor, section.prune, section.scope)
        self._model = build_model(config.model, splits.sample_shape, splits.num_classes).to(self._worker.device)
        self._accumulator: Accumulator | None = start(self._pretrained) if section.include_pretrained else None
        self._superposed: Ticket | None = None
        self._folded: dict[tuple[int, int], dict[str, Any]] = {}
        self._scalars = Scalars(self._worker.run_path, "superposition", first_step=1)
        self._gate = Gate(section.gate_tolerance, self._score(self._pretrained, splits.validation)["accuracy"])

    def fold(self, table: pa.Table, chain: int, cycle: int) -> dict[str, Any]:
        """Folds one ticket, unless merged with the others it costs too much validation accuracy.

        Args:
            table: The ticket's Arrow form.
            chain: Its chain.
            cycle: Its cycle.

        Returns:
            chain, cycle, accepted, and the merged network's validation accuracy (a share of 1).
        """
        if (chain, cycle) in self._folded:
            return self._folded[chain, cycle]
        ticket = Ticket.from_arrow(table)
        with reported_warnings(self._worker.send):
            folded = fold(self._accumulator, ticket, self._rule)
            merged = finish(folded, self._rule, self._provenance(folded.num_tickets))
        merged = self._settle(merged)
        validation = self._score(merged, self._worker.splits.validation)
        accepted = self._gate.admit(validation["accuracy"])
        if accepted:
            self._accumulator, self._superposed = folded, merged
        report = {"chain": chain, "cycle": cycle, "accepted": accepted, "validation_accuracy": validation["accuracy"]}
        self._folded[chain, cycle] = report
        self._scalars.write(
            len(self._folded),
            validation__accuracy=validation["accuracy"],
            validation__loss=validation["loss"],
            superposition__accepted=float(accepted),
            superposition__density=merged.density,
        )
        self._worker.report("fold", **report)
        return report

    def judge(self) -> tuple[pa.Table, dict[str, Any]]:
        """Returns the sup-ticket's Arrow table, and the final numbers; here the test set is read, once."""
        worker = self._worker
        superposed = self._superposed or self._pretrained
        tickets: list[dict[str, Any]] = []
        probabilities: dict[str, torch.Tensor | float] = {"validation": 0.0, "test": 0.0}
        store = TicketStore(worker.store)
        for (chain, cycle), folded in self._folded.items():
            ticket = store.get(chain, cycle)
            row: dict[str, Any] = {"chain": chain, "cycle": cycle, "accepted": folded["accepted"]}
            for split in ("validation", "test"):
                examples = getattr(worker.splits, split)
                logits = predict(self._load(ticket), examples)
                row |= _prefixed(score(logits, examples.all_labels()), split)
                probabilities[split] = probabilities[split] + logits.softmax(1) / len(self._folded)
            tickets.append(row | {"density": ticket.density, "digest": ticket.digest})
        ensemble: dict[str, float] = {}
        for split, mean in probabilities.items():
            assert isinstance(mean, torch.Tensor)
            ensemble |= _prefixed(score_probabilities(mean, getattr(worker.splits, split).all_labels()), split)
        pretrained, result = self._judged(self._pretrained), self._judged(superposed)
        self._scalars.write(
            len(self._folded),
            test__pretrained=pretrained["accuracy"],
            test__superposed=result["accuracy"],
            test__ensemble=ensemble["accuracy"],
        )
        self._scalars.close()
        report = {"superposed": result, "pretrained": pretrained, "tickets": tickets, "ensemble": ensemble}
        return superposed.to_arrow(), report

    def _provenance(self, num_tickets: int) -> dict[str, Any]:
        section, config = self._worker.config.superposition, self._worker.config
        accepted = [[chain, cycle] for (chain, cycle), row in self._folded.items() if row["accepted"]]
        return {
            "run": config.name,
            "config_digest": config_digest(config),
            "method": section.method,
            "num_tickets": num_tickets,
            "accepted_before": accepted,
            "include_pretrained": section.include_pretrained,
            "cycles": budget_of(config).cycles,
            "version": __version__,
        }

    def _settle(self, ticket: Ticket) -> Ticket:
        """The ticket with BatchNorm statistics that fit its weights, unless those of the tickets are to be averaged."""
        config = self._worker.config
        if config.superposition.batchnorm == "average":
            return ticket
        model = self._load(ticket)
        seed_torch(config.seed, "recalibrate")
        recalibrate(model, self._worker.splits, derive_seed(config.seed, "recalibrate"))
        return Ticket(model.state_dict(), ticket.masks, ticket.provenance)

    def _load(self, ticket: Ticket) -> torch.nn.Module:
        self._model.load_state_dict(ticket.state_dict())
        return self._model

    def _score(self, ticket: Ticket, examples: Examples) -> dict[str, float]:
        return evaluate(self._load(ticket), examples)

    def _judged(self, ticket: Ticket) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        for split in ("validation", "test"):
            scores |= _prefixed(self._score(ticket, getattr(self._worker.splits, split)), split)
        return scores | {"density": ticket.density, "digest": ticket.digest}


def _prefixed(scores: dict[str, float], split: str) -> dict[str, float]:
    """Test scores have plain names, validation scores a prefix."""
    return scores if split == "test" else {f"{split}_{key}": value for key, value in scores.items()}

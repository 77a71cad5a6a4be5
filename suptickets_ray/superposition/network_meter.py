"""Loads tickets into one network of the recipe, recalibrates it, and measures it on the splits."""

from __future__ import annotations

import torch
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.seeding import derive_seed
from suptickets_ray.superposition.ticket_scores import EVALUATED_SPLITS
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.evaluation import (
    Measured,
    batch_norms,
    measure_network,
    recalibrate,
    recalibration_size,
)
from suptickets_ray.training.loop import seed_torch
from suptickets_ray.training.models import build_model
from suptickets_ray.training.tasks import make_task


class NetworkMeter:
    """One network whose weights are replaced by those of each ticket."""

    def __init__(self, config: Config, splits: Splits, device: torch.device) -> None:
        """Builds the network.

        Args:
            config: The recipe.
            splits: Its data.
            device: Device of the evaluation.
        """
        self._config, self._splits = config, splits
        self._model = build_model(config.model, splits.sample_shape, splits.num_classes).to(device)
        self._task = make_task(config)

    @property
    def validation_examples(self) -> int:
        """Number of examples in a forward pass for one validation: the validation set and the recalibration."""
        section, count = self._config.superposition, len(self._splits.validation)
        if section.batchnorm == "recalibrate" and batch_norms(self._model):
            count += recalibration_size(section, len(self._splits.train))
        return count

    def recalibrated(self, ticket: Ticket) -> Ticket:
        """Returns the ticket with recalibrated BatchNorm statistics, unless the recipe averages the tickets' own."""
        config = self._config
        if config.superposition.batchnorm == "average":
            return ticket
        model = self._load(ticket)
        seed_torch(config.seed, "recalibrate")
        seed = derive_seed(config.seed, "recalibrate")
        recalibrate(model, self._splits, seed, recalibration_size(config.superposition, len(self._splits.train)))
        return Ticket(model.state_dict(), ticket.masks, ticket.provenance)

    def measure_split(self, ticket: Ticket, split: str, *, keep_predictions: bool = False) -> Measured:
        """Measures a ticket on "validation" or "test".

        Args:
            ticket: The ticket.
            split: Name of the split.
            keep_predictions: Whether the result holds the predictions, which may need much memory.
        """
        examples = getattr(self._splits, split)
        return measure_network(self._load(ticket), examples, self._task, keep_predictions=keep_predictions)

    def measure(
        self, ticket: Ticket, known: dict[str, Measured] | None = None, *, keep_predictions: bool = False
    ) -> dict[str, Measured]:
        """Measures a ticket on both splits.

        Args:
            ticket: The ticket.
            known: What was measured of it before, which is not measured again. The rest is added to it.
            keep_predictions: As for `measure_split`.
        """
        known = {} if known is None else known
        for split in EVALUATED_SPLITS:
            if split not in known:
                known[split] = self.measure_split(ticket, split, keep_predictions=keep_predictions)
        return known

    def _load(self, ticket: Ticket) -> Module:
        restore(self._model, ticket.state_dict())
        return self._model

"""Differences between tickets, and the loss on the straight line between two networks. No files, no HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from suptickets_ray.config import Config
from suptickets_ray.metric import ACCURACY, Metric
from suptickets_ray.seeding import derive_seed
from suptickets_ray.tickets.masked_values import MaskedValues
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.evaluation import batch_norms, evaluate, recalibrate, recalibration_size
from suptickets_ray.training.loop import seed_torch
from suptickets_ray.training.tasks import make_task

MAX_TICKETS = 16
"""Maximum number of tickets whose masks are compared."""
MAX_LINES = 4
"""Maximum number of straight lines that are drawn."""
MAX_EXAMPLES, _MAX_NUMBERS = 2_000, 50_000_000
"""Maximum examples per point of a line, and maximum numbers in their inputs: all are held in memory."""
_NUM_POINTS = 7
ONE_BASIN = 0.02
"""Accuracy or another fraction that may be lost between two networks of one basin: 1912.05671, section 2."""

Item = TypeVar("Item")
Key = tuple[int, int]
"""(chain, cycle) of a ticket."""


@dataclass(frozen=True)
class Curve:
    """Validation loss and score on the straight line from one network to another."""

    first: str
    second: str
    alphas: list[float]
    """Weight of the second network at each point, from 0 to 1."""
    losses: list[float]
    """Mean loss at each point, for classification the cross-entropy in nats; NaN for a diverged network."""
    scores: list[float]
    """The metric's value at each point, e.g. the accuracy as a fraction."""
    metric: Metric = ACCURACY

    @property
    def barrier(self) -> float:
        """Maximum height in nats of the loss above the chord between the losses at the ends; at least 0.

        Source: Frankle et al., 1912.05671, section 2. Deviation: relative to the chord instead of the mean of the ends,
            because the losses of the ends may differ: Entezari et al., 2110.06296, section 2.
        """
        return _max_above_chord(self.alphas, self.losses)

    @property
    def score_lost(self) -> float:
        """The barrier of the metric: maximum that it gets worse between the ends, e.g. a fraction; at least 0."""
        offset = 1.0 if self.metric.is_fraction else 0.0
        return _max_above_chord(self.alphas, [self.metric.gain(offset, score) for score in self.scores])


@dataclass
class Findings:
    """The analysis of a run's tickets. If a part failed, it is empty and a note gives the reason."""

    networks: list[str] = field(default_factory=list)
    """Names of the compared networks."""
    num_tickets: int = 0
    """Number of the run's tickets, compared or not."""
    overlaps: list[list[float]] = field(default_factory=list)
    """`overlap_matrix` of the networks."""
    chance: float | None = None
    """`chance_overlap` of the first and the last compared ticket."""
    densities: list[dict[str, float]] = field(default_factory=list)
    """`layer_densities` of each network."""
    curves: list[Curve] = field(default_factory=list)
    num_examples: int = 0
    """Validation examples at each point of the curves."""
    difference_notes: list[str] = field(default_factory=list)
    curve_notes: list[str] = field(default_factory=list)

    @property
    def is_ticket(self) -> list[bool]:
        """Whether each network is a ticket, that is, neither the pretrained network nor the sup-ticket."""
        return [name not in (PRETRAINED, SUP_TICKET) for name in self.networks]

    def ticket_overlaps(self) -> list[float]:
        """Returns the overlap of every pair of tickets."""
        tickets = [index for index, is_ticket in enumerate(self.is_ticket) if is_ticket and self.overlaps]
        return [self.overlaps[row][column] for row in tickets for column in tickets if row < column]


PRETRAINED, SUP_TICKET = "pretraining", "sup-ticket"


def ticket_name(key: Key) -> str:
    """Returns the short name of a ticket, chain.cycle."""
    return f"{key[0]}.{key[1]}"


def evenly_spaced(items: Sequence[Item], limit: int) -> list[Item]:
    """Returns at most `limit` (2 or more) evenly spaced items, including the first and the last."""
    if len(items) <= limit:
        return list(items)
    return [items[round(index * (len(items) - 1) / (limit - 1))] for index in range(limit)]


def overlap_matrix(tickets: Iterable[Ticket]) -> list[list[float]]:
    """Returns for every pair the fraction of positions active in either ticket that are active in both, in [0, 1].

    Args:
        tickets: Tickets of one model. They are read one at a time; only their masks are held, as bits.

    Returns:
        The Jaccard indices of the masks, a symmetric matrix with ones on its diagonal.

    Raises:
        ValueError: If the tickets have different masked layers.
    """
    shapes: dict[str, tuple[int, ...]] | None = None
    packed: list[NDArray[np.uint8]] = []
    for ticket in tickets:
        masked_shapes = {name: part.shape for name, part in ticket.parts.items() if isinstance(part, MaskedValues)}
        if shapes is not None and masked_shapes != shapes:
            raise ValueError("Cannot compare the tickets: their masked layers differ. Compare tickets of one model.")
        shapes = masked_shapes
        packed.append(_bits(ticket))
    matrix = [[1.0] * len(packed) for _ in packed]
    for row, first in enumerate(packed):
        for column, second in enumerate(packed[:row]):
            either = int(np.bitwise_count(first | second).sum())
            both = int(np.bitwise_count(first & second).sum())
            matrix[row][column] = matrix[column][row] = both / either if either else 1.0
    return matrix


def chance_overlap(first: Ticket, second: Ticket) -> float:
    """Returns the expected overlap, approximately, of random masks with the layer densities of two tickets."""
    both = either = 0.0
    other = layer_densities(second)
    for name, density in layer_densities(first).items():
        size = math.prod(first.parts[name].shape)
        both += density * other[name] * size
        either += (density + other[name] - density * other[name]) * size
    return both / either if either else 1.0


def layer_densities(ticket: Ticket) -> dict[str, float]:
    """Returns the fraction of active weights of every masked layer, in [0, 1], in the model's order."""
    return {
        name: len(part.positions) / max(math.prod(part.shape), 1)
        for name, part in ticket.parts.items()
        if isinstance(part, MaskedValues)
    }


def line_pairs(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
    """Returns the most informative pairs of tickets for a line: within a chain, and between chains.

    Args:
        keys: (chain, cycle) of all tickets.

    Returns:
        At most `MAX_LINES` - 1 distinct pairs, in this order: the first two tickets of the longest chain, the first
        tickets of the first two chains, the first tickets of the first and the last chain, and both ends of the longest
        chain.
    """
    chains: dict[int, list[Key]] = {}
    for key in sorted(keys):
        chains.setdefault(key[0], []).append(key)
    longest = max(chains.values(), key=len, default=[])
    firsts = [chain[0] for chain in chains.values()]
    if not longest:
        return []
    pairs = [(longest[0], *longest[1:2]), (firsts[0], *firsts[1:2]), (firsts[0], firsts[-1]), (longest[0], longest[-1])]
    distinct = dict.fromkeys((pair[0], pair[-1]) for pair in pairs if pair[0] != pair[-1])
    return list(distinct)[: MAX_LINES - 1]


def sample_data(splits: Splits, config: Config) -> Splits:
    """Returns a sample of the data in memory, so that all points of all lines use the same examples.

    Args:
        splits: The run's data.
        config: The recipe. Its seed determines the order and the augmentation of the training examples.

    Returns:
        At most `MAX_EXAMPLES` training examples, at most as many evenly spaced validation examples, and the whole test
        set.
    """
    limit = max(min(MAX_EXAMPLES, _MAX_NUMBERS // splits.train.sample_size), 2)
    num_train = min(limit, recalibration_size(config.superposition, len(splits.train)))
    [train] = splits.train.epoch(derive_seed(config.seed, "recalibrate"), [num_train])
    validation = splits.validation
    if len(validation) > limit:
        validation = Examples(validation.batch(torch.linspace(0, len(validation) - 1, limit).round().long()))
    return replace(splits, train=Examples(train), validation=validation)


def curve(
    model: Module,
    first: tuple[str, Ticket],
    second: tuple[str, Ticket],
    config: Config,
    splits: Splits,
    should_stop: Callable[[], bool] = lambda: False,
) -> Curve | None:
    """Returns loss and score at evenly spaced points of the straight line between two tickets' weights.

    Networks between the ends have the active weights of both tickets. At every point, including the ends, BatchNorm
    statistics are computed as for the sup-ticket: recalibrated on the training examples, or averaged.

    Args:
        model: A network of the recipe, on any device. Its weights are overwritten.
        first: Name and ticket of the start of the line.
        second: Name and ticket of the end of the line.
        config: The recipe.
        splits: The data that `sample_data` returned.
        should_stop: Called before each point; returns whether to stop.

    Returns:
        The curve, or None if it was stopped.
    """
    start, end = first[1].state_dict(), second[1].state_dict()
    alphas = [index / (_NUM_POINTS - 1) for index in range(_NUM_POINTS)]
    losses, scores, task = [], [], make_task(config)
    for alpha in alphas:
        if should_stop():
            return None
        restore(model, _interpolated(start, end, alpha))
        if config.superposition.batchnorm != "average" and batch_norms(model):
            seed_torch(config.seed, "recalibrate")
            recalibrate(model, splits, derive_seed(config.seed, "recalibrate"))
        found = evaluate(model, splits.validation, task)
        losses.append(found["loss"])
        scores.append(found[task.metric.name])
    return Curve(first[0], second[0], alphas, losses, scores, task.metric)


def _interpolated(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Returns the weighted mean of two state dicts. Integer tensors are counters, and come from the first network."""
    return {
        # Not torch.lerp: at the ends the network must equal the ticket bit for bit.
        name: tensor * (1 - alpha) + second[name] * alpha if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def _bits(ticket: Ticket) -> NDArray[np.uint8]:
    """Returns all masks of a ticket as packed bits, uint8 (bytes,)."""
    parts = [part for part in ticket.parts.values() if isinstance(part, MaskedValues)]
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(part.mask().view(-1).numpy()) for part in parts)])


def _max_above_chord(alphas: Sequence[float], values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    chord = [values[0] * (1 - alpha) + values[-1] * alpha for alpha in alphas]
    return max(0.0, *(value - baseline for value, baseline in zip(values, chord, strict=True)))

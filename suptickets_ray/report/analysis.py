"""How different tickets are, and what lies on the straight line between two of them. No files, no HTML."""

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
from suptickets_ray.seeding import derive_seed
from suptickets_ray.tickets.arrow import SparseTensor
from suptickets_ray.tickets.ticket import Ticket
from suptickets_ray.training.checkpoint import restore
from suptickets_ray.training.data import Splits
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.evaluation import batch_norms, evaluate, recalibrate
from suptickets_ray.training.loop import seed_torch

MAX_TICKETS = 16
"""Tickets whose masks are compared."""
MAX_LINES = 4
"""Straight lines that are drawn."""
MAX_EXAMPLES, _MAX_NUMBERS = 2_000, 50_000_000
"""Most examples that a point of a line is evaluated on, and most numbers of their inputs: all are held in memory."""
_NUM_POINTS = 7
ONE_BASIN = 0.02
"""Share of accuracy that may be lost on the way between two networks of one basin: 1912.05671, section 2."""

Item = TypeVar("Item")
Key = tuple[int, int]
"""(chain, cycle) of a ticket."""


@dataclass(frozen=True)
class Curve:
    """Validation loss and accuracy on the straight line from one network to another."""

    first: str
    second: str
    shares: list[float]
    """Weight of the second network at each point, from 0 to 1."""
    losses: list[float]
    """Mean cross-entropy in nats at each point; nan where a network has diverged."""
    accuracies: list[float]
    """Share of 1 at each point."""

    @property
    def barrier(self) -> float:
        """Most nats by which the loss lies above the straight line between the losses of the ends; at least 0.

        Source: Frankle et al., 1912.05671, section 2, but against that line and not against the mean of the ends, as
            the ends may be of unequal worth: Entezari et al., 2110.06296, section 2.
        """
        return _highest_above_chord(self.shares, self.losses)

    @property
    def accuracy_lost(self) -> float:
        """The same of the error rate: most accuracy that is lost on the way, a fraction; at least 0."""
        return _highest_above_chord(self.shares, [1 - accuracy for accuracy in self.accuracies])


@dataclass
class Findings:
    """What was found out about a run's tickets; what could not be is missing, and the notes say why."""

    networks: list[str] = field(default_factory=list)
    """Names of the networks that are compared."""
    num_tickets: int = 0
    """Tickets that the run has, compared or not."""
    overlaps: list[list[float]] = field(default_factory=list)
    """`overlap_matrix` of the networks."""
    chance: float | None = None
    """`chance_overlap` of two of the tickets."""
    densities: list[dict[str, float]] = field(default_factory=list)
    """`layer_densities` of each network."""
    curves: list[Curve] = field(default_factory=list)
    num_examples: int = 0
    """Validation examples at each point of the curves."""
    difference_notes: list[str] = field(default_factory=list)
    curve_notes: list[str] = field(default_factory=list)

    @property
    def is_ticket(self) -> list[bool]:
        """Whether each network is a ticket: neither pretraining nor the sup-ticket."""
        return [name not in (PRETRAINED, SUP_TICKET) for name in self.networks]

    def ticket_overlaps(self) -> list[float]:
        """Returns the overlap of every pair of tickets."""
        own = [index for index, is_ticket in enumerate(self.is_ticket) if is_ticket and self.overlaps]
        return [self.overlaps[row][column] for row in own for column in own if row < column]


PRETRAINED, SUP_TICKET = "pretraining", "sup-ticket"


def ticket_name(key: Key) -> str:
    """Returns the short name of a ticket: chain and cycle."""
    return f"{key[0]}.{key[1]}"


def evenly_chosen(items: Sequence[Item], most: int) -> list[Item]:
    """Returns at most so many (2 or more) of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def overlap_matrix(tickets: Iterable[Ticket]) -> list[list[float]]:
    """Returns for every pair the share of positions active in either that are active in both, in [0, 1].

    Args:
        tickets: Tickets of one model. They are taken one after another; only their masks are held, as bits.

    Returns:
        A symmetric matrix with ones on its diagonal, the Jaccard index of the masks.

    Raises:
        ValueError: If the tickets are not of one model.
    """
    shapes: dict[str, tuple[int, ...]] | None = None
    packed: list[NDArray[np.uint8]] = []
    for ticket in tickets:
        own = {name: part.shape for name, part in ticket.parts.items() if isinstance(part, SparseTensor)}
        if shapes is not None and own != shapes:
            raise ValueError("tickets must be of one model to be compared; these differ in masked layers.")
        shapes = own
        packed.append(_bits(ticket))
    matrix = [[1.0] * len(packed) for _ in packed]
    for row, first in enumerate(packed):
        for column, second in enumerate(packed[:row]):
            either = int(np.bitwise_count(first | second).sum())
            both = int(np.bitwise_count(first & second).sum())
            matrix[row][column] = matrix[column][row] = both / either if either else 1.0
    return matrix


def chance_overlap(first: Ticket, second: Ticket) -> float:
    """Returns the overlap that random masks with the layer densities of two tickets of one model have, about."""
    both = either = 0.0
    other = layer_densities(second)
    for name, density in layer_densities(first).items():
        size = math.prod(first.parts[name].shape)
        both += density * other[name] * size
        either += (density + other[name] - density * other[name]) * size
    return both / either if either else 1.0


def layer_densities(ticket: Ticket) -> dict[str, float]:
    """Returns the share of active weights of every masked layer, in [0, 1], in the model's order."""
    return {
        name: len(part.positions) / max(math.prod(part.shape), 1)
        for name, part in ticket.parts.items()
        if isinstance(part, SparseTensor)
    }


def chosen_lines(keys: Sequence[Key]) -> list[tuple[Key, Key]]:
    """Returns pairs of tickets between which a line says most: along a chain, and from chain to chain.

    Args:
        keys: (chain, cycle) of the tickets that there are.

    Returns:
        At most `MAX_LINES` - 1 pairs: the first two tickets of the first chain that has two, the first tickets of the
        first two chains, those of the first and the last chain, and otherwise the ends of the first chain.
    """
    chains: dict[int, list[Key]] = {}
    for key in sorted(keys):
        chains.setdefault(key[0], []).append(key)
    longest = max(chains.values(), key=len, default=[])
    firsts = [own[0] for own in chains.values()]
    if not longest:
        return []
    pairs = [(longest[0], *longest[1:2]), (firsts[0], *firsts[1:2]), (firsts[0], firsts[-1]), (longest[0], longest[-1])]
    distinct = dict.fromkeys((pair[0], pair[-1]) for pair in pairs if pair[0] != pair[-1])
    return list(distinct)[: MAX_LINES - 1]


def sampled(splits: Splits, config: Config) -> Splits:
    """Returns a part of the data, in memory: all points of all lines then see the same examples.

    Args:
        splits: The run's data.
        config: The recipe; its seed says in which order training examples are read and augmented.

    Returns:
        At most `MAX_EXAMPLES` training and validation examples each, the latter evenly spread; the test set as it was.
    """
    most = max(min(MAX_EXAMPLES, _MAX_NUMBERS // splits.train.sample_size), 2)
    num_train = min(most, config.superposition.recalibration_examples or most, len(splits.train))
    [train] = splits.train.epoch(derive_seed(config.seed, "recalibrate"), [num_train])
    validation = splits.validation
    if len(validation) > most:
        validation = Examples(validation.batch(torch.linspace(0, len(validation) - 1, most).round().long()))
    return replace(splits, train=Examples(train), validation=validation)


def curve(
    model: Module,
    first: tuple[str, Ticket],
    second: tuple[str, Ticket],
    config: Config,
    splits: Splits,
    is_over: Callable[[], bool] = lambda: False,
) -> Curve | None:
    """Returns loss and accuracy at points evenly spread on the straight line between two tickets' weights.

    The networks on the way have the active weights of both. At every point, the ends included, BatchNorm statistics are
    made as the recipe makes the sup-ticket's: recalibrated on the training examples, or averaged.

    Args:
        model: A network of the recipe, anywhere; its weights are overwritten.
        first: Name and ticket where the line begins.
        second: Name and ticket where it ends.
        config: The recipe.
        splits: What `sampled` gave.
        is_over: Whether to give up, asked before each point.

    Returns:
        The curve, or None if it was given up.
    """
    start, end = first[1].state_dict(), second[1].state_dict()
    shares = [index / (_NUM_POINTS - 1) for index in range(_NUM_POINTS)]
    losses, accuracies = [], []
    for share in shares:
        if is_over():
            return None
        restore(model, _between(start, end, share))
        if config.superposition.batchnorm != "average" and batch_norms(model):
            seed_torch(config.seed, "recalibrate")
            recalibrate(model, splits, derive_seed(config.seed, "recalibrate"))
        found = evaluate(model, splits.validation)
        losses.append(found["loss"])
        accuracies.append(found["accuracy"])
    return Curve(first[0], second[0], shares, losses, accuracies)


def _between(first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Counters, which are no numbers to average, are the first network's."""
    return {
        # Not torch.lerp: at the ends the network must be the ticket bit for bit.
        name: tensor * (1 - share) + second[name] * share if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def _bits(ticket: Ticket) -> NDArray[np.uint8]:
    """All masks of a ticket as bits, (bytes,)."""
    parts = [part for part in ticket.parts.values() if isinstance(part, SparseTensor)]
    return np.concatenate([np.zeros(0, np.uint8), *(np.packbits(part.mask().view(-1).numpy()) for part in parts)])


def _highest_above_chord(shares: Sequence[float], values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    chord = [values[0] * (1 - share) + values[-1] * share for share in shares]
    return max(0.0, *(value - below for value, below in zip(values, chord, strict=True)))

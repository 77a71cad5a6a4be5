"""Sparse training on several ranks of DistributedDataParallel: equal masks, and only active gradients are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from suptickets_ray.sparse.layer_mask import LayerMask
from suptickets_ray.sparse.masks import Tensors, layer_digests


def assert_equal_masks(masks: Tensors, group: Any, when: str) -> None:
    """Compares the masks of all ranks by their hashes.

    Args:
        masks: This rank's masks; all ranks have the same layers.
        group: The process group.
        when: Time of the check, for the error, e.g. "after update 3".

    Raises:
        RuntimeError: On every rank, if a layer's mask differs between any two ranks; it names the layers.
    """
    world_size = dist.get_world_size(group)
    if world_size == 1 or not masks:
        return
    device = next(iter(masks.values())).device
    digests = layer_digests(masks)
    own = torch.frombuffer(bytearray(b"".join(digests.values())), dtype=torch.uint8).to(device)
    gathered = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(gathered, own, group=group)
    by_layer = torch.stack(gathered).view(world_size, len(digests), -1)
    differing = (by_layer != by_layer[0]).any(dim=2).any(dim=0).tolist()
    if any(differing):
        names = ", ".join(name for name, differs in zip(digests, differing, strict=True) if differs)
        raise RuntimeError(
            f"masks must be equal on all ranks; {when} those of {names} differ. Give every rank the same weights and "
            "generators with the same seed."
        )


class _Sparse(Protocol):
    @property
    def parameters(self) -> dict[str, Parameter]: ...
    @property
    def layer_masks(self) -> dict[str, LayerMask]: ...
    @property
    def needs_dense_gradients(self) -> bool: ...


class _Layout(NamedTuple):
    """The active entries of one bucket, valid while it holds the same parameters under the same masks."""

    parameters: list[Tensor]
    names: list[str]
    """Name of each masked parameter; empty for the others."""
    layers: list[LayerMask | None]
    positions: Tensor
    """Positions of the active entries in the bucket's flat buffer, int64 (count,), ascending."""


class ActiveGradientReduction:
    """A communication hook of DistributedDataParallel that averages the gradients of active weights only.

    In steps whose update needs dense gradients, all gradients are averaged. Otherwise inactive gradients are 0.
    """

    def __init__(self, sparsifier: _Sparse, group: Any) -> None:
        """Sets the source of the masks, and the process group to average over."""
        self._sparsifier = sparsifier
        self._group = group
        self._layouts: dict[int, _Layout] = {}

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Starts averaging one `torch.distributed.GradBucket`, flat (n,), and returns the future of the result."""
        world_size = dist.get_world_size(self._group)
        buffer: Tensor = bucket.buffer()
        if self._sparsifier.needs_dense_gradients:
            return self._sum(buffer.div_(world_size)).then(_first)
        index = self._index(bucket)

        def spread(future: torch.futures.Future[list[Tensor]]) -> Tensor:
            return buffer.zero_().index_copy_(0, index, future.value()[0])

        return self._sum(buffer.index_select(0, index).div_(world_size)).then(spread)

    def _index(self, bucket: Any) -> Tensor:
        """Returns the active positions of a bucket. They are computed once per mask: finding them makes a GPU wait."""
        parameters, masks = bucket.parameters(), self._sparsifier.layer_masks
        known = self._layouts.get(bucket.index())
        if known is not None and _are_same(known.parameters, parameters):
            names = known.names
        else:
            known, by_parameter = None, {id(own): name for name, own in self._sparsifier.parameters.items()}
            names = [by_parameter.get(id(parameter), "") for parameter in parameters]
        layers = [masks.get(name) for name in names]
        if known is not None and _are_same(known.layers, layers):
            return known.positions
        buffer = bucket.buffer()
        is_active = torch.zeros(len(buffer), dtype=torch.bool, device=buffer.device)
        for gradient, parameter, layer in zip(bucket.gradients(), parameters, layers, strict=True):
            # A bucket holds a gradient in its parameter's memory format, e.g. channels_last.
            offset = gradient.storage_offset() - buffer.storage_offset()
            entries = is_active.as_strided(parameter.shape, parameter.stride(), offset)
            if layer is None:
                entries.fill_(True)
            else:
                entries.copy_(layer.mask())
        layout = _Layout(parameters, names, layers, is_active.nonzero().flatten())
        self._layouts[bucket.index()] = layout
        return layout.positions

    def _sum(self, tensor: Tensor) -> torch.futures.Future[list[Tensor]]:
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future


def _are_same(first: Sequence[object], second: Sequence[object]) -> bool:
    """Returns whether two sequences hold the same objects, by identity."""
    return len(first) == len(second) and all(one is other for one, other in zip(first, second, strict=True))


def _first(future: torch.futures.Future[list[Tensor]]) -> Tensor:
    return future.value()[0]

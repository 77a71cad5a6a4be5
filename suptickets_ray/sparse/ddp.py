"""Sparse training on several ranks of DistributedDataParallel: equal masks, and only active gradients on the wire."""

from __future__ import annotations

from typing import Any, Protocol

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
        when: When this is, for the error, e.g. "after update 3".

    Raises:
        RuntimeError: On every rank, if a layer's mask differs between any two; it names the layers.
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
            f"masks must be equal on all ranks; {when} those of {names} differ. Give every rank the same weights and a "
            "generator of the same seed."
        )


class _Sparse(Protocol):
    @property
    def parameters(self) -> dict[str, Parameter]: ...
    @property
    def connections(self) -> dict[str, LayerMask]: ...
    @property
    def needs_dense_gradients(self) -> bool: ...


class ActiveGradientReduction:
    """A communication hook of DistributedDataParallel that averages the gradients of active weights only.

    On steps whose update needs dense gradients all are averaged. Inactive gradients are 0 otherwise.
    """

    def __init__(self, sparsifier: _Sparse, group: Any) -> None:
        """Keeps what says which weights are active, and the process group to average over."""
        self._sparsifier = sparsifier
        self._group = group

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Starts averaging one `torch.distributed.GradBucket`, flat (n,), and returns the future of the result."""
        world_size = dist.get_world_size(self._group)
        if self._sparsifier.needs_dense_gradients:
            return self._sum(bucket.buffer().div_(world_size)).then(_first)
        names = {id(parameter): name for name, parameter in self._sparsifier.parameters.items()}
        connections = self._sparsifier.connections
        layers = [connections.get(names.get(id(parameter), "")) for parameter in bucket.parameters()]
        gradients = [_as_laid_out(*pair) for pair in zip(bucket.gradients(), bucket.parameters(), strict=True)]
        parts = [
            gradient.reshape(-1) if layer is None else layer.gather(gradient)
            for layer, gradient in zip(layers, gradients, strict=True)
        ]

        def spread(future: torch.futures.Future[list[Tensor]]) -> Tensor:
            values = future.value()[0].split([len(part) for part in parts])
            for layer, gradient, some in zip(layers, gradients, values, strict=True):
                if layer is None:
                    gradient.copy_(some.view_as(gradient))
                else:
                    gradient.zero_()
                    layer.scatter_(gradient, some)
            buffer: Tensor = bucket.buffer()
            return buffer

        return self._sum(torch.cat(parts).div_(world_size)).then(spread)

    def _sum(self, tensor: Tensor) -> torch.futures.Future[list[Tensor]]:
        work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        future: torch.futures.Future[list[Tensor]] = work.get_future()
        return future


def _as_laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """A bucket's view in the parameter's memory format, e.g. channels_last, in which the bucket really holds it."""
    return gradient.as_strided(parameter.shape, parameter.stride(), gradient.storage_offset())


def _first(future: torch.futures.Future[list[Tensor]]) -> Tensor:
    return future.value()[0]

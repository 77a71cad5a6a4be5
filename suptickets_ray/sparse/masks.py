"""Which positions: exact counts and top-k selection with a defined order among ties."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""Parameter name to tensor, in the model's parameter order."""


def count_down(share: float, total: int) -> int:
    """Returns floor(share * total), safe from float noise: 0.55 of 100 is 55."""
    return math.floor(share * total + 1e-9)


def count_up(share: float, total: int) -> int:
    """Returns ceil(share * total), safe from float noise: 0.07 of 100 is 7."""
    return math.ceil(share * total - 1e-9)


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Returns the mask of exactly the `count` highest scores; ties go to the lower flat index, on every device.

    Args:
        scores: Any shape. NaN ranks below everything, so a broken score is never preferred.
        count: Number of positions, in [0, scores.numel()].

    Returns:
        Bool tensor of the shape of `scores` with `count` true entries.

    Raises:
        ValueError: If `count` is out of range.
    """
    flat = scores.reshape(-1)
    if not 0 <= count <= flat.numel():
        raise ValueError(f"the number of positions must be in [0, {flat.numel()}]; got {count}.")
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    if count == 0:
        return mask.view(scores.shape)
    if count == flat.numel():
        return ~mask.view(scores.shape)
    flat = torch.where(torch.isnan(flat), -math.inf, flat)
    threshold = torch.topk(flat, count, sorted=False).values.min()
    torch.gt(flat, threshold, out=mask)
    missing = count - int(mask.sum())
    mask[(flat == threshold).nonzero().flatten()[:missing]] = True
    return mask.view(scores.shape)


def num_active(masks: Tensors) -> int:
    """Returns the number of true entries of all masks together."""
    return sum(int(mask.sum()) for mask in masks.values())


def num_positions(tensors: Tensors) -> int:
    """Returns the number of entries of all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())


def density(masks: Tensors) -> float:
    """Returns the share of active positions among all masked ones; 1.0 when nothing is masked."""
    return num_active(masks) / num_positions(masks) if masks else 1.0


def digest(masks: Tensors) -> str:
    """Returns the sha256 of names, shapes and entries of the masks, to compare ranks or runs."""
    summary = hashlib.sha256()
    for name, mask in masks.items():
        summary.update(f"{name}{tuple(mask.shape)}".encode())
        summary.update(mask.cpu().contiguous().numpy().tobytes())
    return summary.hexdigest()

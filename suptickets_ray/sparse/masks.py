"""Exact counts and top-k selection of positions, with a defined order among ties."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
"""Parameter name to tensor, in the model's parameter order."""

_SAMPLED_SIZE, _SAMPLE_STRIDE, _LARGEST_SAMPLE = 1 << 13, 16, 1 << 15
"""From this many scores on, a sample of one in 16, up to this size, brackets the threshold."""


def count_down(fraction: float, total: int) -> int:
    """Returns floor(fraction * total), safe from float noise: 0.55 of 100 is 55."""
    return math.floor(fraction * total + 1e-9)


def count_up(fraction: float, total: int) -> int:
    """Returns ceil(fraction * total), safe from float noise: 0.07 of 100 is 7."""
    return math.ceil(fraction * total - 1e-9)


def top_mask(scores: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Returns the mask of exactly the `count` highest scores; ties go to the lower flat index, on every device.

    Args:
        scores: Any shape. NaN ranks below everything, so a broken score is never preferred.
        count: Number of positions, in [0, number of candidates].
        among: Bool mask of the candidates, of the shape of `scores`; all positions when left out.

    Returns:
        Bool tensor of the shape of `scores` with `count` true entries.

    Raises:
        ValueError: If `count` is out of range.
    """
    return top_masks([scores], count, None if among is None else [among])[0]


def top_masks(scores: Sequence[Tensor], count: int, among: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Returns masks of exactly the `count` highest scores of all tensors together, as `top_mask` does for one.

    Among equals the earlier tensor wins, and in it the lower flat index. On the CPU, NumPy does the work in place,
    because it compares and counts several times faster than torch.

    Raises:
        ValueError: If `count` is out of range.
    """
    flats = [score.detach().reshape(-1) for score in scores]
    if among is not None:
        return _top_candidates(scores, flats, count, [mask.reshape(-1) for mask in among])
    total = sum(flat.numel() for flat in flats)
    _check_count(count, total)
    if count in (0, total):
        return [torch.full(score.shape, count > 0, dtype=torch.bool, device=score.device) for score in scores]
    if all(flat.device.type == "cpu" for flat in flats):
        arrays = [_without_nan(_as_array(flat)) for flat in flats]
        masks = [torch.from_numpy(mask) for mask in _top_of_arrays(arrays, count)]
    else:
        masks = _top_of_tensors(flats, count)
    return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]


def _check_count(count: int, total: int) -> None:
    if not 0 <= count <= total:
        raise ValueError(f"the number of positions must be in [0, {total}]; got {count}.")


def _top_candidates(
    scores: Sequence[Tensor], flats: Sequence[Tensor], count: int, among: Sequence[Tensor]
) -> list[Tensor]:
    """Selects among the candidates only, whatever the scores of the others."""
    num_candidates, total = sum(num_true(mask) for mask in among), sum(flat.numel() for flat in flats)
    _check_count(count, num_candidates)
    if 2 * num_candidates > total:
        # Cheaper than gathering most of the scores. If candidates are at -inf too, the others might win a tie.
        masks = top_masks([_fill_others(flat, mask) for flat, mask in zip(flats, among, strict=True)], count)
        if sum(num_true(mask & some) for mask, some in zip(masks, among, strict=True)) == count:
            return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]
    positions = [true_positions(mask) for mask in among]
    chosen = top_masks([flat[some] for flat, some in zip(flats, positions, strict=True)], count)
    masks = []
    for score, some, best in zip(scores, positions, chosen, strict=True):
        mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        mask[some[true_positions(best)]] = True
        masks.append(mask.view(score.shape))
    return masks


def _fill_others(flat: Tensor, among: Tensor) -> Tensor:
    if flat.device.type == "cpu":
        array = _as_array(flat)
        return torch.from_numpy(np.where(among.numpy(), array, array.dtype.type(-np.inf)))
    return torch.where(among, flat, -math.inf)


def _as_array(flat: Tensor) -> np.ndarray[Any, Any]:
    return (flat.float() if flat.dtype in (torch.bfloat16, torch.float16) else flat).numpy()


def _without_nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # The minimum is NaN when any entry is: one pass and no temporary in the usual case.
    if array.size and np.isnan(array.min()):
        return np.where(np.isnan(array), array.dtype.type(-np.inf), array)
    return array


def _top_of_arrays(arrays: Sequence[np.ndarray[Any, Any]], count: int) -> list[np.ndarray[Any, Any]]:
    threshold = _kth_largest(arrays, count)
    masks = [array >= threshold for array in arrays]
    surplus = sum(int(np.count_nonzero(mask)) for mask in masks) - count
    for array, mask in zip(reversed(arrays), reversed(masks), strict=True):
        if surplus == 0:
            break
        ties = np.flatnonzero(array == threshold)[-surplus:]
        mask[ties] = False
        surplus -= len(ties)
    return masks


def _kth_largest(arrays: Sequence[np.ndarray[Any, Any]], count: int) -> Any:
    """Returns the `count`-th largest value, exactly.

    A strided sample brackets it; only the values inside the bracket are partitioned. If the sample misleads, all values
    are partitioned, which is slower but exact.
    """
    total = sum(array.size for array in arrays)
    if total >= _SAMPLED_SIZE:
        stride = (
            max(total // _LARGEST_SAMPLE, _SAMPLE_STRIDE) | 1
        )  # odd, so that it does not walk down the columns of a matrix
        sample = np.sort(np.concatenate([array[::stride] for array in arrays]))[::-1]
        fraction = count / total
        middle, margin = fraction * len(sample), 5 * math.sqrt(len(sample) * fraction * (1 - fraction)) + 5
        first, last = math.floor(middle - margin), math.ceil(middle + margin)
        high = sample[first] if first >= 0 else np.inf
        low = sample[last] if last < len(sample) else -np.inf
        num_above, inside = 0, []
        for array in arrays:
            above, reaching = array > high, array >= low
            num_above += int(np.count_nonzero(above))
            inside.append(array[np.flatnonzero(above != reaching)])
        candidates = np.concatenate(inside)
        if num_above < count <= num_above + len(candidates):
            return _kth_of(candidates, count - num_above)
    return _kth_of(np.concatenate(arrays), count)


def _kth_of(values: np.ndarray[Any, Any], count: int) -> Any:
    return np.partition(values, len(values) - count)[len(values) - count]


def _top_of_tensors(flats: Sequence[Tensor], count: int) -> list[Tensor]:
    """Selects the same positions on any device, by torch.topk."""
    joined = torch.cat([flat.to(flats[0].device) for flat in flats])
    joined = torch.where(torch.isnan(joined), -math.inf, joined)
    threshold = torch.topk(joined, count, sorted=False).values.min()
    mask = joined > threshold
    missing = count - int(torch.count_nonzero(mask))
    mask[(joined == threshold).nonzero().flatten()[:missing]] = True
    parts = mask.split([flat.numel() for flat in flats])
    return [part.to(flat.device) for part, flat in zip(parts, flats, strict=True)]


def true_positions(mask: Tensor) -> Tensor:
    """Returns the flat indices (count,) of a bool mask's true entries, ascending, as int64 on its device."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero().flatten()


def num_true(mask: Tensor) -> int:
    """Returns the number of true entries of a bool mask."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(torch.count_nonzero(mask))


def num_active(masks: Tensors) -> int:
    """Returns the number of true entries of all masks together."""
    return sum(num_true(mask) for mask in masks.values())


def num_positions(tensors: Tensors) -> int:
    """Returns the number of entries of all tensors together."""
    return sum(tensor.numel() for tensor in tensors.values())


def density(masks: Tensors) -> float:
    """Returns the fraction of active positions among all masked ones; 1.0 when nothing is masked."""
    return num_active(masks) / num_positions(masks) if masks else 1.0


def pack(mask: Tensor) -> Tensor:
    """Returns a bool mask as bits on the CPU: uint8 (ceil(numel / 8),), lowest bit first, as in tickets."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns the bool mask of `shape` from the bits of `pack`, on the CPU.

    Raises:
        ValueError: If there are too few or too many bits for the shape.
    """
    size = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != -(-size // 8):
        raise ValueError(f"packed bits must be {-(-size // 8)} bytes for shape {tuple(shape)}; got {bits.numel()}.")
    flat = np.unpackbits(bits.cpu().numpy(), count=size, bitorder="little").view(np.bool_)
    return torch.from_numpy(flat).view(tuple(shape))


def digest(masks: Tensors) -> str:
    """Returns the sha256 of names, shapes and entries of the masks, to compare ranks or runs."""
    return hashlib.sha256(b"".join(layer_digests(masks).values())).hexdigest()


def layer_digests(masks: Tensors) -> dict[str, bytes]:
    """Returns the sha256, 32 bytes, of each mask with its name and shape."""
    return {
        name: hashlib.sha256(f"{name}{tuple(mask.shape)}".encode() + pack(mask).numpy().tobytes()).digest()
        for name, mask in masks.items()
    }

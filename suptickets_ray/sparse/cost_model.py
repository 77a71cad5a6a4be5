"""Up to which density a layer's step is faster with its active weights alone: measured once for each size of layer.

A step's time is taken as linear in the density: two densities are measured beside a masked step, and the limit is where
the line meets it. Limits are kept in a file of the user's cache folder, so that later runs decide alike.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.optim import SGD

from suptickets_ray.sparse.active_forward import ActiveForward
from suptickets_ray.sparse.active_weights import ActiveWeights, GradientForm
from suptickets_ray.sparse.layer_mask import GATHERED_DENSITY
from suptickets_ray.sparse.masked_step import MaskedStep

_LOGGER = logging.getLogger(__name__)
_DENSITIES, _MASKED_IN_PLACE, _MOST_LIMIT = (0.02, 0.1), 0.2, 0.5
_MOST_COLUMNS = 2048
"""Columns that are measured: with more of them, all times grow alike."""
_TURNS, _LEAST_SECONDS = 7, 0.02


class LayerSize(NamedTuple):
    """What the time of a layer's step depends on, beside its density and the machine."""

    num_outputs: int
    num_inputs: int
    num_examples: int
    """Rows of a linear layer, or images of a convolution."""
    num_positions: int
    """Positions of the output in one image; 0 for a linear layer."""
    dtype: str
    """Name of the weights' type, e.g. "float32"."""

    def rounded(self) -> LayerSize:
        """Returns the size that is measured for it: a power of two of examples, and not more columns than needed."""
        most = max(_MOST_COLUMNS // max(self.num_positions, 1), 1)
        examples = min(1 << (max(self.num_examples, 1) - 1).bit_length(), 1 << (most.bit_length() - 1))
        return self._replace(num_examples=examples)

    def key(self) -> str:
        """Returns the name of the limit in the file: size and number of threads."""
        return "-".join(str(part) for part in (*self, torch.get_num_threads()))


def density_limit(size: LayerSize, folder: Path | None = None) -> float:
    """Returns the highest density, in [0, 0.5], at which a layer's step is faster with its active weights alone.

    Args:
        size: Size of the layer and its inputs.
        folder: Folder of the file of limits; the user's cache folder if unset.
    """
    file = (folder or _cache_folder()) / "density_limits.json"
    limits, machine, key = _read(file), _machine(), size.rounded().key()
    known = limits.get(machine, {}).get(key)
    if isinstance(known, int | float) and 0 <= known <= _MOST_LIMIT:
        return float(known)
    limit = _measure(size.rounded())
    _LOGGER.info("Measured a layer %s on %s: active weights alone are faster up to density %s.", key, machine, limit)
    # Read again: another process may have added limits while this one measured. Last writer wins for the same layer.
    limits = _read(file)
    limits.setdefault(machine, {}).setdefault(key, limit)
    _write(file, limits)
    return limit


def _measure(size: LayerSize) -> float:
    """Returns the density at which both ways take the same time, rounded to 3 digits."""
    with torch.random.fork_rng([]), torch.enable_grad(), torch.inference_mode(False):
        low, high = _DENSITIES
        ways = [(low, True), (high, True), (low, False), (_MASKED_IN_PLACE, False)]
        times = _seconds([_step_of(size, density, is_active) for density, is_active in ways])
    slope = (times[1] - times[0]) / (high - low)
    offset = times[0] - slope * low

    def limit_below(masked: float) -> float:
        if slope <= 0:
            return _MOST_LIMIT if times[0] < masked else 0.0
        return min(max((masked - offset) / slope, 0.0), _MOST_LIMIT)

    # Up to this density a masked step is made on gathered values, above it in place, which takes longer.
    limit = limit_below(times[2])
    return round(limit if limit < GATHERED_DENSITY else max(limit_below(times[3]), GATHERED_DENSITY), 3)


class _Source:
    def __init__(self, masked_step: MaskedStep) -> None:
        self._masked_step = masked_step

    def active_weights(self, name: str) -> ActiveWeights | None:
        return self._masked_step.layer_masks[name].active

    def gradient_form(self) -> GradientForm:
        return "active"

    def observe(self, name: str, inputs: Tensor, is_linear: bool) -> None:
        """Does nothing: the layer is measured already."""


def _step_of(size: LayerSize, density: float, computes_active: bool) -> Callable[[], None]:
    """Returns a training step of one layer of this size with random weights and inputs."""
    dtype = getattr(torch, size.dtype)
    module: Module
    if size.num_positions:
        module = nn.Conv1d(size.num_inputs, size.num_outputs, 1, dtype=dtype)
        inputs = torch.randn(size.num_examples, size.num_inputs, size.num_positions, dtype=dtype, requires_grad=True)
    else:
        module = nn.Linear(size.num_inputs, size.num_outputs, dtype=dtype)
        inputs = torch.randn(size.num_examples, size.num_inputs, dtype=dtype, requires_grad=True)
    weight = module.get_parameter("weight")
    optimizer = SGD(module.parameters(), lr=1e-3, momentum=0.9, fused=True)
    masked_step = MaskedStep(optimizer, {"weight": weight}, computes_active=lambda name, count: computes_active)
    masked_step.set_masks({"weight": torch.rand(weight.shape) < density}, exchanging=False)
    if computes_active:
        module.__dict__["forward"] = ActiveForward(module, {"weight": "weight"}, _Source(masked_step))
    outgoing = torch.randn_like(module(inputs)).detach()

    def step() -> None:
        optimizer.zero_grad()
        inputs.grad = None
        module(inputs).backward(outgoing)
        optimizer.step()

    return step


def _seconds(steps: list[Callable[[], None]]) -> list[float]:
    """Returns the least seconds of each step, measured in turns: noise only adds."""
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(_TURNS):
        for step, some in zip(steps, times, strict=True):
            count, began = 0, time.perf_counter()
            while not count or time.perf_counter() - began < _LEAST_SECONDS:
                step()
                count += 1
            some.append((time.perf_counter() - began) / count)
    return [min(some) for some in times]


def _machine() -> str:
    """Returns the kind of this machine, for the file of limits: processor and version of torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, torch {torch.__version__}"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suptickets_ray"


def _read(file: Path) -> dict[str, dict[str, float]]:
    """Returns the limits by machine and layer; nothing if the file is missing or damaged."""
    try:
        limits = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(limits, dict):
        return {}
    return {machine: dict(some) for machine, some in limits.items() if isinstance(some, dict)}


def _write(file: Path, limits: dict[str, dict[str, float]]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs a measurement in each run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            json.dump(limits, temporary, indent=1, sort_keys=True)
        Path(temporary.name).replace(file)
    except OSError as error:
        _LOGGER.warning("Cannot keep the measured limits of layers in %s: %s.", file, error)

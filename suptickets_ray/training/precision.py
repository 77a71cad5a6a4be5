"""Chooses the precision of training by a short measurement of the recipe's own step."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Literal

import torch

from suptickets_ray.config import Config, TrainConfig
from suptickets_ray.seeding import derive_seed
from suptickets_ray.training.data import Splits
from suptickets_ray.training.determinism import worker_determinism
from suptickets_ray.training.loop import backward, build_learner, update

Precision = Literal["float32", "bfloat16"]
_NUM_STEPS = 3
_MAX_EXAMPLES = 64
"""Examples of a measured step at most: the ratio of two precisions hardly depends on it."""
_LEAST_GAIN = 0.9
"""bfloat16 is chosen if its step takes at most this fraction of float32's, because it costs accuracy of its own."""


def fastest_precision(config: Config, splits: Splits) -> tuple[Precision, bool]:
    """Returns the faster of float32 and bfloat16 for the recipe's step on this machine, and whether channels come last.

    bfloat16 is measured only where the processor or the GPU computes with it. Tickets are float32 in any case.

    Args:
        config: The recipe, with train.precision "auto".
        splits: Its data.

    Raises:
        ValueError: If the recipe requests GPUs, and this machine has none to measure on.
    """
    if config.cluster.gpus_per_worker and not torch.cuda.is_available():
        raise ValueError(
            "train.precision 'auto' must be measured on a GPU, and this machine has none; got "
            f"cluster.gpus_per_worker={config.cluster.gpus_per_worker:g}. Set train.precision=bfloat16 or float32."
        )
    device = torch.device("cuda" if config.cluster.gpus_per_worker else "cpu")
    own_layout = config.train.channels_last
    if not computes_bfloat16(device):
        return "float32", own_layout
    has_images = len(splits.sample_shape) == 3
    exact = replace(config.train, precision="float32")
    fast = replace(config.train, precision="bfloat16", channels_last=own_layout or has_images)
    seconds = {section.precision: step_seconds(config, splits, section, device) for section in (exact, fast)}
    if seconds["bfloat16"] <= _LEAST_GAIN * seconds["float32"]:
        return "bfloat16", fast.channels_last
    return "float32", own_layout


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: AVX512-BF16 or AMX on a processor."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for a processor's instructions that all supported versions know.
    known = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(ask()) for ask in known if ask is not None)


def step_seconds(config: Config, splits: Splits, section: TrainConfig, device: torch.device) -> float:
    """Returns the median seconds of a training step with other settings of `train`, after one that does not count."""
    config = replace(config, train=replace(section, compile=False))
    learner = build_learner(config, splits, device)
    num_examples = min(config.data.batch_size, _MAX_EXAMPLES, len(splits.train))
    inputs, labels = next(iter(splits.train.epoch(derive_seed(config.seed, "precision"), [num_examples], device)))
    seconds = []
    with worker_determinism(config):
        learner.model.train()
        for _ in range(1 + _NUM_STEPS):
            began = time.perf_counter()
            learner.optimizer.zero_grad()
            backward(learner, learner.model, config.train, inputs, labels, 1 / num_examples)
            update(learner, config.train)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])

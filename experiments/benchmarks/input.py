"""How fast do training images arrive, beside torchvision's per-image pipeline, and what share of a step is that?

    python experiments/benchmarks/input.py [TURNS]

CIFAR's shapes: 32x32 colour images, a random crop from 4 reflected pixels, a flip, and normalisation; batches of 128.
Both take turns, each with this machine's cores: ours in one thread, torchvision's in a DataLoader with 2 workers.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from suptickets_ray.training.data.augmentation import Augmentation, Scaling
from suptickets_ray.training.data.examples import Examples
from suptickets_ray.training.models import MODELS

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NUM_IMAGES, BATCH_SIZE, WORKERS = 50_000, 128, 2
TIMED_BATCHES = 60


class PerImage(Dataset[tuple[Tensor, int]]):
    """The usual pipeline: each image through PIL."""

    def __init__(self, images: np.ndarray[Any, Any], labels: list[int]) -> None:
        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def main() -> None:
    """Measures both in turns and prints medians and their ratio."""
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (NUM_IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (NUM_IMAGES,), generator=generator)
    ours = Examples((images, labels), None, None, Scaling(MEAN, STD), Augmentation(4, "reflect", True))
    usual = PerImage(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
    loader = DataLoader(usual, BATCH_SIZE, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True)
    sum(1 for _, _ in zip(loader, range(5), strict=False))  # starts the workers
    rates: dict[str, list[float]] = {"ours": [], "usual": []}
    for turn in range(turns):
        batches = ours.epoch(turn, [BATCH_SIZE] * (NUM_IMAGES // BATCH_SIZE))
        rates["ours"].append(_images_per_second(batches))
        iterator = iter(loader)
        rates["usual"].append(_images_per_second(iterator))
        del iterator
    model = MODELS["resnet20"](sample_shape=(3, 32, 32), num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps, inputs = [], []
    batches = ours.epoch(0, [BATCH_SIZE] * 6)
    for _ in range(6):
        began = time.perf_counter()
        images_of_batch, labels_of_batch = next(batches)
        arrived = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(images_of_batch), labels_of_batch).backward()
        optimizer.step()
        inputs.append(arrived - began)
        steps.append(time.perf_counter() - began)
    console = Console(highlight=False, soft_wrap=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["usual"], strict=True)]
    console.print(f"ours, one thread: {medians['ours']:,.0f} images/s")
    console.print(f"torchvision's PIL pipeline, DataLoader with {WORKERS} workers: {medians['usual']:,.0f} images/s")
    console.print(f"ratio, median of {turns} turns: {statistics.median(ratios):.1f} (target >= 10)")
    share = statistics.median(inputs[1:]) / statistics.median(steps[1:])
    console.print(f"share of a ResNet-20 training step, one thread: {share:.2%} (target < 5 %)")


def _images_per_second(batches: Any) -> float:
    next(batches)
    began = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        next(batches)
    return TIMED_BATCHES * BATCH_SIZE / (time.perf_counter() - began)


if __name__ == "__main__":
    main()

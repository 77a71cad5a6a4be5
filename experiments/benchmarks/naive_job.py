"""Sup-tickets in one process, written as public research code is: what `end_to_end.py` compares the product with.

    python experiments/benchmarks/naive_job.py DATA FOLDER [--loop sparse|dense] [--epochs N] [--cycles K] ...

PIL images through a DataLoader with 2 workers, float masks that are multiplied with weights and momentum after every
step, full sorts at topology updates, tickets through files, a BatchNorm pass and an evaluation at every merge, cycles
one after another, and all cores as torch's threads. `--loop dense` is the floor instead: a plain dense loop for as many
epochs with all images in memory, without validation. Prints what was done as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from suptickets_ray.sparse import layer_densities
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.tickets.schedule import triangular
from suptickets_ray.training.models import build_model  # the same network; nothing else here is the product's

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Images(Dataset[tuple[Tensor, int]]):
    """CIFAR-100's files as PIL images behind a transform."""

    def __init__(self, folder: str, part: str, transform: Any) -> None:
        # Written by end_to_end.py on this machine: nothing foreign is unpickled.
        content = pickle.loads((Path(folder) / "cifar-100-python" / part).read_bytes(), encoding="latin1")  # noqa: S301
        self.pixels = np.vstack(content["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels, self.transform = content["fine_labels"], transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class Masks:
    """Float masks of all layers; updates as RigL's."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, density: float) -> None:
        self.optimizer = optimizer
        self.weights = maskable_parameters(model)
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        densities = layer_densities(shapes, density, "erk")
        self.masks = {name: (torch.rand(shape) < densities[name]).float() for name, shape in shapes.items()}
        self.density = density
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Multiplies weights and momentum by their masks."""
        for name, weight in self.weights.items():
            weight.data = weight.data * self.masks[name]
            state = self.optimizer.state[weight]
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"] = state["momentum_buffer"] * self.masks[name]

    @torch.no_grad()
    def drop_and_grow(self, fraction: float) -> None:
        """Exchanges a fraction of every layer by two full sorts."""
        for name, weight in self.weights.items():
            mask, gradient = self.masks[name], weight.grad
            assert gradient is not None
            num_active = int(mask.sum().item())
            num_dropped = math.ceil(fraction * num_active)
            order = torch.sort(weight.data.abs().view(-1))[1]
            mask.view(-1)[order[: mask.numel() - num_active + num_dropped]] = 0.0
            order = torch.sort((gradient.abs() * (mask == 0).float()).flatten(), descending=True)[1]
            mask.view(-1)[order[:num_dropped]] = 1.0
        self.apply()

    def measured_density(self) -> float:
        """Returns the fraction of non-zero weights."""
        active = sum(int((weight != 0).sum().item()) for weight in self.weights.values())
        return active / sum(weight.numel() for weight in self.weights.values())

    @torch.no_grad()
    def prune(self) -> None:
        """Prunes the present weights to the density by one global sort."""
        scores = torch.cat([weight.abs().view(-1) for weight in self.weights.values()])
        threshold = torch.sort(scores, descending=True)[0][int(self.density * scores.numel()) - 1]
        for name, weight in self.weights.items():
            self.masks[name] = (weight.abs() >= threshold).float()


class Job:
    """The whole job of one process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.steps = options, 0
        plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        augmented = transforms.Compose(
            [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), *plain.transforms]
        )
        order = torch.randperm(options.train + options.validation, generator=torch.Generator().manual_seed(0)).tolist()
        batches: dict[str, Any] = {"batch_size": options.batch_size, "num_workers": 2}
        train = Subset(Images(options.data, "train", augmented), order[: options.train])
        validation = Subset(Images(options.data, "train", plain), order[options.train :])
        self.train_loader = DataLoader(train, shuffle=True, **batches)
        self.validation_loader = DataLoader(validation, **batches)
        self.test_loader = DataLoader(Images(options.data, "test", plain), **batches)
        self.model = build_model_of(options)
        self.optimizer = sgd(self.model)
        self.masks = Masks(self.model, self.optimizer, options.density)

    def run(self) -> dict[str, Any]:
        """Runs pretraining and all cycles. Returns the amount of work, and the seconds of each part."""
        options, began = self.options, time.perf_counter()
        pretrain_epochs = options.epochs - options.cycles * options.cycle_epochs
        for epoch in range(pretrain_epochs):
            self.epoch(lambda _, epoch=epoch: 0.1 * 0.1 ** sum(epoch >= pretrain_epochs * part for part in (0.5, 0.75)))
            self.evaluate(self.validation_loader)
        pretrained = time.perf_counter()
        folder = Path(options.folder)
        self.save(folder / "ticket-0.pt")
        merging, densities = 0.0, []
        for cycle in range(options.cycles):
            self.explore()
            for epoch in range(options.cycle_epochs):
                self.epoch(
                    lambda part, epoch=epoch: triangular((epoch + part) / options.cycle_epochs, 0.001, 0.005), False
                )
                self.evaluate(self.validation_loader)
            self.save(folder / f"ticket-{cycle + 1}.pt")
            started = time.perf_counter()
            densities.append(self.merge([folder / f"ticket-{number}.pt" for number in range(cycle + 2)]))
            merging += time.perf_counter() - started
        ended = time.perf_counter()
        return {
            "epochs": options.epochs,
            "steps": self.steps,
            "tickets": options.cycles,
            "density": densities[-1],
            "ticket_density": self.masks.measured_density(),
            "seconds": {"pretrain": pretrained - began, "explore": ended - pretrained - merging, "merge": merging},
        }

    def epoch(self, rate: Any, updates: bool = True) -> None:
        """Trains one epoch; `rate` gives the learning rate for the part of the epoch that is over."""
        self.model.train()
        for number, (images, labels) in enumerate(self.train_loader):
            for group in self.optimizer.param_groups:
                group["lr"] = rate(number / len(self.train_loader))
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(images), labels)
            loss.backward()
            self.optimizer.step()
            self.masks.apply()
            loss.item()
            self.steps += 1
            if updates and self.steps % self.options.interval == 0:
                self.masks.drop_and_grow(0.5)

    def explore(self) -> None:
        """Exchanges half of the connections by a fresh gradient of one batch."""
        images, labels = next(iter(self.train_loader))
        self.optimizer.zero_grad()
        cross_entropy(self.model(images), labels).backward()
        self.masks.drop_and_grow(0.5)

    @torch.no_grad()
    def evaluate(self, loader: Any, model: nn.Module | None = None) -> float:
        """Returns the accuracy on a loader, a fraction."""
        model = model or self.model
        model.eval()
        right = sum(int((model(images).argmax(1) == labels).sum().item()) for images, labels in loader)
        return right / len(loader.dataset)

    def save(self, path: Path) -> None:
        """Writes a ticket."""
        torch.save({"state_dict": self.model.state_dict()}, path)

    @torch.no_grad()
    def merge(self, paths: list[Path]) -> float:
        """Averages all tickets so far from their files, prunes, renews BatchNorm, evaluates. Returns the density."""
        states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
        mean = {
            key: sum(state[key] for state in states) / len(states) if newest.is_floating_point() else newest
            for key, newest in states[-1].items()
        }
        model = build_model_of(self.options)
        model.load_state_dict(mean)
        merged = Masks(model, sgd(model), self.options.density)
        model.load_state_dict(mean)
        merged.prune()
        merged.apply()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        for images, _ in self.train_loader:
            model(images)
        self.evaluate(self.test_loader, model)
        return merged.measured_density()


def build_model_of(options: argparse.Namespace) -> nn.Module:
    """Returns the network of the comparison."""
    from suptickets_ray.config import ModelConfig

    return build_model(ModelConfig(name=options.model), (3, 32, 32), 100)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of the comparison."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def dense_loop(options: argparse.Namespace) -> dict[str, Any]:
    """The floor: forward, backward and fused SGD on images in memory; nothing else."""
    images, labels = in_memory(options)
    model = build_model_of(options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    began, steps = time.perf_counter(), 0
    for _ in range(options.epochs):
        for part in batches_of(len(images), options.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
            steps += 1
    return {"epochs": options.epochs, "steps": steps, "seconds": {"train": time.perf_counter() - began}}


def in_memory(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Returns the training images, normalized, and their labels."""
    images = Images(options.data, "train", None)
    pixels = torch.from_numpy(images.pixels[: options.train].copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, torch.tensor(images.labels[: options.train])


def batches_of(size: int, batch_size: int) -> Iterator[Tensor]:
    """Yields the indices of an epoch's batches in random order."""
    yield from torch.randperm(size).split(batch_size)


def main() -> None:
    """Runs the job and prints what it did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder")
    parser.add_argument("--loop", choices=("sparse", "dense"), default="sparse")
    parser.add_argument("--model", default="resnet32")
    for name, value in {"train": 2048, "validation": 512, "epochs": 16, "cycles": 2, "cycle-epochs": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--interval", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.1)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    done = dense_loop(options) if options.loop == "dense" else Job(options).run()
    sys.stdout.write(json.dumps(done) + "\n")


if __name__ == "__main__":
    main()

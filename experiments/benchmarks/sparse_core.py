"""What sparse training costs on top of dense training: this package beside a naive twin, on one thread of the CPU.

    python experiments/benchmarks/sparse_core.py [--density 0.05] [--repeats 7]

The network is a ResNet-50 for 100 classes with random weights and gradients; nothing is trained. The twin has the usual
semantics of public code: float masks, each tensor multiplied by its mask after the step, momentum included; full sorts
for drop-and-grow; one sorted top-k over all weights for global pruning. Both are measured in turns in one run, and the
ratios of medians are what is printed: absolute times depend on the machine and on who else uses it.
"""

from __future__ import annotations

import argparse

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from timing import seconds_of
from torch import Tensor, nn

from suptickets_ray.sparse import Sparsifier, prune_to_density
from suptickets_ray.sparse.maskable import maskable_parameters

TARGETS = (0.5, 1.15, 0.1, 0.25)
LR, MOMENTUM, WEIGHT_DECAY, FRACTION = 0.1, 0.9, 5e-4, 0.3


class NaiveTwin:
    """Masked training as it is usually written."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor]) -> None:
        self.optimizer = optimizer
        self.weights = {name: parameter for name, parameter in model.named_parameters() if name in masks}
        self.masks = {name: mask.float() for name, mask in masks.items()}
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        for name, weight in self.weights.items():
            weight.data = weight.data * self.masks[name]
            if "momentum_buffer" in self.optimizer.state[weight]:
                state = self.optimizer.state[weight]
                state["momentum_buffer"] = state["momentum_buffer"] * self.masks[name]

    def step(self) -> None:
        """A dense step, then everything is multiplied by its mask."""
        self.optimizer.step()
        self._apply()

    @torch.no_grad()
    def drop_and_grow(self, fraction: float) -> None:
        """Exchanges a share of each layer by two full sorts."""
        for name, weight in self.weights.items():
            mask = self.masks[name]
            num_active = int(mask.sum().item())
            num_dropped = -int(-fraction * num_active // 1)
            order = torch.sort(torch.abs(weight.data.view(-1)))[1]
            mask.view(-1)[order[: mask.numel() - num_active + num_dropped]] = 0.0
            assert weight.grad is not None
            gradient = weight.grad * (mask == 0).float()
            order = torch.sort(torch.abs(gradient).flatten(), descending=True)[1]
            mask.view(-1)[order[:num_dropped]] = 1.0
        self._apply()

    @torch.no_grad()
    def prune(self, density: float) -> dict[str, Tensor]:
        """One threshold over all weights from a sorted top-k."""
        scores = torch.cat([torch.abs(weight).flatten() for weight in self.weights.values()])
        threshold = torch.topk(scores, int(density * len(scores)), sorted=True)[0][-1]
        return {name: (torch.abs(weight) > threshold).float() for name, weight in self.weights.items()}


def build(seed: int = 0) -> nn.Module:
    """A ResNet-50 for 100 classes with random weights, all on one scale, and random gradients."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet50(num_classes=100)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
        parameter.detach().normal_()
    return model


def sgd(model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of the published experiments."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused)


def measure(density: float, repeats: int) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Median seconds of each pair, ours first, and bytes of masks per weight."""
    model, plain, dense = build(), build(), build()
    optimizer, plain_optimizer, dense_optimizer = (
        sgd(model, fused=True),
        sgd(plain, fused=False),
        sgd(dense, fused=True),
    )
    sparsifier = Sparsifier(
        model,
        optimizer,
        "rigl",
        density=density,
        total_steps=10**9,
        update_interval_steps=10**6,
        generator=torch.Generator().manual_seed(0),
    )
    twin = NaiveTwin(plain, plain_optimizer, sparsifier.masks)

    def masked_step() -> None:
        optimizer.step()
        sparsifier.step()

    @torch.no_grad()
    def redraw() -> None:
        """As if trained: without it what was grown just before would still be 0, and gradients off the masks, too."""
        for net, masks in ((model, sparsifier.masks), (plain, twin.masks)):
            for name, mask in masks.items():
                weight = net.get_parameter(name)
                weight.normal_().mul_(mask)
                assert weight.grad is not None
                weight.grad.normal_()

    unpruned = {name: parameter.detach() for name, parameter in maskable_parameters(build(1)).items()}
    rival = NaiveTwin(build(1), sgd(plain, fused=False), {name: torch.ones_like(w) for name, w in unpruned.items()})
    pairs = [
        seconds_of({"masked step": masked_step, "naive masked step": twin.step}, repeats),
        seconds_of({"masked step": masked_step, "plain fused step": dense_optimizer.step}, repeats),
    ]
    exchanging = seconds_of(
        {
            "drop-and-grow": lambda: sparsifier.explore(FRACTION),
            "naive drop-and-grow": lambda: twin.drop_and_grow(FRACTION),
        },
        max(repeats // 2, 2),
        prepare=redraw,
    )
    pruning = seconds_of(
        {
            "global prune": lambda: prune_to_density(unpruned, density),
            "naive global prune": lambda: rival.prune(density),
        },
        repeats,
    )
    size = sum(weight.numel() for weight in unpruned.values())
    bytes_per_weight = {
        "masks": sum(layer_mask.num_bytes for layer_mask in sparsifier.layer_masks.values()) / size,
        "naive masks": 4.0,
    }
    return [*pairs, exchanging, pruning], bytes_per_weight


def main() -> None:
    """Measures and prints the ratios."""
    parser = argparse.ArgumentParser(description="Sparse training beside a naive twin, one thread, ratios of medians.")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs, bytes_per_weight = measure(options.density, options.repeats)
    table = Table(title=f"ResNet-50, 100 classes, density {options.density}, torch {torch.__version__}, one thread")
    for column in ("ours", "beside", "ms", "ms beside", "ratio", "target"):
        table.add_column(column, justify="left" if column in ("ours", "beside") else "right")
    for seconds, target in zip(pairs, TARGETS, strict=True):
        (ours, a), (other, b) = seconds.items()
        table.add_row(ours, other, f"{1000 * a:.1f}", f"{1000 * b:.1f}", f"{a / b:.3f}", f"<= {target}")
    console = Console(width=100)
    console.print(table)
    console.print(f"bytes of masks per weight: {bytes_per_weight['masks']:.2f} (twin 4, target <= 1)")


if __name__ == "__main__":
    main()

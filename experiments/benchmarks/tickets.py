"""What a ticket costs: its bytes, its coding, and one merge beside the naive way, on one thread of the CPU.

    python experiments/benchmarks/tickets.py [--density 0.05] [--repeats 7]

The network is a ResNet-50 for 100 classes with random weights; nothing is trained. The naive way is that of public
code: torch.save and torch.load of the dense network and its momentum, a float average of all weights, and one sorted
top-k over all of them. Both are measured in turns in one run, and the ratios of medians are what is printed.
"""

from __future__ import annotations

import argparse
import io

import torch
import torchvision
from rich.console import Console
from timing import seconds_of
from torch import Tensor

from suptickets_ray import Ticket
from suptickets_ray.sparse.distributions import layer_counts, random_masks
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.tickets.accumulator import start
from suptickets_ray.tickets.averaging import finish, merge
from suptickets_ray.tickets.rules import Rule


def network(density: float, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state and masks of a ResNet-50 for 100 classes at a density, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    model = torchvision.models.resnet50(num_classes=100)
    shapes = {name: tuple(parameter.shape) for name, parameter in maskable_parameters(model).items()}
    masks = random_masks(layer_counts(shapes, density), shapes, generator)
    state = model.state_dict()
    for name, mask in masks.items():
        state[name] = torch.randn(mask.shape, generator=generator) * mask
    return state, masks


def checkpoint(state: dict[str, Tensor]) -> bytes:
    """What public code keeps: the weights and as much momentum."""
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": state, "momentum": {name: torch.zeros_like(value) for name, value in state.items()}}, buffer
    )
    return buffer.getvalue()


def naive_merge(average: dict[str, Tensor], state: dict[str, Tensor], names: list[str], density: float) -> None:
    """Saves, loads, averages everything, and prunes by one sorted top-k."""
    loaded = torch.load(io.BytesIO(checkpoint(state)), weights_only=True)["state_dict"]
    merged = {
        name: value + (loaded[name] - value) / 2 if value.is_floating_point() else value
        for name, value in average.items()
    }
    scores = torch.cat([torch.abs(merged[name]).flatten() for name in names])
    threshold = torch.topk(scores, int(density * len(scores)), sorted=True)[0][-1]
    for name in names:
        mask = (torch.abs(merged[name]) > threshold).float()
        merged[name] = merged[name] * mask


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Bytes, coding and merging of tickets, one thread.")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    state, masks = network(options.density, 0)
    other_state, other_masks = network(options.density, 1)
    ticket, other = Ticket(state, masks, {"chain": 0}), Ticket(other_state, other_masks, {"chain": 1})
    encoded, dense_bytes = ticket.to_bytes(), sum(value.numel() * value.element_size() for value in state.values())
    copy_of = torch.cat([value.reshape(-1).float() for value in state.values()])
    rule, accumulator = Rule("cia", options.density), start(ticket)
    other_bytes = other.to_bytes()
    seconds = seconds_of(
        {
            "copy": copy_of.clone,
            "encode": lambda: Ticket(state, masks, {}).to_bytes(),
            "decode": lambda: Ticket.from_bytes(encoded).state_dict(),
            "merge": lambda: finish(merge(accumulator, Ticket.from_bytes(other_bytes), rule), rule, {}).to_bytes(),
            "naive merge": lambda: naive_merge(state, other_state, list(masks), options.density),
        },
        options.repeats,
    )
    console = Console(width=100, highlight=False)
    megabytes = 1e-6
    console.print(f"ResNet-50, 100 classes, density {options.density}, torch {torch.__version__}, one thread")
    console.print(
        f"bytes: ticket {len(encoded) * megabytes:.2f} MB (target <= 8.5 at density 0.05), dense state "
        f"{dense_bytes * megabytes:.1f} MB, torch checkpoint {len(checkpoint(state)) * megabytes:.1f} MB"
    )
    for name in ("encode", "decode"):
        speed = dense_bytes * megabytes / seconds[name]
        ratio = seconds[name] / seconds["copy"]
        console.print(f"{name}: {speed:.0f} MB/s of dense state, {ratio:.1f}x the time of a plain memory copy of it")
    ratio = seconds["merge"] / seconds["naive merge"]
    console.print(
        f"merge (read, merge, prune, write): {1000 * seconds['merge']:.0f} ms, naive "
        f"{1000 * seconds['naive merge']:.0f} ms, ratio {ratio:.3f} (target <= 0.15)"
    )


if __name__ == "__main__":
    main()

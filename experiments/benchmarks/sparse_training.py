"""What a step of sparse training costs on a CPU: products of active weights alone, beside masked and dense ones.

    python experiments/benchmarks/sparse_training.py [--networks mlp lenet_300_100] [--densities 0.05] [--turns 5]

A step is forward pass, loss, backward pass and optimizer step (SGD with momentum and weight decay) on random inputs.
The masks do not change within the measured steps. Measured in turns of a few steps in one process are

* dense: torch with its fused optimizer;
* masked, sparse, auto: `Sparsifier(..., compute=...)` with that optimizer; auto decides for each layer;
* rigl-torch and sparselab, where they are installed, on linear networks; rigl-torch masks, sparselab has own kernels.

Linear networks have one density in all layers but the last, which is dense; convolutional ones ERK's. Times are medians
of CPU time, summed over threads; ratios are to dense. Memory: parameters and optimizer state in bytes, and the peak of
a step above them, of sparse relative to dense.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timing import seconds_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from suptickets_ray.sparse import Sparsifier
from suptickets_ray.training.models import MODELS

NUM_CLASSES = 10
TURN_SECONDS = 0.05
Step = Callable[[], None]


class Encoder(nn.Module):
    """Four transformer layers of width 512 on sequences of 128 vectors, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.classifier = nn.Linear(512, NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, 128, 512) to (batch, classes)."""
        return self.classifier(self.encoder(inputs).mean(1))


NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], dict[str, Any]]] = {
    "mlp": (
        (784,),
        lambda: nn.Sequential(
            nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, NUM_CLASSES)
        ),
        {"distribution": "uniform", "dense_layers": ["last"]},
    ),
    "transformer": ((128, 512), Encoder, {"distribution": "uniform", "dense_layers": ["last"]}),
    "cifar_resnet50": ((3, 32, 32), lambda: MODELS["cifar_resnet50"]((3, 32, 32), NUM_CLASSES), {}),
    "resnet20": ((3, 32, 32), lambda: MODELS["resnet20"]((3, 32, 32), NUM_CLASSES), {}),
    "lenet_300_100": (
        (1, 28, 28),
        lambda: MODELS["lenet_300_100"]((1, 28, 28), NUM_CLASSES),
        {"distribution": "uniform", "dense_layers": ["last"]},
    ),
}
"""Shape of an example, what builds the network, and how its masks are drawn."""


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all contestants."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


class Contestant:
    """One network with what trains it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], object]) -> None:
        self.model, self.optimizer, self.after = model, optimizer, after

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()
        self.after()

    def num_bytes(self) -> int:
        """Bytes of parameters and optimizer state."""
        tensors = [*self.model.parameters(), *(v for state in self.optimizer.state.values() for v in state.values())]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def peak_bytes(self, inputs: Tensor, labels: Tensor) -> int:
        """Most memory that a step holds above what is held before it, in bytes."""
        self.optimizer.zero_grad()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.step(inputs, labels)
        held = peak = 0
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak


def dense(name: str) -> Contestant:
    """Plain training."""
    torch.manual_seed(0)
    model = NETWORKS[name][1]()
    return Contestant(model, sgd(model), lambda: None)


def sparsified(name: str, density: float, compute: str) -> Contestant:
    """Training with a Sparsifier."""
    contestant = dense(name)
    sparsifier = Sparsifier(
        contestant.model,
        contestant.optimizer,
        "static",
        density=density,
        total_steps=10**9,
        generator=torch.Generator().manual_seed(0),
        compute=compute,
        **NETWORKS[name][2],
    )
    contestant.after = sparsifier.step
    return contestant


def rigl_torch(name: str, density: float) -> Contestant:
    """Training with rigl-torch, which masks weights, gradients and momentum."""
    from rigl_torch.RigL import RigLScheduler

    contestant = dense(name)
    scheduler = RigLScheduler(
        contestant.model,
        contestant.optimizer,
        dense_allocation=density,
        ignore_linear_layers=False,  # its default leaves them dense; the first layer stays so
        T_end=10**9,
        delta=10**9,
    )
    contestant.after = scheduler
    return contestant


def sparselab(name: str, density: float) -> Contestant:
    """Training with sparselab's linear layers, which have kernels of their own."""
    import sparselab as library

    contestant = dense(name)
    linear = [(path, module) for path, module in contestant.model.named_modules() if type(module) is nn.Linear]
    for path, module in linear[:-1]:
        parent, _, leaf = path.rpartition(".")
        sparse = library.SparseLinear(module.in_features, module.out_features, sparsity=1 - density)
        setattr(contestant.model.get_submodule(parent), leaf, sparse)
    contestant.optimizer = torch.optim.SGD(contestant.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    return contestant


PEERS = {
    "rigl-torch": (rigl_torch, ("mlp", "lenet_300_100")),
    "sparselab": (sparselab, ("mlp", "lenet_300_100")),
}
"""Other libraries, by distribution, and the networks that they are measured on."""


def contestants_of(name: str, density: float, computes: list[str]) -> tuple[dict[str, Contestant], list[str]]:
    """All that can train a network, and a line for each peer that cannot."""
    found, missing = {"dense": dense(name)}, []
    for compute in computes:
        try:
            found[compute] = sparsified(name, density, compute)
        except ValueError as error:
            missing.append(f"{compute}: {error}")
    for peer, (build, networks) in PEERS.items():
        if name not in networks:
            continue
        try:
            importlib.metadata.version(peer)
            found[peer] = build(name, density)
        except Exception as error:  # noqa: BLE001 - whatever keeps a peer from running is said
            missing.append(f"{peer}: not run ({type(error).__name__}: {error})")
    return found, missing


def repeated(contestant: Contestant, inputs: Tensor, labels: Tensor, num_steps: int) -> Step:
    """A few steps in a row, as in training: the weights stay in the cache where they fit."""

    def run() -> None:
        for _ in range(num_steps):
            contestant.step(inputs, labels)

    return run


def measure(contestants: dict[str, Contestant], inputs: Tensor, labels: Tensor, turns: int) -> dict[str, float]:
    """Median CPU seconds of a step of each."""
    once = {name: repeated(each, inputs, labels, 1) for name, each in contestants.items()}
    num_steps = max(int(TURN_SECONDS / seconds_of(once, 2)["dense"]), 1)
    runs = {name: repeated(each, inputs, labels, num_steps) for name, each in contestants.items()}
    times = seconds_of(runs, turns, clock=time.process_time)
    return {name: seconds / num_steps for name, seconds in times.items()}


def processor() -> str:
    """Name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Steps of sparse training on a CPU, in turns, ratios of CPU time.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2, 0.1, 0.05, 0.02])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--computes", nargs="+", default=["masked", "sparse", "auto"])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    others = [*options.computes, *PEERS]
    header = ["network", "threads", "batch", "density", "dense ms", *others, "sparse layers", "state", "peak"]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{processor()}, torch {torch.__version__}; ratios to dense, medians of {options.turns} turns")
    # Row by row, because a long run may be cut off.
    console.print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    notes: list[str] = []
    for name in options.networks:
        shape = NETWORKS[name][0]
        for threads in options.threads:
            torch.set_num_threads(threads)
            for batch in options.batch_sizes:
                inputs, labels = torch.randn(batch, *shape), torch.randint(NUM_CLASSES, (batch,))
                for density in options.densities:
                    contestants, missing = contestants_of(name, density, options.computes)
                    notes += [note for note in missing if note not in notes]
                    times = measure(contestants, inputs, labels, options.turns)
                    cells = row(name, threads, batch, density, times, contestants, others, inputs, labels)
                    console.print("| " + " | ".join(cells) + " |")
    console.print("\n".join(notes))


def row(
    name: str,
    threads: int,
    batch: int,
    density: float,
    times: dict[str, float],
    contestants: dict[str, Contestant],
    others: list[str],
    inputs: Tensor,
    labels: Tensor,
) -> list[str]:
    """One row of the table."""
    ratios = [f"{times[other] / times['dense']:.2f}" if other in times else "-" for other in others]
    measured = contestants.get("sparse") or contestants["masked"]
    layers = sum("forward" in module.__dict__ for module in measured.model.modules())
    state = measured.num_bytes() / contestants["dense"].num_bytes()
    peak = measured.peak_bytes(inputs, labels) / contestants["dense"].peak_bytes(inputs, labels)
    ms = f"{1000 * times['dense']:.2f}"
    return [name, str(threads), str(batch), f"{density:g}", ms, *ratios, str(layers), f"{state:.2f}", f"{peak:.2f}"]


if __name__ == "__main__":
    main()

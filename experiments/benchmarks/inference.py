"""What sparsity gains at inference: milliseconds beside bytes and theoretical FLOPs, on one thread of the CPU.

    python experiments/benchmarks/inference.py [--networks digits lenet_300_100] [--densities 0.05] [--seconds 2]

needs, beside the package, `pip install 'suptickets-ray[export]'`. Nothing is trained: weights are random, masks are
random with ERK's counts. Measured in turns in one run, so that others on the machine disturb all alike, are

* dense: torch with the zeros in place, as after `Ticket.state_dict()`;
* torch CSR: the same modules with `weight.to_sparse_csr()`, where torch has the op: it has none for convolutions;
* sparse: `suptickets_ray.sparse.inference.compress`, whose logits are checked against the dense ones;
* onnxruntime: the dense graph, in which it also fuses BatchNorm and ReLU. It has no use for zeros: its one sparse
  product takes a graph's input, not its weights, and is slower.

Times are medians, speed-ups medians over rounds of the dense time over this one. Where no layer is replaced, sparse is
the dense network again: how far its speed-up is from 1 then says what the measurement cannot tell apart. FLOPs are
those of one example, as `sparse.statistics` counts them; files are state_dicts by torch.save, the ticket, and the ONNX
file.
"""

from __future__ import annotations

import argparse
import copy
import io
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from timing import seconds_of
from torch import Tensor, nn

from suptickets_ray import Ticket, load_config
from suptickets_ray.sparse.distributions import layer_counts, random_masks
from suptickets_ray.sparse.inference import SparseConv2d, SparseLinear, compress
from suptickets_ray.sparse.maskable import maskable_parameters
from suptickets_ray.sparse.statistics import count_uses
from suptickets_ray.training.models import MODELS, build_model

NUM_ROUNDS = 3
TURN_SECONDS = 2e-3
NUM_CLASSES = 10
CONTESTANTS = ("dense", "torch CSR", "sparse", "onnxruntime")
COLUMNS = (
    *("network", "density", "batch", "layers\nsparse"),
    *("ms\ndense", "ms torch\nCSR", "ms\nsparse", "ms onnx-\nruntime"),
    *("x torch\nCSR", "x\nsparse", "x onnx-\nruntime"),
    *("FLOPs\nfewer, x", "MFLOPs\ndense", "MFLOPs\nsparse"),
    *("MB\ndense", "MB\nsparse", "MB\nticket", "MB\nONNX"),
)
TOLERANCE = 1e-5

NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...]], nn.Module]]] = {
    "digits": (
        (1, 8, 8),
        lambda shape: build_model(
            load_config(Path(__file__).parents[1] / "digits.yaml").model, shape, num_classes=NUM_CLASSES
        ),
    ),
    "lenet_300_100": ((1, 28, 28), lambda shape: MODELS["lenet_300_100"](shape, NUM_CLASSES)),
    "cifar_mlp": ((3, 32, 32), lambda shape: MODELS["cifar_mlp"](shape, NUM_CLASSES)),
    "cifar_resnet50": ((3, 32, 32), lambda shape: MODELS["cifar_resnet50"](shape, NUM_CLASSES)),
    "linear_300x784": ((784,), lambda _: nn.Linear(784, 300)),
    "linear_1000x1000": ((1000,), lambda _: nn.Linear(1000, 1000)),
    "linear_4096x4096": ((4096,), lambda _: nn.Linear(4096, 4096)),
}
"""Shape of an example, and what builds the network: those of the papers, and single layers."""


def sparse_network(name: str, density: float) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with random weights and masks of a density, zeros off the masks, and these masks."""
    torch.manual_seed(0)
    shape, build = NETWORKS[name]
    model = build(shape).eval().requires_grad_(False)
    shapes = {name: tuple(parameter.shape) for name, parameter in maskable_parameters(model, check=False).items()}
    masks = random_masks(layer_counts(shapes, density), shapes, torch.Generator().manual_seed(0))
    for layer, mask in masks.items():
        model.get_parameter(layer).mul_(mask)
    return model, masks


def with_csr_weights(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module | None:
    """The network as torch itself offers it; None where a layer has no such op."""
    if any(mask.ndim != 2 for mask in masks.values()):
        return None
    model = copy.deepcopy(model)
    for name in masks:
        layer = model.get_submodule(name.rpartition(".")[0])
        layer.weight = nn.Parameter(layer.get_parameter("weight").to_sparse_csr(), requires_grad=False)
    return model


def onnx_bytes(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The dense network as an ONNX file, for batches of any size."""
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        model, (torch.zeros(2, *shape),), dynamo=True, dynamic_shapes=dynamic, verbose=False, optimize=True
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def runner(onnx_file: bytes) -> Callable[[Tensor], Tensor]:
    """What runs an ONNX file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {given.name: inputs.numpy()})[0])


def num_bytes(model: nn.Module) -> int:
    """Bytes of a network's state as a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def repeated(run: Callable[[Tensor], Tensor], inputs: Tensor, num_calls: int) -> Callable[[], None]:
    """Calls in a row, as a server does that has nothing else to do: the weights stay in the cache where they fit."""

    def call() -> None:
        for _ in range(num_calls):
            run(inputs)

    return call


def measure(
    networks: dict[str, Callable[[Tensor], Tensor]], inputs: Tensor, seconds: float
) -> dict[str, tuple[float, float]]:
    """Median seconds of each, and how many times as fast as the dense network it is."""
    once = seconds_of({name: repeated(run, inputs, 1) for name, run in networks.items()}, 1)
    num_calls = max(int(TURN_SECONDS / once["dense"]), 1)
    contestants = {name: repeated(run, inputs, num_calls) for name, run in networks.items()}
    repeats = max(int(seconds / NUM_ROUNDS / num_calls / sum(once.values())), 1)
    rounds = [seconds_of(contestants, repeats) for _ in range(NUM_ROUNDS)]
    return {
        name: (
            statistics.median(times[name] for times in rounds) / num_calls,
            statistics.median(times["dense"] / times[name] for times in rounds),
        )
        for name in contestants
    }


def rows(name: str, density: float, batch_sizes: list[int], seconds: float) -> Iterator[list[str]]:
    """Measures one network at one density: a row of `COLUMNS` for each batch size."""
    shape, _ = NETWORKS[name]
    model, masks = sparse_network(name, density)
    sparse, csr, onnx_file = compress(model), with_csr_weights(model, masks), onnx_bytes(model, shape)
    networks: dict[str, Callable[[Tensor], Tensor]] = {
        "dense": model,
        "sparse": sparse,
        "onnxruntime": runner(onnx_file),
    }
    if csr is not None:
        networks["torch CSR"] = csr
    uses = count_uses(model, torch.zeros(1, *shape))
    dense_flops = uses.dense_flops()
    flops = uses.forward_flops({layer: int(mask.sum()) for layer, mask in masks.items()})
    num_replaced = sum(isinstance(module, SparseLinear | SparseConv2d) for module in sparse.modules())
    files = [num_bytes(model), num_bytes(sparse), len(Ticket(model.state_dict(), masks, {}).to_bytes()), len(onnx_file)]
    for batch_size in batch_sizes:
        inputs = torch.randn(batch_size, *shape)
        logits = model(inputs)
        error = float((sparse(inputs) - logits).abs().max() / logits.abs().max().clamp(min=1))
        assert error <= TOLERANCE, f"{name} at {density}: logits differ by {error}"
        found = measure(networks, inputs, seconds)
        yield [
            *(name, f"{density:g}", str(batch_size), f"{num_replaced}/{len(masks)}"),
            *(f"{1000 * found[key][0]:.3g}" if key in found else "no op" for key in CONTESTANTS),
            *(f"{found[key][1]:.2f}" if key in found else "-" for key in CONTESTANTS[1:]),
            *(f"{dense_flops / flops:.1f}", f"{dense_flops / 1e6:.3g}", f"{flops / 1e6:.2g}"),
            *(f"{size / 1e6:.2g}" for size in files),
        ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Sparse inference beside dense, one thread.")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2, 0.1, 0.05, 0.02])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure for each row; slow networks take longer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # torch says that CSR is beta, and its exporter how to call it otherwise.
    warnings.simplefilter("ignore")
    table = Table(
        title=f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, one thread; x: as fast as dense",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    with torch.no_grad():  # torch's own CSR layers refuse inference_mode
        for name in options.networks:
            for density in options.densities:
                for row in rows(name, density, options.batch_sizes, options.seconds):
                    table.add_row(*row)
            table.add_section()
    Console(width=170, highlight=False).print(table)


if __name__ == "__main__":
    main()

"""Runs a sparse network on a CPU: a copy of the model stores and multiplies only the active weights.

`csr_product` has the kernels, which sparse training uses too. `experiments/benchmarks/inference.py` measures the gain,
and where there is none.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.functional import pad

from suptickets_ray.sparse.csr_product import DTYPES, compressed, multiply, multiply_vector
from suptickets_ray.sparse.maskable import unwrap

_MANY_COLUMNS = 64
"""Images are processed in groups of at least this many positions of the output; their windows then fit the cache."""


class SparseLinear(Module):
    """`nn.Linear` with only its active weights: (..., in) to (..., out), without gradients."""

    weight: Tensor
    """CSR of shape (out, in), with 32-bit indices."""
    bias: Tensor | None
    """(out,)."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", compressed(dense.weight))
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the output of the dense layer, up to the order of additions."""
        weight, bias = self.weight, self.bias
        num_outputs, num_inputs = weight.shape
        # A shortcut for one example: at this size a view costs as much as a thousand multiplications.
        if inputs.shape == (1, num_inputs):
            return multiply_vector(weight, inputs[0], bias)[None]
        outputs = multiply(weight, inputs.reshape(-1, num_inputs).t(), bias).t()
        return outputs.reshape(*inputs.shape[:-1], num_outputs)

    def extra_repr(self) -> str:
        """Shape and active weights, for `print(model)`."""
        return _summary(self.weight)


class SparseConv2d(Module):
    """`nn.Conv2d` with only its active weights: (batch, in, height, width) to (batch, out, ...), without gradients.

    The weights are multiplied with the windows of the image under the kernel. Large images are processed one by one, so
    that their windows stay in the cache.
    """

    weight: Tensor
    """CSR of shape (out, in * kh * kw), with 32-bit indices."""
    bias: Tensor | None
    """(out,)."""

    def __init__(self, dense: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(dense.padding, str), "the caller leaves such a layer dense"
        self.register_buffer("weight", compressed(dense.weight.flatten(1)))
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())
        self.kernel_size, self.stride, self.dilation = dense.kernel_size, dense.stride, dense.dilation
        self.padding = dense.padding

    def forward(self, images: Tensor) -> Tensor:
        """Returns the output of the dense layer, up to the order of additions; one image needs no batch dimension.

        Raises:
            ValueError: If the images have another number of channels, or are smaller than the kernel.
        """
        if images.ndim == 3:
            return self.forward(images[None])[0]
        geometry = zip(images.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=False)
        sizes = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in geometry]
        num_channels = self.weight.shape[1] // math.prod(self.kernel_size)
        # Strides ignore the bounds of an image: without this check, memory of other images would be read.
        if images.ndim != 4 or images.shape[1] != num_channels or min(sizes) < 1:
            raise ValueError(
                f"the images must be (batch, {num_channels}, height, width), not smaller than the kernel "
                f"{self.kernel_size}; got {tuple(images.shape)}."
            )
        (height, width), (ph, pw) = sizes, self.padding
        padded = pad(images, (pw, pw, ph, ph)) if ph or pw else images
        num_outputs, num_images = self.weight.shape[0], -(-_MANY_COLUMNS // (height * width))
        outputs = images.new_empty(len(images), num_outputs, height, width)
        for first in range(0, len(images), num_images):
            windows = self._windows(padded[first : first + num_images], height, width)
            product = multiply(self.weight, windows, self.bias).view(num_outputs, -1, height, width)
            if len(images) <= num_images:
                return product.transpose(0, 1)
            outputs[first : first + num_images] = product.transpose(0, 1)
        return outputs

    def _windows(self, padded: Tensor, height: int, width: int) -> Tensor:
        """Returns the inputs of each weight, (in * kh * kw, images * height * width); a view if the kernel is 1x1."""
        images, channels, rows, columns = padded.stride()
        (kh, kw), (sh, sw), (dh, dw) = self.kernel_size, self.stride, self.dilation
        shape = (padded.shape[1], kh, kw, len(padded), height, width)
        strides = (channels, rows * dh, columns * dw, images, rows * sh, columns * sw)
        return padded.as_strided(shape, strides).reshape(self.weight.shape[1], -1)

    def extra_repr(self) -> str:
        """Shape and active weights, for `print(model)`."""
        return f"{_summary(self.weight)}, kernel_size={self.kernel_size}, stride={self.stride}"


def compress(model: Module, max_density: float = 0.2, min_weights: int = 50_000) -> Module:
    """Returns a copy of a model for inference on the CPU, in which sparse layers store only their nonzero weights.

    The copy is in evaluation mode and has no gradients; the model does not change. `nn.Linear` and `nn.Conv2d` layers
    are replaced, under their names, by `SparseLinear` and `SparseConv2d`, whose `state_dict()` has CSR tensors as
    weights. These layers stay dense: layers that would not gain, subclasses, grouped convolutions, paddings other than
    a given number of zeros, layers with hooks, types other than float32 and float64, and layers that are not on the
    CPU.

    Args:
        model: A model with zeros off its masks, as from a `Sparsifier` or a `Ticket`; wrappers are removed.
        max_density: Maximum fraction of nonzero weights of a layer that is replaced, in [0, 1].
        min_weights: Minimum number of weights, active or not, of a linear layer that is replaced: in smaller layers the
            call costs more than the multiplication.

    Raises:
        ValueError: If `max_density` is out of range.
    """
    if not 0 <= max_density <= 1:
        raise ValueError(f"max_density must be in [0, 1]; got {max_density}.")
    # In a container, because the model itself may be a layer to replace.
    holder = nn.Sequential(copy.deepcopy(unwrap(model))).requires_grad_(False)
    replaced: dict[Module, Module] = {}
    for parent in [*holder.modules()]:
        # Its fast path reads the weights of its layers directly, and does not support CSR weights.
        if isinstance(parent, nn.TransformerEncoderLayer):
            continue
        for name, module in parent._modules.items():
            if not isinstance(module, nn.Linear | nn.Conv2d) or not _is_plain(module):
                continue
            # A layer that is used in several places stays shared.
            least = min_weights if isinstance(module, nn.Linear) else 0
            if module not in replaced and _gains(module.weight, max_density, least):
                replaced[module] = SparseLinear(module) if isinstance(module, nn.Linear) else SparseConv2d(module)
            parent._modules[name] = replaced.get(module, module)
    return holder.eval()[0]


def _is_plain(module: nn.Linear | nn.Conv2d) -> bool:
    if type(module) not in (nn.Linear, nn.Conv2d) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return True


def _gains(weight: Tensor, max_density: float, min_weights: int) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return False
    return weight.numel() >= min_weights and int(torch.count_nonzero(weight)) <= max_density * weight.numel()


def _summary(weight: Tensor) -> str:
    num_outputs, num_inputs = weight.shape
    return f"{num_inputs}, {num_outputs}, active={weight.values().numel()}"

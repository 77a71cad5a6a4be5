"""Runs torch code for a GPU without one: CPU tensors that pass for CUDA tensors, and an account of what a GPU would do.

Tensors stay real CPU tensors, so values, autograd, optimizers and hooks all compute. Their
storage says which ones pass for CUDA tensors, so views, `.data` and gradients follow. Two modes of torch do the rest:

* `_Python`, a TorchFunctionMode, sees what the program writes: `device="cuda"`, `tensor.device`, `tensor.numpy()`,
  `generator=`. It takes the device out of the call, and notes the result.
* `_Operators`, a TorchDispatchMode, sees every operator, also those of backward and of optimizers. It raises where a
  GPU would ("Expected all tensors to be on the same device"), and counts what makes the host wait for the GPU.

    with pretend_device() as account:
        train(torch.device("cuda"))
    print(account.table())

What it knows of CUDA is what torch's sources say: `aten/src/ATen/native/cuda/Copy.cu` (every copy between host and
device that is not non_blocking ends in cudaStreamSynchronize), `Nonzero.cu`, `CUDAScalar.cu`, `TensorIndexing` (a bool
index calls nonzero). What it cannot know: memory, streams, kernels, NCCL, cuDNN's bits, C++ code that asks for the
device below Python (DistributedDataParallel: build it outside, or call its hook by hand, with a future that is done,
as NCCL's is), other threads, and the pinned memory of (*): an unpinned non_blocking copy returns once the driver has
staged it, which for more than 64 KB may wait for the stream. On a real GPU, once one is at hand, the same test is
`torch.cuda.set_sync_debug_mode("error")` around a step.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

# Operators whose result has a size, or a Python value, that only the GPU knows: the host waits.
_ALWAYS_WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.item.default: "item",
    aten.is_nonzero.default: "item",
    aten.nonzero.default: "nonzero",
    aten.argwhere.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
    aten._assert_async.default: None,
}
# Operators that take tensors of two devices.
_MIXES = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.set_.source_Tensor,
    aten._has_compatible_shallow_copy_type.default,
    aten.result_type.Tensor,
    aten.is_same_size.default,
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# Under torch.use_deterministic_algorithms(True) these raise on CUDA (torch's own list); sizes of 1 are a mean there.
_NOT_DETERMINISTIC = {
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "avg_pool3d_backward",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "grid_sampler_2d_backward", "nll_loss2d_forward", "histc", "put_", "max_unpool2d",
}  # fmt: skip

_VIEWS = {
    "detach", "view", "t", "transpose", "slice", "select", "expand", "as_strided", "permute", "unsqueeze", "squeeze",
    "alias", "_unsafe_view", "split", "split_with_sizes", "unbind", "_reshape_alias", "unfold", "diagonal",
    "lift_fresh", "empty_like", "new_empty", "empty", "real", "movedim", "narrow", "view_as",
}  # fmt: skip
"""What launches no kernel."""


class MixedDevices(RuntimeError):
    """What CUDA would raise."""


@dataclass
class Account:
    """What would have happened on a GPU."""

    waits: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """(kind, place): how often the host waited for the GPU."""
    mixes: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """(operator, place): tensors of two devices in one operator; filled where `raises` is False."""
    copies: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """(kind, place): bytes between host and device."""
    launches: collections.Counter[str] = field(default_factory=collections.Counter)
    """Operator: calls with CUDA tensors, about one kernel each."""
    forbidden: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """(operator, place): what use_deterministic_algorithms(True) would refuse."""

    def clear(self) -> None:
        """Forgets all."""
        for counter in (self.waits, self.mixes, self.copies, self.launches, self.forbidden):
            counter.clear()

    @property
    def num_waits(self) -> int:
        """How often the host waited."""
        return sum(self.waits.values())

    @property
    def num_kernels(self) -> int:
        """About how many kernels were launched: operators that are no views; one of cuDNN or foreach counts as one."""
        return sum(n for name, n in self.launches.items() if name.split(".")[1] not in _VIEWS)

    def table(self, per: float = 1.0) -> str:
        """What was counted, divided by `per`, e.g. the number of steps."""
        lines = [f"{self.num_waits / per:9.2f}  waits for the GPU"]
        lines += [f"{n / per:9.2f}    {kind:28s} {place}" for (kind, place), n in self.waits.most_common()]
        lines.append(f"{self.num_kernels / per:9.1f}  kernels, about")
        lines += [f"{n / per:9.0f}  bytes {kind:24s} {place}" for (kind, place), n in self.copies.most_common(8)]
        lines += [f"{n / per:9.2f}  MIXED {kind:24s} {place}" for (kind, place), n in self.mixes.most_common()]
        lines += [f"{n / per:9.2f}  NOT DETERMINISTIC {k:12s} {p}" for (k, p), n in self.forbidden.most_common()]
        return "\n".join(lines)


class _Tags:
    """Which storages pass for CUDA memory. A weak reference keeps an address from being used again."""

    def __init__(self) -> None:
        self._on_device: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._calls = 0

    @staticmethod
    def _find(table: dict[int, StorageWeakRef], tensor: torch.Tensor) -> bool:
        try:
            return tensor.untyped_storage()._cdata in table
        except (NotImplementedError, RuntimeError):  # sparse, meta, functional
            return False

    def has(self, tensor: torch.Tensor) -> bool:
        return self._find(self._on_device, tensor)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return self._find(self._pinned, tensor)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._put(self._on_device, tensor)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._put(self._pinned, tensor)

    def _put(self, table: dict[int, StorageWeakRef], tensor: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            storage = tensor.untyped_storage()
            table[storage._cdata] = StorageWeakRef(storage)
        self._calls += 1
        if self._calls % 4096 == 0:
            for some in (self._on_device, self._pinned):
                for address in [address for address, reference in some.items() if reference.expired()]:
                    del some[address]
        return tensor

    def drop(self, tensor: torch.Tensor) -> None:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            self._on_device.pop(tensor.untyped_storage()._cdata, None)


def _place(package: str) -> str:
    """The innermost line of the package that is being checked."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if package in name and name != __file__:
            return f"{name.rpartition(package + '/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


class _Operators(TorchDispatchMode):
    def __init__(self, tags: _Tags, account: Account, package: str, raises: bool) -> None:
        super().__init__()
        self.tags, self.account, self.package, self.raises = tags, account, package, raises

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
        on_gpu = [self.tags.has(tensor) for tensor in tensors]
        if not any(on_gpu):
            return func(*args, **kwargs)
        self.account.launches[str(func)] += 1
        self._check(func, args, tensors, on_gpu)
        self._count(func, args, kwargs, tensors)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            self._mix(func, f"Expected a 'cuda' device type for generator but found 'cpu' in {func}")
        result = func(*args, **kwargs)
        for item in tree_flatten(result)[0]:
            if isinstance(item, torch.Tensor) and not any(item is tensor for tensor in tensors):
                self.tags.put(item)
        return result

    def _check(self, func: Any, args: Any, tensors: list[torch.Tensor], on_gpu: list[bool]) -> None:
        if all(on_gpu) or func in _MIXES:
            return
        others = [tensor for tensor, has in zip(tensors, on_gpu, strict=True) if not has]
        if func in _INDEXING and self.tags.has(args[0]):
            # Indices may lie on the CPU: they are copied, and the host waits for that.
            others = [t for t in others if not any(t is index for index in args[1])]
            for index in args[1]:
                if isinstance(index, torch.Tensor) and not self.tags.has(index):
                    self._wait("copy of CPU index")
        others = [tensor for tensor in others if tensor.dim()]  # a number on the CPU goes with everything
        if others:
            shapes = [tuple(tensor.shape) for tensor in others]
            self._mix(func, f"Expected all tensors to be on the same device, cuda:0 and cpu: {func}, CPU {shapes}")

    def _count(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> None:
        kind = _ALWAYS_WAITS.get(func)
        if kind is not None:
            self._wait(kind)
        if func in _INDEXING:
            bools = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
            for _ in bools:
                self._wait("bool index (nonzero)")
        name = func.overloadpacket.__name__
        if name in _NOT_DETERMINISTIC:
            self.account.forbidden[name, _place(self.package)] += 1
        if func is aten.copy_.default:
            self.copied(args[1], to_gpu=self.tags.has(args[0]), non_blocking=len(args) > 2 and args[2])

    def copied(self, source: torch.Tensor, *, to_gpu: bool, non_blocking: bool) -> None:
        """Counts a copy: its bytes, and whether the host waits."""
        from_gpu = self.tags.has(source)
        if from_gpu == to_gpu:
            return
        kind = "host to device" if to_gpu else "device to host"
        self.account.copies[kind, _place(self.package)] += source.numel() * source.element_size()
        if not non_blocking:
            self._wait(f"blocking copy, {kind}")
        elif not self.tags.is_pinned(source) and to_gpu:
            self._wait("unpinned non_blocking copy (*)")

    def _wait(self, kind: str) -> None:
        self.account.waits[kind, _place(self.package)] += 1

    def _mix(self, func: Any, text: str) -> None:
        self.account.mixes[str(func), _place(self.package)] += 1
        if self.raises:
            raise MixedDevices(text)


def _is_cuda(device: Any) -> bool | None:
    """None where no device is named."""
    if device is None:
        return None
    if isinstance(device, int):
        return True
    return torch.device(device).type == "cuda"


_MOVES = {"to", "cuda", "cpu", "numpy", "__array__", "pin_memory", "is_pinned", "tolist", "get_device", "type_as"}


class _Python(TorchFunctionMode):
    def __init__(self, tags: _Tags, account: Account, operators: _Operators) -> None:
        super().__init__()
        self.tags, self.account, self.operators = tags, account, operators

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if isinstance(owner, types.GetSetDescriptorType) and first is not None:
            return self._attribute(func, owner.__name__, name, first, args, kwargs)
        if first is not None and name in _MOVES:
            return self._moved(func, name, first, args, kwargs)
        wanted = _is_cuda(kwargs.get("device"))
        if wanted is None:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if wanted and generator is not None and generator.device.type == "cpu":
            self.operators._mix(func, f"Expected a 'cuda' device type for generator but found 'cpu': {name}")
        kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            if wanted and not self.tags.has(result):
                if name in ("tensor", "as_tensor", "asarray", "scalar_tensor") and not self._has_no_data(name):
                    self.operators._wait("blocking copy, host to device")
                self.tags.put(result)
            elif not wanted and result is not first:
                self.tags.drop(result)
        return result

    @staticmethod
    def _has_no_data(name: str) -> bool:
        return name == "scalar_tensor"

    def _attribute(self, func: Any, attribute: str, access: str, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
        if access == "__get__" and self.tags.has(tensor):
            if attribute == "device":
                return CUDA
            if attribute == "is_cuda":
                return True
            if attribute == "is_cpu":
                return False
        return func(*args, **kwargs)

    def _moved(self, func: Any, name: str, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
        is_on_gpu = self.tags.has(tensor)
        if name in ("numpy", "__array__"):
            if is_on_gpu:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            return func(*args, **kwargs)
        if name == "get_device":
            return 0 if is_on_gpu else -1
        if name == "tolist":
            if is_on_gpu:
                self.operators._wait("tolist")
            return func(*args, **kwargs)
        if name == "pin_memory":
            return self.tags.pin(tensor.clone())
        if name == "is_pinned":
            return self.tags.is_pinned(tensor)
        if name == "cuda":
            wanted, rest = True, list(args[1:])
        elif name == "cpu":
            wanted, rest = False, list(args[1:])
        elif name == "type_as":
            wanted, rest = self.tags.has(args[1]), list(args[1:])
        else:
            wanted, rest = _is_cuda(kwargs.pop("device", None)), []
            for argument in args[1:]:
                if isinstance(argument, torch.Tensor):
                    wanted, kwargs["dtype"] = self.tags.has(argument), argument.dtype
                elif isinstance(argument, (torch.device, str)):
                    wanted = _is_cuda(argument)
                else:
                    rest.append(argument)
            if "other" in kwargs:
                other = kwargs.pop("other")
                wanted, kwargs["dtype"] = self.tags.has(other), other.dtype
        if wanted is None or wanted == is_on_gpu:
            result = tensor.to(*rest, **kwargs) if name == "to" and (rest or kwargs) else tensor
            if name == "to" and result is not tensor and is_on_gpu:
                self.tags.put(result)
            return result
        non_blocking = bool(kwargs.get("non_blocking")) or (name == "to" and any(a is True for a in rest[-2:-1]))
        self.operators.copied(tensor, to_gpu=wanted, non_blocking=non_blocking)
        if name == "to" and (rest or kwargs):
            kwargs["copy"] = True
            result = (
                tensor.to(*rest, **kwargs)
                if not rest or not isinstance(rest[-1], bool)
                else tensor.to(*[r for r in rest if not isinstance(r, bool)], copy=True)
            )
        else:
            result = tensor.clone()
        (self.tags.put if wanted else self.tags.drop)(result)
        return result


@contextlib.contextmanager
def pretend_device(package: str = "suptickets_ray", *, raises: bool = True) -> Iterator[Account]:
    """Lets `torch.device("cuda")` be used in this context; yields what a GPU would have done.

    Args:
        package: Whose lines the account names.
        raises: Whether mixed devices raise, as they would, or are only counted.
    """
    tags, account = _Tags(), Account()
    operators = _Operators(tags, account, package, raises)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_as_if_available(tags))
        stack.enter_context(operators)
        stack.enter_context(_Python(tags, account, operators))
        yield account


@contextlib.contextmanager
def _as_if_available(tags: _Tags) -> Iterator[None]:
    """What asks for CUDA itself: autocast is done by the CPU's, of the same type; GradScaler is let be."""
    import torch.amp.grad_scaler as scaling

    class Autocast(torch.amp.autocast_mode.autocast):
        def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *arguments, **options)

    before = torch.autocast, torch.amp.autocast, scaling.GradScaler.__init__
    original = scaling.GradScaler.__init__

    def made(self: Any, device: str = "cuda", *arguments: Any, **options: Any) -> None:
        original(self, "cpu" if device == "cuda" else device, *arguments, **options)

    # Groups tensors by the device that C++ sees.
    grouped = torch._C._group_tensors_by_device_and_dtype

    def group(lists: Any, *arguments: Any) -> Any:
        return {
            (CUDA if tags.has(found[0][0]) else device, dtype): (found, indices)
            for (device, dtype), (found, indices) in grouped(lists, *arguments).items()
        }

    load = torch.load

    def loaded(*arguments: Any, map_location: Any = None, **options: Any) -> Any:
        on_gpu = isinstance(map_location, (str, torch.device)) and _is_cuda(map_location)
        content = load(*arguments, map_location="cpu" if on_gpu else map_location, **options)
        for item in tree_flatten(content)[0] if on_gpu else ():
            if isinstance(item, torch.Tensor):
                tags.put(item)
        return content

    torch.load = loaded
    torch._C._group_tensors_by_device_and_dtype = group
    torch.autocast, torch.amp.autocast = Autocast, Autocast  # type: ignore[misc]
    scaling.GradScaler.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast, torch.amp.autocast, scaling.GradScaler.__init__ = before  # type: ignore[misc]
        torch._C._group_tensors_by_device_and_dtype, torch.load = grouped, load

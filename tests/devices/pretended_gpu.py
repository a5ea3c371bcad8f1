"""A GPU that computes on the CPU: what a program does with its device, seen without having one.

torch's FakeTensorMode shows wrong devices too, but its tensors have no values: a search for a range
or a comparison cannot be run, and torch 2.14 refuses its backward pass on a machine without a
driver. These tensors say that they are on ``cuda:0`` and hold values on the CPU. So every path
runs to its end, and its result can be compared with the CPU's.

What fails as on a GPU: operators on tensors of both devices, NumPy, and kernels that get memory of
the CPU. What is recorded: reads, which make the host wait for the GPU, and launches.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from dq.quant.kernels import native, operators

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# What torch itself sees: its autograd needs no driver for such tensors.
_META = torch.device("meta")
# Operators that return a number, or whose result has a size that depends on values.
_NUMBERS = {"_local_scalar_dense", "is_nonzero", "equal", "item"}
_SIZES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
_COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
# torch copies their indices to the device by itself.
_INDEXING = {"index", "index_put_", "_index_put_impl_"}
# They launch nothing.
NO_LAUNCH = ("empty", "new_empty", "detach", "alias", "lift_fresh")
# Functions that autocast runs in its own dtype.
_NARROW = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear, torch.matmul, torch.bmm}
_NARROW |= {torch.conv2d, Tensor.matmul, Tensor.__matmul__, torch.addmm, torch.baddbmm, torch.mm}


class OnGpu(Tensor):
    """A tensor that says it is on a GPU; ``values`` are its values, on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGpu:
        with torch.no_grad(), _disable_current_modes():
            shape = torch.empty_strided(
                values.size(), values.stride(), dtype=values.dtype, device=_META
            )
            made: OnGpu = Tensor._make_subclass(  # type: ignore[attr-defined]
                cls, shape, False, device_for_backend_keys=CUDA
            )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was called outside of pretended_gpu()")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGpu:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            is_parameter = getattr(self, "_is_param", False)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        found: OnGpu = memo[id(self)]
        return found

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.values!r})"


@dataclass
class Gpu:
    """What the host did with the GPU.

    Attributes:
        reads: The line of the project that read the device, once for each read.
        launches: Number of calls by name of the operator or kernel.
    """

    reads: list[str] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def watched(self) -> Iterator[Gpu]:
        """Record the reads and launches of the block on their own."""
        before = self.reads, self.launches
        self.reads, self.launches = [], Counter()
        here = Gpu(self.reads, self.launches)
        try:
            yield here
        finally:
            self.reads, self.launches = before[0] + here.reads, before[1] + here.launches


@contextmanager
def pretended_gpu(*, kernels: bool = False) -> Iterator[Gpu]:
    """Pretend in the block that ``cuda:0`` exists.

    Args:
        kernels: Call the project's kernels as on a GPU; the CPU's compute their results.
    """
    gpu = Gpu()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.current_device": lambda: 0,
            # Its random numbers are the CPU's.
            "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
            "torch.cuda.set_rng_state": lambda state, *_: torch.set_rng_state(state),
            # Optimizers ask whether a CUDA graph is captured.
            "torch.optim.Optimizer._accelerator_graph_capture_health_check": lambda _: None,
        }.items():
            stack.enter_context(mock.patch(name, value))
        # cuDNN's norm is an operator that a CPU does not have.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(mock.patch.object(nn.Module, "to", _module_to(nn.Module.to)))
        if kernels:
            stack.enter_context(_kernels(gpu))
        stack.enter_context(_Devices())
        stack.enter_context(_Operators(gpu))
        yield gpu


def _module_to(plain: Callable[..., Any]) -> Callable[..., Any]:
    def to(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Keep the parameters' identity if the module is there already, as torch does."""
        only = [*args, *kwargs.values()]
        moved = all(isinstance(t, OnGpu) for t in (*self.parameters(), *self.buffers()))
        if moved and len(only) == 1 and _names_gpu(only[0]):
            return self
        return plain(self, *args, **kwargs)

    return to


def _names_gpu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))


class _Devices(TorchFunctionMode):
    """Hide the device's name from torch, which would look for a driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple([_META if _names_gpu(value) else value for value in args])
        kwargs = {
            name: _META if _names_gpu(value) else value for name, value in (kwargs or {}).items()
        }
        first = args[0] if args else None
        if isinstance(first, OnGpu):
            if func is Tensor.numpy or func is Tensor.__array__:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func is Tensor.tolist:
                return first.cpu().tolist()
            if func is Tensor.new_tensor:
                kwargs = {"dtype": first.dtype, "device": _META, **kwargs}
                func, args = torch.tensor, args[1:]
            if func is Tensor.to and not _moves(first, args[1:], kwargs):
                return first
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == _META:
            return func(*args, **{**kwargs, "device": CPU}).to(_META)
        if func is Tensor.backward:
            # torch leaves the mode while it handles a function, here a whole backward pass.
            gradient = kwargs.pop("gradient", None)
            with self:
                torch.autograd.backward(*args, **kwargs, grad_tensors=gradient)
            return None
        if func is Tensor.cuda:
            return self.__torch_function__(Tensor.to, types, (first, _META))
        if func in _NARROW and torch.is_autocast_enabled("cuda"):
            args = tuple([_narrowed(value) for value in args])
            kwargs = {name: _narrowed(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _narrowed(value: Any) -> Any:
    if isinstance(value, OnGpu) and value.dtype == torch.float32:
        return value.to(torch.get_autocast_dtype("cuda"))
    return value


def _moves(x: Tensor, args: Any, kwargs: Any) -> bool:
    """Return whether ``to`` with these arguments gives another tensor."""
    given = [*args, *kwargs.values()]
    other = [a for a in given if isinstance(a, Tensor)]
    devices = [a.device if isinstance(a, Tensor) else torch.device(a) for a in given
               if isinstance(a, Tensor | torch.device | str)]  # fmt: skip
    dtypes = [a for a in given if isinstance(a, torch.dtype)] + [a.dtype for a in other]
    stays = all(device.type in ("meta", "cuda") for device in devices)
    same = all(dtype == x.dtype for dtype in dtypes)
    return not (stays and same) or bool(kwargs.get("copy")) or "memory_format" in kwargs


class _Operators(TorchDispatchMode):
    """Compute with the values, and say so if operands lie on both devices."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [x for x in tensors if isinstance(x, OnGpu)]
        target = kwargs.get("device")
        stays = bool(here) if target is None else target.type != "cpu"
        if not here and not stays:
            return func(*args, **kwargs)
        # torch takes a number on the CPU as an argument of a kernel.
        elsewhere = [x for x in tensors if not isinstance(x, OnGpu) and x.dim() > 0]
        if here and elsewhere and name not in _COPIES | _INDEXING:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found cuda:0 and cpu"
            )
        into_host = name == "copy_" and not isinstance(args[0], OnGpu)
        sized = name in _SIZES or (name in _INDEXING and _has_mask(name, args))
        if name in _NUMBERS or sized or into_host or (here and not stays):
            self.gpu.reads.append(_place())
        if not func.is_view and not name.startswith(NO_LAUNCH):
            self.gpu.launches[name] += 1
        if target is not None:
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        plain_args, plain = tree_map_only(OnGpu, lambda x: x.values, (args, kwargs))
        found = func(*plain_args, **plain)
        if name in _NUMBERS or not stays:
            return found
        wrapped = tree_map_only(Tensor, OnGpu, found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _has_mask(name: str, args: Any) -> bool:
    """Return whether a mask is turned into indices, whose number the host must know."""
    fills = name != "index" and args[2].dim() == 0
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    return bool(masks) and not fills


def _place() -> str:
    """Return the innermost line of the project that is running."""
    for frame, _ in traceback.walk_stack(None):
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/dq/" in file and "/site-packages/" not in file:
            return f"dq/{file.rpartition('/dq/')[2]}:{name}"
    return "elsewhere"


@contextmanager
def _kernels(gpu: Gpu) -> Iterator[None]:
    """Let tensors on the pretended GPU reach the kernels for a GPU."""

    def on_gpu(*tensors: Tensor) -> bool:
        return all(isinstance(x, OnGpu) for x in tensors)

    with (
        mock.patch.object(native, "has_memory", on_gpu),
        mock.patch.object(native, "has_gpu_kernels", return_value=True),
        mock.patch.object(operators, "_on_gpu", return_value=_StandIn(gpu)),
    ):
        yield


class _StandIn:
    """The functions of `dq.quant.kernels.gpu.ops`, computed by the kernels for a CPU."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from tests.devices import stand_in_kernels

        function = getattr(stand_in_kernels, name)

        def call(*args: Any) -> Any:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            assert all(isinstance(x, OnGpu) for x in tensors), f"{name} got memory of the CPU"
            records = name == "activate" and args[-1] is not None
            self.gpu.launches[f"dq {name}"] += 2 if records else 1
            with _disable_current_modes():
                found = function(*tree_map_only(OnGpu, lambda x: x.values, args))
            return tree_map_only(Tensor, OnGpu, found)

        return call

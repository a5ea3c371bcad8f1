"""Recognise the operation of a node: called as a module, function, method or operator."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.fused.activations import RELU
from dq.quant.graph.fused.activations import clip_of as clip_of_module
from dq.quant.graph.roles import (
    AVERAGE_FUNCTIONS,
    AVERAGE_MODULES,
    is_constant,
    is_mask,
    is_shape,
    module_of,
)
from dq.quant.integer.engine import eigen, functions
from dq.quant.integer.engine.pooling import is_over_the_image
from dq.quant.integer.engine.resize import Resizing
from dq.quant.kernels.rounding import Clip

Function = Callable[[Tensor], Tensor]

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"}
_MATRIX_PRODUCTS = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"}
_RELUS = {torch.relu, torch.relu_, F.relu, "relu", "relu_"}
_CLAMPS = {torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_"}
# Functions that torch and ONNX Runtime compute with different last digits.
_FUNCTIONS: Mapping[Any, Function] = {
    torch.sigmoid: functions.sigmoid,
    F.sigmoid: functions.sigmoid,
    nn.Sigmoid: functions.sigmoid,
    "sigmoid": functions.sigmoid,
    "sigmoid_": functions.sigmoid,
    torch.tanh: functions.tanh,
    F.tanh: functions.tanh,
    nn.Tanh: functions.tanh,
    "tanh": functions.tanh,
    "tanh_": functions.tanh,
    torch.erf: functions.erf,
    "erf": functions.erf,
    F.hardsigmoid: functions.hard_sigmoid,
    nn.Hardsigmoid: functions.hard_sigmoid,
    F.hardswish: functions.hard_swish,
    nn.Hardswish: functions.hard_swish,
    F.silu: functions.silu,
    nn.SiLU: functions.silu,
    F.gelu: functions.gelu,
    nn.GELU: functions.gelu,
    F.mish: eigen.mish,
    nn.Mish: eigen.mish,
}
_AVERAGES = (AVERAGE_FUNCTIONS - {torch.mean}) | set(AVERAGE_MODULES)


def what(network: fx.GraphModule, node: fx.Node) -> Any:
    """Return the type of the module, the function, or the name of the method that a node calls."""
    module = module_of(network, node)
    return node.target if module is None else type(module)


def settings(network: fx.GraphModule, node: fx.Node, *names: str, **defaults: Any) -> list[Any]:
    """Return a node's arguments after the first, or its module's attributes, by name.

    Args:
        network: The node's network.
        node: Calls a module, a function or a method.
        names: Names of the arguments, in order.
        defaults: Values of arguments that may be missing.
    """
    module = module_of(network, node)
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    return [
        given.get(name, defaults.get(name)) if module is None else getattr(module, name)
        for name in names
    ]


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the two tensors of a sum or product; empty if one is a constant or there are more."""
    if len(node.args) != 2 or node.kwargs:
        return []
    found = [a for a in node.args if isinstance(a, fx.Node)]
    return found if len(found) == 2 and all(map(_is_real_tensor, found)) else []


def _is_real_tensor(node: fx.Node) -> bool:
    return not (is_constant(node) or is_shape(node) or is_mask(node))


def is_sum(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node adds two tensors."""
    return what(network, node) in _SUMS and bool(operands(node))


def is_product(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node multiplies two tensors elementwise."""
    return what(network, node) in _PRODUCTS and bool(operands(node))


def is_matrix_product(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node is the matrix product of two tensors."""
    return what(network, node) in _MATRIX_PRODUCTS and bool(operands(node))


def activation_function(network: fx.GraphModule, node: fx.Node) -> Function | None:
    """Return a node's activation function as the engine computes it; None if unknown."""
    kind = what(network, node)
    if kind in (F.leaky_relu, nn.LeakyReLU):
        (slope,) = settings(network, node, "negative_slope", negative_slope=0.01)
        return functools.partial(F.leaky_relu, negative_slope=slope)
    if kind in (F.elu, nn.ELU):
        (alpha,) = settings(network, node, "alpha", alpha=1.0)
        return functools.partial(eigen.elu, alpha=alpha)
    if kind in (F.softplus, nn.Softplus):
        beta, threshold = settings(network, node, "beta", "threshold", beta=1, threshold=20)
        return eigen.softplus if (beta, threshold) == (1, 20) else None
    if kind in (F.gelu, nn.GELU):
        approximate = node.kwargs.get("approximate", "none")
        if kind is nn.GELU:
            (approximate,) = settings(network, node, "approximate")
        return functions.gelu if approximate == "none" else None
    return _FUNCTIONS.get(kind)


def clip_of(network: fx.GraphModule, node: fx.Node) -> Clip | None:
    """Return the bounds of a clipping node that is exported as Relu or Clip; None for others."""
    kind = what(network, node)
    module = module_of(network, node)
    if module is not None:
        return clip_of_module(module)
    if kind in _RELUS:
        return RELU
    if kind is F.relu6:
        return (0.0, 6.0)
    if kind is F.hardtanh:
        low, high = settings(network, node, "min_val", "max_val", min_val=-1.0, max_val=1.0)
        return (float(low), float(high))
    if kind in (torch.clamp_min, "clamp_min", "clamp_min_"):
        low, high = settings(network, node, "min")[0], torch.inf
    elif kind in _CLAMPS:
        low, high = settings(network, node, "min", "max")
        if low is not None and high is None:  # Exported as Max, which engines do not fuse.
            return None
        low = -torch.inf if low is None else low
    else:
        return None
    if not all(isinstance(end, int | float) for end in (low, high)):
        return None
    return (float(low), float(high))


def is_window_average(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the node averages windows of one tensor in an integer kernel.

    With `ceil_mode` the padding is exported as a separate node, so the average runs in float.
    """
    kind = what(network, node)
    if kind not in _AVERAGES or global_average(network, node) is not None:
        return False
    if "adaptive" in kind.__name__.lower():
        return True
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    _, _, padding, ceil, counts = settings(network, node, *names, padding=0, count_include_pad=True)
    return not (ceil and counts and padding not in (0, (0,), (0, 0), [0, 0]))


def global_average(network: fx.GraphModule, node: fx.Node) -> bool | None:
    """Return whether a mean over height and width keeps them; None for other nodes."""
    kind = what(network, node)
    if kind in (F.adaptive_avg_pool2d, nn.AdaptiveAvgPool2d):
        (size,) = settings(network, node, "output_size")
        return True if size in (1, (1, 1), [1, 1]) else None
    if kind in (torch.mean, "mean"):
        dims, keepdim = settings(network, node, "dim", "keepdim", keepdim=False)
        return bool(keepdim) if is_over_the_image(dims) else None
    return None


def softmax_dim(network: fx.GraphModule, node: fx.Node) -> int | None:
    """Return the dimension of a softmax; None for other nodes."""
    if what(network, node) in (torch.softmax, F.softmax, nn.Softmax, "softmax"):
        (dim,) = settings(network, node, "dim")
        return int(dim) if isinstance(dim, int) else None
    return None


def resizing_of(network: fx.GraphModule, node: fx.Node) -> tuple[Resizing, Any] | None:
    """Return how a bilinear interpolation changes the size, and its argument ``size``.

    Returns None for other nodes, and for scale factors that are not constant.
    """
    if what(network, node) not in (F.interpolate, nn.Upsample):
        return None
    names = ("size", "scale_factor", "mode", "align_corners")
    size, factor, mode, align_corners = settings(network, node, *names)
    if mode != "bilinear" or node.kwargs.get("antialias"):
        return None
    factors = (factor, factor) if isinstance(factor, int | float) else factor
    if size is None and not _are_numbers(factors):
        return None
    if size is None and node.kwargs.get("recompute_scale_factor"):
        return None
    resizing = Resizing(
        factors=None if size is not None else (float(factors[0]), float(factors[1])),
        align_corners=bool(align_corners),
    )
    return resizing, size


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, tuple | list)
        and len(values) == 2
        and all(isinstance(value, int | float) for value in values)
    )

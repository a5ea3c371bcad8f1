"""Recognise the operation of a node: called as a module, function, method or operator."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph import activation_nodes
from dq.quant.graph.activation_nodes import activation_of, settings, settings_of, what
from dq.quant.graph.roles import (
    AVERAGE_FUNCTIONS,
    AVERAGE_MODULES,
    is_constant,
    is_mask,
    is_shape,
)
from dq.quant.integer.engine import eigen, functions
from dq.quant.integer.engine.pooling import is_over_the_image
from dq.quant.integer.engine.resize import Resizing
from dq.quant.kernels.rounding import Clip

Function = Callable[[Tensor], Tensor]

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"}
_MATRIX_PRODUCTS = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"}
_CLAMPS = {torch.clamp, torch.clip, "clamp", "clamp_", "clip", "clip_"}
# For each activation function, by name: a function of its settings. It returns what the engine
# computes, or None if the engine has no kernel for these settings. torch's own activation functions
# differ in the last digits.
ARITHMETIC: Mapping[str, Callable[..., Function | None]] = {
    "sigmoid": lambda: functions.sigmoid,
    "tanh": lambda: functions.tanh,
    "erf": lambda: functions.erf,
    "hardsigmoid": lambda: functions.hard_sigmoid,
    "hardswish": lambda: functions.hard_swish,
    "silu": lambda: functions.silu,
    "gelu": lambda approximate: functions.gelu if approximate == "none" else None,
    "mish": lambda: eigen.mish,
    "leaky_relu": lambda negative_slope: functools.partial(
        F.leaky_relu, negative_slope=negative_slope
    ),
    "elu": lambda alpha: functools.partial(eigen.elu, alpha=alpha),
    "softplus": lambda beta, threshold: eigen.softplus if (beta, threshold) == (1, 20) else None,
}
_AVERAGES = (AVERAGE_FUNCTIONS - {torch.mean}) | set(AVERAGE_MODULES)


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
    """Return a node's function as the engine computes it; None if it is not known."""
    function = activation_of(network, node)
    arithmetic = None if function is None else ARITHMETIC.get(function.name)
    return None if arithmetic is None else arithmetic(**settings_of(network, node))


def clip_of(network: fx.GraphModule, node: fx.Node) -> Clip | None:
    """Return the bounds of a clipping node that is exported as Relu or Clip; None for others."""
    found = activation_nodes.clip_of(network, node)
    if found is not None:
        return found
    kind = what(network, node)
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

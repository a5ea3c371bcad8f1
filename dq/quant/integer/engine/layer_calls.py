"""Recognise the layers of an integer network, called as modules or as functions."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from dq.quant.graph.nodes import module_of
from dq.quant.graph.roles import LAYER_FUNCTIONS
from dq.quant.integer.engine.layers import Apply
from dq.quant.integer.modules import IntegerLayer, IntegerWeight
from dq.quant.quantizers.layer_types import pads_by_itself
from dq.quant.quantizers.layers import apply_layer

# Engines store narrower weights as int4, and compute with these in float.
_LEAST_WEIGHT_BITS = 5
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """One call of a layer.

    Attributes:
        apply: The layer.
        weight: Its weight.
        bias: Real numbers, or None.
        is_linear: Whether it is a linear layer.
        is_transposed: Whether it is a transposed convolution.
        pads: Whether it pads with values other than zero, which is exported as a separate node.
    """

    apply: Apply
    weight: IntegerWeight
    bias: Tensor | None
    is_linear: bool
    is_transposed: bool
    pads: bool

    @property
    def has_integer_kernel(self) -> bool:
        """Whether engines can compute it in integers."""
        return (
            _LEAST_WEIGHT_BITS <= self.weight.spec.bits <= 8
            and not (self.is_transposed or self.pads)
            and not bool(self.weight.zero_point.any())
        )


def layer_call(network: fx.GraphModule, node: fx.Node) -> LayerCall | None:
    """Return a node's call of a layer with an integer weight; None for other nodes."""
    module = module_of(network, node)
    if isinstance(module, IntegerLayer):
        return LayerCall(
            apply=functools.partial(apply_layer, module.layer),
            weight=module.weight,
            bias=module.bias,
            is_linear=isinstance(module.layer, nn.Linear),
            is_transposed=isinstance(module.layer, _ConvTransposeNd),
            pads=_pads(module.layer),
        )
    if node.op != "call_function" or node.target not in LAYER_FUNCTIONS:
        return None
    return _function_call(network, node)


def _pads(layer: nn.Module) -> bool:
    return pads_by_itself(layer) or getattr(layer, "padding_mode", "zeros") != "zeros"


def _function_call(network: fx.GraphModule, node: fx.Node) -> LayerCall | None:
    names = ("input", "weight", "bias")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    made = given.get("weight")
    weight = module_of(network, made) if isinstance(made, fx.Node) else None
    known, bias = _constant(network, given.pop("bias", None))
    more = {k: v for k, v in given.items() if k not in names}
    rest = node.args[3:]
    if not isinstance(weight, IntegerWeight) or not known or _has_nodes((rest, more)):
        return None
    function: Any = node.target

    def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = function(x, weight, bias, *rest, **more)
        return result

    return LayerCall(
        apply=apply,
        weight=weight,
        bias=bias,
        is_linear=function is F.linear,
        is_transposed=function in _TRANSPOSED,
        pads=False,
    )


def _constant(network: fx.GraphModule, value: Any) -> tuple[bool, Tensor | None]:
    """Return whether an argument is None or a stored tensor, and its value."""
    if not isinstance(value, fx.Node):
        return value is None, None
    if value.op != "get_attr":
        return False, None
    found: Any = network
    for part in str(value.target).split("."):
        found = getattr(found, part)
    return isinstance(found, Tensor), found


def _has_nodes(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return bool(found)

"""Activation functions that only cut off, computed in the same pass as the rounding behind them.

ReLU, its copy for rounding and the rounding itself would each pass over the tensor. The graph that
is analysed, exported and shown stays as it is; only the function that is run has them merged, and
writes into the tensor where nothing else needs it: then a quantized training keeps no more
activations than a float one, but for a byte a value that says where gradients pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.roles import LAYER_FUNCTIONS, Role, module_of, role_of, tensor_inputs
from dq.quant.graph.trace import BoundGraph
from dq.quant.kernels.rounding import NO_CLIP, Clip
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.half_precision import on_the_grid
from dq.quant.quantizers.layers import QuantizedLayer

RELU: Clip = (0.0, torch.inf)
# What autocast computes in a narrow dtype, beside layers.
_PRODUCTS = {*LAYER_FUNCTIONS, operator.matmul, torch.matmul, torch.bmm, torch.einsum}
_PRODUCTS |= {F.scaled_dot_product_attention}
_PRODUCT_METHODS: dict[str, Any] = {"matmul": torch.matmul, "bmm": torch.bmm}
# Their results are new tensors that no backward pass of theirs reads.
_SUMS = {operator.add, torch.add, torch.cat}


def clip_of(activation: nn.Module) -> Clip | None:
    """Return the lowest and highest value the module lets through; None if it does more."""
    if type(activation) is nn.ReLU:
        return RELU
    if type(activation) in (nn.ReLU6, nn.Hardtanh):
        assert isinstance(activation, nn.Hardtanh)
        return (float(activation.min_val), float(activation.max_val))
    return None


def round_behind(
    quantizer: ActivationQuantizer, activation: nn.Module | None, x: Tensor, in_place: bool
) -> Tensor:
    """Return ``quantizer(activation(x))``, in one pass where nobody watches what is in between.

    Args:
        quantizer: Behind the activation function.
        activation: ReLU, ReLU6 or Hardtanh; None where there is none.
        x: Any shape.
        in_place: ``x`` may be written into.
    """
    clip = NO_CLIP if activation is None else clip_of(activation)
    if clip is None or _watched(quantizer, activation):
        rounded: Tensor = quantizer(x if activation is None else activation(x))
        return rounded
    return quantizer.behind_clip(x, clip, in_place=in_place)


def _watched(*modules: nn.Module | None) -> bool:
    return any(m is not None and (m._forward_hooks or m._forward_pre_hooks) for m in modules)


class MergedGraph(BoundGraph):
    """A graph of a prepared model that runs each activation function with the rounding behind."""

    def _compile(self, graph: fx.Graph) -> Callable[..., Any]:
        return super()._compile(_merged(self.root, graph))


def _merged(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Return a copy of the graph with every quantizer's call replaced by `round_behind`.

    Layers are told what has rounded their input, and other products of rounded tensors are kept
    from autocast.
    """
    copied = fx.Graph()
    result = copied.graph_copy(graph, {})
    copied.output(result)
    for node in list(copied.nodes):
        _keep_on_grid_(root, node)
    for node in list(copied.nodes):
        quantizer = module_of(root, node)
        if not isinstance(quantizer, ActivationQuantizer):
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        activation, behind = _activation(root, source, node)
        with copied.inserting_before(node):
            arguments = (
                copied.get_attr(str(node.target)),
                None if activation is None else copied.get_attr(activation),
                behind,
                _is_free(root, behind, source if activation is not None else node),
            )
            new = copied.call_function(round_behind, arguments)
        node.replace_all_uses_with(new)
        copied.erase_node(node)
        if activation is not None:
            copied.erase_node(source)
    copied.lint()
    return copied


def _keep_on_grid_(root: nn.Module, node: fx.Node) -> None:
    if isinstance(module_of(root, node), QuantizedLayer):
        source = _rounded_by(root, node.all_input_nodes[0])
        if source is not None:
            with node.graph.inserting_before(node):
                node.kwargs = {**node.kwargs, "source": node.graph.get_attr(str(source.target))}
        return
    function: Any = node.target
    if node.op == "call_method":
        function = _PRODUCT_METHODS.get(str(node.target))
    elif node.op != "call_function" or function not in _PRODUCTS:
        return
    if function is not None and any(_rounded_by(root, n) for n in node.all_input_nodes):
        node.op, node.target = "call_function", on_the_grid(function)


def _rounded_by(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the call of the quantizer that rounded the node's value; None where none did."""
    while role_of(root, node) is Role.CARRIER:
        (node,) = tensor_inputs(node)
    return node if isinstance(module_of(root, node), ActivationQuantizer) else None


def _activation(root: nn.Module, source: fx.Node, node: fx.Node) -> tuple[str | None, fx.Node]:
    """Return the name of the activation function that only ``node`` reads, and its input."""
    module = module_of(root, source)
    if module is None or clip_of(module) is None or list(source.users) != [node]:
        return None, source
    (inside,) = source.all_input_nodes
    return str(source.target), inside


def _is_free(root: nn.Module, node: fx.Node, reader: fx.Node) -> bool:
    """Say whether only ``reader`` needs the node's value, in the backward pass too."""
    if list(node.users) != [reader]:
        return False
    if isinstance(module_of(root, node), QuantizedLayer):
        return True
    return node.op == "call_function" and node.target in _SUMS

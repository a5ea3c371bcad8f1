"""Run a clipping activation function and the fake quantization after it in one pass.

Otherwise ReLU, the copy of its result and fake quantization would each pass over the tensor. Only
the function that runs is fused; the graph that is analysed, exported and shown does not change. The
fused pass writes in place if nothing else needs the tensor. So QAT saves the same activations as
float training, plus one byte per value for the gradient mask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.fused.functions import fuse_functions_, has_hooks
from dq.quant.graph.fused.scales import compute_scales_first_
from dq.quant.graph.fused.weights import round_weights_first_
from dq.quant.graph.roles import LAYER_FUNCTIONS, Role, module_of, role_of, tensor_inputs
from dq.quant.graph.trace import BoundGraph
from dq.quant.kernels.rounding import NO_CLIP, Clip
from dq.quant.numerics.activation_functions import WRITTEN
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.half_precision import on_the_grid
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.learned_step import LsqActivationQuantizer

# What autocast runs in a narrow dtype, apart from layers.
_PRODUCTS = {*LAYER_FUNCTIONS, operator.matmul, torch.matmul, torch.bmm, torch.einsum}
_PRODUCTS |= {F.scaled_dot_product_attention}
_PRODUCT_METHODS: dict[str, Any] = {"matmul": torch.matmul, "bmm": torch.bmm}
# Their results are new tensors that their own backward pass does not read.
_SUMS = {operator.add, torch.add, torch.cat}


def clip_of(activation: nn.Module) -> Clip | None:
    """Return the lower and upper bound of a clipping module; None if it does anything else."""
    function = WRITTEN.get(type(activation))
    if function is None or function.clip is None:
        return None
    return function.clip(**{name: getattr(activation, name) for name in function.settings})


def activate_and_fake_quantize(
    quantizer: ActivationQuantizer,
    activation: nn.Module | None,
    x: Tensor,
    in_place: bool,
    scale: Tensor | None = None,
) -> Tensor:
    """Return ``quantizer(activation(x))``, in one pass unless hooks need the value between them.

    Args:
        quantizer: Comes after the activation function.
        activation: ReLU, ReLU6 or Hardtanh, or None.
        x: Any shape.
        in_place: ``x`` may be overwritten.
        scale: The quantizer's learned scale, if it is computed already.
    """
    clip = NO_CLIP if activation is None else clip_of(activation)
    if clip is None or has_hooks(quantizer, activation):
        rounded: Tensor = quantizer(x if activation is None else activation(x))
        return rounded
    if scale is not None:
        assert isinstance(quantizer, LsqActivationQuantizer)
        return quantizer.learn(x, scale, clip)
    return quantizer.clip_and_fake_quantize(x, clip, in_place=in_place)


class MergedGraph(BoundGraph):
    """A graph of a prepared model that fuses each activation function with its quantizer."""

    def _compile(self, graph: fx.Graph) -> Callable[..., Any]:
        return super()._compile(_merged(self.root, graph))


def _merged(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Return a copy of the graph that calls `activate_and_fake_quantize` for every quantizer.

    Each layer gets the quantizer of its input as an argument. Other products of fake-quantized
    tensors are protected from autocast.
    """
    copied = fx.Graph()
    result = copied.graph_copy(graph, {})
    copied.output(result)
    for node in list(copied.nodes):
        _keep_on_grid_(root, node)
    fuse_functions_(root, copied, lambda node, reader: _may_overwrite(root, node, reader))
    learned: list[tuple[fx.Node, str]] = []
    for node in list(copied.nodes):
        quantizer = module_of(root, node)
        if not isinstance(quantizer, ActivationQuantizer):
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        activation, input_node = _activation(root, source, node)
        with copied.inserting_before(node):
            arguments = (
                copied.get_attr(str(node.target)),
                None if activation is None else copied.get_attr(activation),
                input_node,
                _may_overwrite(root, input_node, source if activation is not None else node),
            )
            new = copied.call_function(activate_and_fake_quantize, arguments)
        if isinstance(quantizer, LsqActivationQuantizer):
            learned.append((new, str(node.target)))
        node.replace_all_uses_with(new)
        copied.erase_node(node)
        if activation is not None:
            copied.erase_node(source)
    compute_scales_first_(copied, learned)
    round_weights_first_(root, copied)
    copied.lint()
    return copied


def _keep_on_grid_(root: nn.Module, node: fx.Node) -> None:
    if isinstance(module_of(root, node), QuantizedLayer):
        source = _quantized_by(root, node.all_input_nodes[0])
        if source is not None:
            with node.graph.inserting_before(node):
                node.kwargs = {**node.kwargs, "source": node.graph.get_attr(str(source.target))}
        return
    function: Any = node.target
    if node.op == "call_method":
        function = _PRODUCT_METHODS.get(str(node.target))
    elif node.op != "call_function" or function not in _PRODUCTS:
        return
    if function is not None and any(_quantized_by(root, n) for n in node.all_input_nodes):
        node.op, node.target = "call_function", on_the_grid(function)


def _quantized_by(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the quantizer's node that computed the node's value; None if there is none."""
    while role_of(root, node) is Role.CARRIER:
        (node,) = tensor_inputs(node)
    return node if isinstance(module_of(root, node), ActivationQuantizer) else None


def _activation(root: nn.Module, source: fx.Node, node: fx.Node) -> tuple[str | None, fx.Node]:
    """Return the name of the activation function before ``node``, and the function's input.

    The name is None, and the input is ``source``, if there is no function that only ``node`` reads.
    """
    module = module_of(root, source)
    if module is None or clip_of(module) is None or list(source.users) != [node]:
        return None, source
    (inside,) = source.all_input_nodes
    return str(source.target), inside


def _may_overwrite(root: nn.Module, node: fx.Node, reader: fx.Node) -> bool:
    """Return whether only ``reader`` needs the node's value, also in the backward pass."""
    if list(node.users) != [reader]:
        return False
    if isinstance(module_of(root, node), QuantizedLayer):
        return True
    return node.op == "call_function" and node.target in _SUMS

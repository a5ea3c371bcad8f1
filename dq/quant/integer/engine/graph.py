"""Make an integer network compute the same as ONNX Runtime, bit for bit if possible.

An operation of 8-bit tensors with a quantizer after it becomes one module of this package: layers,
sums, products, matrix products, averages, softmax, bilinear interpolation, and functions of one
tensor. A clipping function between them is dropped if the quantizer clips the same values.

Operations that the engine computes in float stay in float. Activation functions and rounded biases
have the same last digits as in the engine. The order of the engine's float sums is not known. So
results may differ at rounding ties in layers whose output is not quantized to 8 bits, layers with
4-bit weights, transposed convolutions, and means over other dimensions than height and width.

Between modules values are real numbers, integer times scale. So operations that only move values
(max pooling, reshaping, concatenation) run unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import is_shape, module_of, tensor_inputs
from dq.quant.graph.trace import remove_dead_code
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.convert import integer_network, quantizer_of_node
from dq.quant.integer.engine.elementwise import ExactProduct, ExactSum
from dq.quant.integer.engine.layer_calls import LayerCall, layer_call
from dq.quant.integer.engine.layers import (
    ExactLayer,
    ExactLinear,
    ExactMatrixProduct,
    FloatLayer,
)
from dq.quant.integer.engine.nodes import (
    activation_function,
    clip_of,
    global_average,
    is_matrix_product,
    is_product,
    is_sum,
    is_window_average,
    operands,
    resizing_of,
    softmax_dim,
)
from dq.quant.integer.engine.pooling import ExactAverage, ExactGlobalAverage
from dq.quant.integer.engine.quantizer import ExactQuantizer
from dq.quant.integer.engine.resize import ExactResize
from dq.quant.integer.engine.softmax import ExactSoftmax
from dq.quant.integer.engine.table import ExactTable
from dq.quant.integer.modules import IntegerActivation
from dq.quant.kernels.rounding import Clip

EXACT = "exact"
# A module, and the arguments with which it is called.
Replacement = tuple[nn.Module, tuple[Any, ...]]


def exact_network(graph: QuantizedGraph) -> Callable[..., Any]:
    """Return a callable that computes a quantized graph as an engine does.

    It is the graph itself if nothing is quantized, or if the graph has no integer form.

    Args:
        graph: With ranges, on the CPU, in evaluation mode; it is not changed.
    """
    try:
        network = integer_network(graph)
    except ValueError:  # A part was never calibrated, or has no integer form.
        return graph
    fit_biases_(network)
    return network if compute_exactly_(network) else graph


def compute_exactly_(network: fx.GraphModule) -> int:
    """Replace quantizers and integer operations by exact modules, in place.

    Args:
        network: Result of `dq.quant.integer.convert.integer_network`, with ranges.

    Returns:
        The number of exact modules.
    """
    return _Rewriting(network).replace_all()


class _Rewriting:
    """Rewrites one network.

    Attributes:
        sources: The quantizer of each quantized tensor, found before the rewriting; None for other
            tensors.
        exact: The exact quantizer for each `IntegerActivation`.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        nodes = list(network.graph.nodes)
        self.quantizers = {
            node: module
            for node in nodes
            if isinstance(module := module_of(network, node), IntegerActivation)
        }
        self.sources = {node: quantizer_of_node(network, node) for node in nodes}
        self.exact: dict[IntegerActivation, ExactQuantizer] = {}
        self.modules = nn.ModuleList()
        network.add_module(EXACT, self.modules)

    @torch.no_grad()
    def replace_all(self) -> int:
        for node, quantizer in self.quantizers.items():
            if self.sources.get(node.args[0]) is quantizer:  # Quantized in the same way already.
                node.replace_all_uses_with(node.args[0])
                self.network.graph.erase_node(node)
                continue
            module, arguments = self._replacement(node, quantizer)
            new = self._call(node, module, arguments)
            self.sources[new] = quantizer
            _read_sizes_of(new, node.args[0])
            node.replace_all_uses_with(new)
            self.network.graph.erase_node(node)
        remove_dead_code(self.network.graph)
        self._replace_functions()
        remove_dead_code(self.network.graph)
        self.network.delete_all_unused_submodules()
        self.network.recompile()
        self.network.eval()
        return len(self.modules)

    def _call(self, before: fx.Node, module: nn.Module, arguments: tuple[Any, ...]) -> fx.Node:
        with self.network.graph.inserting_before(before):
            name = f"{EXACT}.{len(self.modules)}"
            new = self.network.graph.create_node("call_module", name, arguments)
        self.modules.append(module)
        return new

    def _replace_functions(self) -> None:
        """Replace the remaining activation functions by those with the engine's last digits."""
        for node in list(self.network.graph.nodes):
            function = activation_function(self.network, node)
            if function is None:
                continue
            settings = function.keywords if isinstance(function, functools.partial) else {}
            called = function.func if isinstance(function, functools.partial) else function
            arguments = (node.all_input_nodes[0],)
            with self.network.graph.inserting_before(node):
                new = self.network.graph.call_function(called, arguments, dict(settings))
            node.replace_all_uses_with(new)
            self.network.graph.erase_node(node)

    def _replacement(self, node: fx.Node, quantizer: IntegerActivation) -> Replacement:
        after = self._exact(quantizer)
        made = node.args[0]
        assert isinstance(made, fx.Node)
        source = self._before_clip(made, after)
        if after.is_whole_byte and not self._stays_signed(node, quantizer):
            found = self._in_integers(source, after)
            if found is not None:
                return found
        self._round_bias(made)
        # `_round_bias` may have replaced the layer.
        return self._resized(made, after) or (after, tuple(node.args[:1]))

    def _in_integers(self, node: fx.Node, after: ExactQuantizer) -> Replacement | None:
        """Return the module for an operation that the engine computes in integers."""
        call = layer_call(self.network, node)
        if call is not None:
            before = self._given(node.all_input_nodes[0])
            return None if before is None else _exact_layer(node, call, before, after)
        pair = [self._given(n) for n in operands(node)]
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
            for matches, kind in (
                (is_sum, ExactSum),
                (is_product, ExactProduct),
                (is_matrix_product, ExactMatrixProduct),
            ):
                if matches(self.network, node):
                    return kind(pair[0], pair[1], after), tuple(node.args)
        inputs = tensor_inputs(node)
        given = self._given(inputs[0]) if len(inputs) == 1 else None
        return None if given is None else self._of_one_tensor(node, given, after)

    def _of_one_tensor(
        self, node: fx.Node, before: ExactQuantizer, after: ExactQuantizer
    ) -> Replacement | None:
        keepdim = global_average(self.network, node)
        if keepdim is not None:
            return ExactGlobalAverage(before, after, keepdim=keepdim), (node.args[0],)
        if is_window_average(self.network, node):
            return ExactAverage(after), (node,)
        dim = softmax_dim(self.network, node)
        if dim is not None:
            return ExactSoftmax(dim, before, after), (node.args[0],)
        function = activation_function(self.network, node)
        if function is not None:
            return ExactTable(function, before, after), (node.args[0],)
        return None

    def _resized(self, made: fx.Node, after: ExactQuantizer) -> Replacement | None:
        """Return the module for a bilinear interpolation of any bit width; None for others."""
        found = resizing_of(self.network, made)
        if found is None or self.sources.get(made.all_input_nodes[0]) is None:
            return None
        resizing, size = found
        return ExactResize(resizing, after), (made.args[0], size)

    def _round_bias(self, node: fx.Node) -> None:
        """Replace a layer that is computed in float by one with the engine's rounded bias."""
        inner = node
        while clip_of(self.network, inner) is not None and len(inner.users) == 1:
            inner = inner.all_input_nodes[0]
        call = layer_call(self.network, inner)
        before = self.sources.get(inner.all_input_nodes[0]) if call is not None else None
        if call is None or call.bias is None or before is None or len(inner.users) > 1:
            return
        scale = call.weight.scale
        if call.is_linear or call.pads or scale.numel() not in (1, call.bias.numel()):
            return
        module = FloatLayer(call.apply, call.weight, call.bias, self._exact(before))
        new = self._call(inner, module, (inner.all_input_nodes[0],))
        inner.replace_all_uses_with(new)

    def _given(self, node: fx.Node) -> ExactQuantizer | None:
        """Return the quantizer of a tensor that the engine holds as a byte."""
        quantizer = self.sources.get(node)
        if quantizer is None or self._stays_signed(node, quantizer):
            return None
        exact = self._exact(quantizer)
        return exact if exact.is_whole_byte else None

    def _stays_signed(self, node: fx.Node, quantizer: IntegerActivation) -> bool:
        """Return whether the engine keeps int8, and therefore computes in float.

        On x86 it converts int8 to uint8, but not if the tensor has several readers.
        """
        return quantizer.spec.signed and len(node.users) > 1

    def _exact(self, quantizer: IntegerActivation) -> ExactQuantizer:
        if quantizer not in self.exact:
            self.exact[quantizer] = ExactQuantizer(quantizer)
        return self.exact[quantizer]

    def _before_clip(self, node: fx.Node, after: ExactQuantizer) -> fx.Node:
        """Return the input of a clipping function that the quantizer makes redundant."""
        clip = clip_of(self.network, node)
        if clip is None or len(node.all_input_nodes) != 1:
            return node
        return node.all_input_nodes[0] if _is_redundant(clip, after) else node


def _read_sizes_of(new: fx.Node, made: Any) -> None:
    """Read sizes from the quantized tensor, so that the unquantized one is not computed too."""
    for user in list(made.users):
        if is_shape(user) and new < user:
            user.replace_input_with(made, new)


def _is_redundant(clip: Clip, after: ExactQuantizer) -> bool:
    """Return whether the clip changes no integer, by the rule of the engine's optimizer."""
    low, high = (torch.tensor(end, dtype=torch.float32) / after.scale for end in clip)
    return bool(low.round() <= after.lowest) and bool(high.round() >= after.highest)


def _exact_layer(
    node: fx.Node, call: LayerCall, before: ExactQuantizer, after: ExactQuantizer
) -> Replacement | None:
    if not call.has_integer_kernel:
        return None
    kind = ExactLinear if call.is_linear else ExactLayer
    return kind(call.apply, call.weight, call.bias, before, after), (node.all_input_nodes[0],)

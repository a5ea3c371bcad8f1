"""Make an integer network compute what an integer engine computes, bit for bit where possible.

A layer or a sum of 8-bit tensors with a quantizer after it becomes one module of
`dq.quant.integer.engine_modules`. An activation function between them is dropped if the quantizer
clips the same values. What engines compute in float is unchanged: a layer whose output is not
quantized, one with another activation function, weights of 4 bits, and activations that are not 8
bits wide.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from dq.quant.graph.fuse_activations import RELU, clip_of
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import module_of, tensor_inputs
from dq.quant.graph.trace import remove_dead_code
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.convert import integer_network, quantizer_of_node
from dq.quant.integer.engine_modules import ExactLayer, ExactQuantizer, ExactSum
from dq.quant.integer.modules import IntegerActivation, IntegerLayer
from dq.quant.kernels.rounding import Clip
from dq.quant.numerics.spec import QuantSpec

_SUMS = {operator.add, operator.iadd, torch.add}
_RELUS = {torch.relu, F.relu}
# Engines store narrower weights as another type, which they compute with in float.
_LEAST_WEIGHT_BITS = 5
EXACT = "exact"


def exact_network(graph: QuantizedGraph) -> Callable[..., Any]:
    """Return a callable that computes a quantized graph as an engine would.

    If nothing can be converted, it is the graph itself.

    Args:
        graph: With its ranges, on the CPU, in evaluation mode; unchanged.
    """
    try:
        network = integer_network(graph)
    except ValueError:  # A part was never calibrated, or has no integer form.
        return graph
    fit_biases_(network)
    return network if compute_exactly_(network) else graph


def compute_exactly_(network: fx.GraphModule) -> int:
    """Replace what an engine computes in integers by exact modules; return their number.

    Args:
        network: Result of `dq.quant.integer.convert.integer_network`, with ranges.
    """
    return _Replacement(network).replace_all()


class _Replacement:
    """Rewrites one network.

    Attributes:
        sources: The quantizer of each quantized tensor, found before anything is replaced.
        exact: The exact quantizer for each integer one.
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

    def replace_all(self) -> int:
        num_exact = 0
        for node, quantizer in self.quantizers.items():
            if self.sources.get(node.args[0]) is quantizer:  # Quantizing twice is quantizing once.
                node.replace_all_uses_with(node.args[0])
                self.network.graph.erase_node(node)
                continue
            module, arguments = self._replacement(node, quantizer)
            num_exact += not isinstance(module, ExactQuantizer)
            with self.network.graph.inserting_before(node):
                name = f"{EXACT}.{len(self.modules)}"
                new = self.network.graph.create_node("call_module", name, arguments)
            self.modules.append(module)
            self.sources[new] = quantizer
            node.replace_all_uses_with(new)
            self.network.graph.erase_node(node)
        remove_dead_code(self.network.graph)
        self.network.delete_all_unused_submodules()
        self.network.recompile()
        self.network.eval()
        return num_exact

    def _replacement(
        self, node: fx.Node, quantizer: IntegerActivation
    ) -> tuple[nn.Module, tuple[Any, ...]]:
        output_quantizer = self._exact(quantizer)
        made = node.args[0]
        assert isinstance(made, fx.Node)
        source = self._before_clip(made, output_quantizer)
        module = module_of(self.network, source)
        before = [self.sources.get(n) for n in tensor_inputs(source)]
        whole = [r for r in before if r is not None and _is_whole_byte(r.spec)]
        if len(whole) == len(before) and _is_whole_byte(quantizer.spec):
            given = [self._exact(r) for r in whole]
            if isinstance(module, IntegerLayer) and _has_integer_kernel(module):
                return ExactLayer(module, given[0], output_quantizer), (source.args[0],)
            if _is_plain_sum(source):
                return ExactSum(given[0], given[1], output_quantizer), tuple(source.args)
        return output_quantizer, (made,)

    def _exact(self, quantizer: IntegerActivation) -> ExactQuantizer:
        if quantizer not in self.exact:
            self.exact[quantizer] = ExactQuantizer(quantizer)
        return self.exact[quantizer]

    def _before_clip(self, node: fx.Node, output_quantizer: ExactQuantizer) -> fx.Node:
        """Return the input of an activation function that the quantizer makes redundant."""
        clip = self._clip_of(node)
        if clip is None:
            return node
        low, high = (
            float(end * output_quantizer.scale)
            for end in (output_quantizer.lowest, output_quantizer.highest)
        )
        return node.all_input_nodes[0] if clip[0] <= low and high <= clip[1] else node

    def _clip_of(self, node: fx.Node) -> Clip | None:
        module = module_of(self.network, node)
        if module is not None:
            return clip_of(module)
        function = node.op == "call_function" and node.target in _RELUS
        method = node.op == "call_method" and node.target in ("relu", "relu_")
        return RELU if function or method else None


def _is_whole_byte(spec: QuantSpec) -> bool:
    """Say whether a spec uses all 256 integers; otherwise engines need a Clip before it."""
    return spec.bits == 8 and not spec.narrow


def _has_integer_kernel(layer: IntegerLayer) -> bool:
    weight = layer.weight
    return (
        _LEAST_WEIGHT_BITS <= weight.spec.bits <= 8
        and not isinstance(layer.layer, _ConvTransposeNd)
        and not bool(weight.zero_point.any())
    )


def _is_plain_sum(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and node.target in _SUMS
        and not node.kwargs
        and len(node.args) == 2
        and len(tensor_inputs(node)) == 2
    )

"""Convert a quantized graph to an integer network: the same graph with integer weights.

Batch norms are folded as for inference, and every weight is stored as integers. Activation
quantization is placed where integer engines look for it. It is repeated after carriers (pooling,
reshaping), which changes nothing because quantizing twice is quantizing once. It is moved from
after a concatenation to before it, which changes nothing because a concatenation only moves values.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.roles import Role, module_of, role_of, tensor_inputs
from dq.quant.graph.trace import remove_dead_code
from dq.quant.integer.modules import ExportSwitch, IntegerActivation, IntegerLayer, IntegerWeight
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.layers import QuantizedLayer

# The child with the integer modules, each under the name of its quantizer.
INTEGERS = "integers"


def integer_network(graph: QuantizedGraph, *, empty: bool = False) -> fx.GraphModule:
    """Return the network of a quantized graph as a module that holds integers and needs no recipe.

    Float modules that the graph calls are copied in evaluation mode, sharing the model's tensors.
    The model itself does not change.

    Args:
        graph: With its ranges; unchanged.
        empty: Ranges may be missing, because the network will be loaded from a file.

    Raises:
        ValueError: A quantizer has no range yet, or a layer has no integer form; it is named.
    """
    return _Conversion(graph, empty=empty).network()


def export_switch_of(network: fx.GraphModule) -> ExportSwitch:
    """Return the switch that the network's integer modules share."""
    found = network.meta["export_switch"]
    assert isinstance(found, ExportSwitch)
    return found


def quantizer_of_node(network: fx.GraphModule, node: fx.Node) -> IntegerActivation | None:
    """Return the module that quantized a node's tensor; None if it is not quantized."""
    while role_of(network, node) is Role.CARRIER:
        node = tensor_inputs(node)[0]
    found = module_of(network, node)
    return found if isinstance(found, IntegerActivation) else None


class _Conversion:
    """Converts one graph.

    Attributes:
        modules: What the new graph calls and reads, by name.
    """

    def __init__(self, graph: QuantizedGraph, *, empty: bool) -> None:
        self.root, self.empty = graph.root, empty
        self.names = {site.name for site in graph.sites}
        self.graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(graph.graph, copied))
        self.modules: dict[str, Any] = {}
        self.export_switch = ExportSwitch()
        self.quantizer_of: dict[fx.Node, IntegerActivation] = {}

    @torch.no_grad()
    def network(self) -> fx.GraphModule:
        roles = {node: role_of(self.root, node) for node in self.graph.nodes}
        for node in list(self.graph.nodes):
            self._convert(node)
        self._quantize_before_joins(roles)
        self._quantize_after_carriers(roles)
        remove_dead_code(self.graph)
        held = {id(t): t for t in (*self.root.parameters(), *self.root.buffers())}
        for node in self.graph.nodes:
            if node.op in {"call_module", "get_attr"} and str(node.target) not in self.modules:
                # One memo for all copies, so that shared tensors stay shared.
                copied = copy.deepcopy(_found(self.root, str(node.target)), held)
                self.modules[str(node.target)] = copied
        network = fx.GraphModule(self.modules, self.graph, "IntegerNetwork")
        # Copies and files of a GraphModule keep its meta, but not its other attributes.
        network.meta["export_switch"] = self.export_switch
        return network.eval()

    def _convert(self, node: fx.Node) -> None:
        module = module_of(self.root, node)
        if isinstance(module, QuantizedLayer):
            self._convert_layer(node, module)
        elif isinstance(module, ActivationQuantizer):
            self._convert_activation(node, module)
        elif isinstance(module, WeightQuantizer) and node.users:
            site = str(node.target).removeprefix(f"{CONTAINER}.")
            if site in self.names:  # Otherwise one quantizer serves several calls of a layer.
                self._convert_parameter(node, site, module)

    def _convert_layer(self, node: fx.Node, quantized: QuantizedLayer) -> None:
        site = str(node.target).removeprefix(f"{CONTAINER}.")
        name = f"{INTEGERS}.{site}"
        if name not in self.modules:
            layer = _found(self.root, str(_node(node.args[1]).target))
            given = node.args[2] if len(node.args) > 2 else None
            norm = None if given is None else _found(self.root, str(_node(given).target))
            if isinstance(layer, nn.Linear) and norm is not None:
                raise ValueError(
                    f"{site}: a linear layer with a batch norm has no integer form; leave it in"
                    " float with a rule of quant.rules"
                )
            weight, scale, zero_point = quantized.quantized_weight(layer, norm)
            _, bias = quantized.folded(layer, norm)
            spec = quantized.weight.spec
            held = IntegerWeight(site, weight, scale, zero_point, spec, self.export_switch)
            self.modules[name] = IntegerLayer(held, bias, layer)
        node.target, node.args, node.kwargs = name, (node.args[0],), {}

    def _convert_parameter(self, node: fx.Node, site: str, quantizer: WeightQuantizer) -> None:
        weight = self._constant(_node(node.args[0]))
        scale, zero_point = quantizer.scale_and_zero_point(weight)
        name = f"{INTEGERS}.{site}"
        self.modules[name] = IntegerWeight(
            site, weight, scale, zero_point, quantizer.spec, self.export_switch
        )
        node.target, node.args = name, ()

    def _constant(self, node: fx.Node) -> Tensor:
        """Return the value of a node that depends only on parameters."""
        values: dict[fx.Node, Any] = {}
        needed = _ancestors(node)
        runner = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
        runner.env = values
        for other in self.graph.nodes:
            if other in needed:
                values[other] = runner.run_node(other)
        value = values[node]
        assert isinstance(value, Tensor)
        return value

    def _convert_activation(self, node: fx.Node, quantizer: ActivationQuantizer) -> None:
        site = str(node.target).removeprefix(f"{CONTAINER}.")
        if not (self.empty or quantizer.has_range):
            raise ValueError(f"{site} has no range; calibrate the checkpoint first")
        name = f"{INTEGERS}.{site}"
        self.modules[name] = IntegerActivation(
            site, quantizer.scale, quantizer.zero_point, quantizer.spec, self.export_switch
        )
        node.target = name
        self.quantizer_of[node] = self.modules[name]

    def _quantize_before_joins(self, roles: dict[fx.Node, Role]) -> None:
        for node in list(self.quantizer_of):
            join = _node(node.args[0])
            if roles.get(join) is not Role.JOIN:
                continue
            for part in tensor_inputs(join):
                place = part
                while roles.get(place) is Role.CARRIER and len(place.users) == 1:
                    (place,) = tensor_inputs(place)
                if place not in self.quantizer_of and roles.get(place) is not Role.CARRIER:
                    self._repeat_quantizer(node, place)

    def _quantize_after_carriers(self, roles: dict[fx.Node, Role]) -> None:
        for node in list(self.graph.nodes):
            if roles.get(node) is not Role.CARRIER:
                continue
            source = node
            while roles.get(source) is Role.CARRIER:
                (source,) = tensor_inputs(source)
            readers = [user for user in node.users if user not in self.quantizer_of]
            if source in self.quantizer_of and any(
                roles.get(user) in (Role.LAYER, Role.MIXER, Role.JOIN) for user in readers
            ):
                self._repeat_quantizer(source, node, readers)

    def _repeat_quantizer(
        self, like: fx.Node, after: fx.Node, readers: list[fx.Node] | None = None
    ) -> None:
        """Insert one node's quantization after another node, for all or some of its readers."""
        chosen = set(after.users if readers is None else readers)
        with self.graph.inserting_after(after):
            new = self.graph.call_module(str(like.target), ())
        after.replace_all_uses_with(new, delete_user_cb=lambda user: user in chosen)
        new.args = (after, True)
        self.quantizer_of[new] = self.quantizer_of[like]


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value


def _found(root: nn.Module, target: str) -> Any:
    """Return the module, parameter or buffer of this qualified name."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Return the node and all nodes that its value is computed from."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found

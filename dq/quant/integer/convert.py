"""The integer network of a quantized one: the same graph with integers for weights.

Batch norms are folded as inference folds them, every weight is kept as integers, and rounding is
placed where integer engines look for it: behind carriers (pooling, reshaping) once more, which
changes nothing because rounding twice is rounding once, and before a concatenation instead of
behind it, which changes nothing because a concatenation only moves values.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.roles import Role, is_constant, module_of, role_of, tensor_inputs
from dq.quant.graph.trace import remove_dead_code
from dq.quant.integer.modules import Emitting, IntegerActivation, IntegerLayer, IntegerWeight
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.layers import QuantizedLayer

# Below it lie the integer modules, each under the name of its quantizer.
INTEGERS = "integers"


def integer_network(graph: QuantizedGraph, *, empty: bool = False) -> fx.GraphModule:
    """Return the network of a quantized graph as a module that holds integers and needs no recipe.

    Float modules that the graph calls are copied into it, in evaluation mode, with the tensors of
    the model itself; the model stays in the mode that it is in.

    Args:
        graph: With its ranges in place; unchanged.
        empty: Ranges may be missing, as the network is to be loaded into.

    Raises:
        ValueError: A quantizer has no range yet, or a layer cannot be kept as integers; it is
            named.
    """
    return _Conversion(graph, empty=empty).network()


def emitting_of(network: fx.GraphModule) -> Emitting:
    """Return the switch that the network's integer modules share."""
    found = network.meta["emitting"]
    assert isinstance(found, Emitting)
    return found


def rounding_of(network: fx.GraphModule, node: fx.Node) -> IntegerActivation | None:
    """Return what rounded the tensor that a node of the network yields; None where nothing did."""
    while role_of(network, node) is Role.CARRIER:
        node = tensor_inputs(node)[0]
    found = module_of(network, node)
    return found if isinstance(found, IntegerActivation) else None


class _Conversion:
    """One graph's conversion.

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
        self.emitting = Emitting()
        self.rounding: dict[fx.Node, IntegerActivation] = {}

    @torch.no_grad()
    def network(self) -> fx.GraphModule:
        for node in self.graph.nodes:
            is_constant(node)  # In topological order, so that no answer needs a deep recursion.
        roles = {node: role_of(self.root, node) for node in self.graph.nodes}
        for node in list(self.graph.nodes):
            self._convert(node)
        self._round_before_joins(roles)
        self._round_behind_carriers(roles)
        remove_dead_code(self.graph)
        held = {id(t): t for t in (*self.root.parameters(), *self.root.buffers())}
        for node in self.graph.nodes:
            if node.op in {"call_module", "get_attr"} and str(node.target) not in self.modules:
                # One memo for all: what they share they go on sharing.
                copied = copy.deepcopy(_found(self.root, str(node.target)), held)
                self.modules[str(node.target)] = copied
        network = fx.GraphModule(self.modules, self.graph, "IntegerNetwork")
        network.meta["emitting"] = self.emitting
        return network.eval()

    def _convert(self, node: fx.Node) -> None:
        module = module_of(self.root, node)
        if isinstance(module, QuantizedLayer):
            self._convert_layer(node, module)
        elif isinstance(module, ActivationQuantizer):
            self._convert_activation(node, module)
        elif isinstance(module, WeightQuantizer) and node.users:
            site = str(node.target).removeprefix(f"{CONTAINER}.")
            if site in self.names:  # Else it rounds once for several calls of a layer.
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
                    f"{site}: a linear layer with a batch norm has no integer form here; leave it"
                    " in float with a rule of quant.rules"
                )
            weight, scale, zero_point = quantized.quantized_weight(layer, norm)
            _, bias = quantized.folded(layer, norm)
            spec = quantized.weight.spec
            held = IntegerWeight(site, weight, scale, zero_point, spec, self.emitting)
            self.modules[name] = IntegerLayer(held, bias, layer)
        node.target, node.args, node.kwargs = name, (node.args[0],), {}

    def _convert_parameter(self, node: fx.Node, site: str, quantizer: WeightQuantizer) -> None:
        weight = self._constant(_node(node.args[0]))
        scale, zero_point = quantizer.scale_and_zero_point(weight)
        name = f"{INTEGERS}.{site}"
        self.modules[name] = IntegerWeight(
            site, weight, scale, zero_point, quantizer.spec, self.emitting
        )
        node.target, node.args = name, ()

    def _constant(self, node: fx.Node) -> Tensor:
        """Return the value of a node that depends on parameters alone."""
        values: dict[fx.Node, Any] = {}
        needed = _ancestors(node)
        runner = fx.Interpreter(self.root, graph=self.graph)
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
            site, quantizer.scale, quantizer.zero_point, quantizer.spec, self.emitting
        )
        node.target = name
        self.rounding[node] = self.modules[name]

    def _round_before_joins(self, roles: dict[fx.Node, Role]) -> None:
        for node in list(self.rounding):
            join = _node(node.args[0])
            if roles.get(join) is not Role.JOIN:
                continue
            for part in tensor_inputs(join):
                place = part
                while roles.get(place) is Role.CARRIER and len(place.users) == 1:
                    (place,) = tensor_inputs(place)
                if place not in self.rounding and roles.get(place) is not Role.CARRIER:
                    self._round_like(node, place)

    def _round_behind_carriers(self, roles: dict[fx.Node, Role]) -> None:
        for node in list(self.graph.nodes):
            if roles.get(node) is not Role.CARRIER:
                continue
            source = node
            while roles.get(source) is Role.CARRIER:
                (source,) = tensor_inputs(source)
            readers = [user for user in node.users if user not in self.rounding]
            if source in self.rounding and any(
                roles.get(user) in (Role.LAYER, Role.MIXER, Role.JOIN) for user in readers
            ):
                self._round_like(source, node, readers)

    def _round_like(
        self, like: fx.Node, behind: fx.Node, readers: list[fx.Node] | None = None
    ) -> None:
        """Insert the rounding of one node behind another, for all or some of its readers."""
        chosen = set(behind.users if readers is None else readers)
        with self.graph.inserting_after(behind):
            new = self.graph.call_module(str(like.target), ())
        behind.replace_all_uses_with(new, delete_user_cb=lambda user: user in chosen)
        new.args = (behind, True)
        self.rounding[new] = self.rounding[like]


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
    """Return the node and all that its value is computed from."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found

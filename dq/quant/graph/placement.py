"""Decide which tensors of a graph get a quantizer, by the rules of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from dq.quant.graph.functions import Function
from dq.quant.graph.nodes import called_name, is_shape
from dq.quant.graph.roles import Role, role_of, tensor_inputs
from dq.quant.targets.target import Results, Sums, Target

_SUMS = {"add", "iadd"}


class Placement:
    """The tensors of one graph that get a quantizer.

    Args:
        root: The model; its layers are quantized layers already.
        graph: Its graph; it is not changed.
        target: The engine's rules.
        functions: The graph's functions, from `dq.quant.graph.functions.find_functions`.
        is_quantized: Returns whether the weight of a layer's node is quantized.
        outputs: Also quantize the outputs of the last layers.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        target: Target,
        functions: Iterable[Function],
        is_quantized: Callable[[fx.Node], bool],
        *,
        outputs: bool,
    ) -> None:
        self.root, self.graph, self.target, self.outputs = root, graph, target, outputs
        self.is_quantized = is_quantized
        self.number = {node: number for number, node in enumerate(graph.nodes)}
        self.inside: set[fx.Node] = set()
        self.after: dict[fx.Node, Function] = {}
        if target.finds_functions:
            for function in functions:
                self.after.setdefault(function.source, function)
                if len(function.nodes) > 1:
                    self.inside.update(function.nodes)
        self.wanted: set[fx.Node] = set()

    def find(self) -> set[fx.Node]:
        """Return the nodes with a quantizer for their value."""
        for node in self.graph.nodes:
            if self._runs_in_integers(node):
                for tensor in self._read_as_integers(node):
                    self._require(tensor)
            elif node.op == "output" and self.outputs:
                seen: set[fx.Node] = set()
                for tensor in node.all_input_nodes:
                    self._require_before_output(tensor, seen)
        if self.target.results is Results.ALL:
            for node in self.graph.nodes:
                if self._runs_in_integers(node):
                    self._require_result(node)
        return self.wanted

    def _runs_in_integers(self, node: fx.Node) -> bool:
        if node in self.inside:
            return False
        role = role_of(self.root, node)
        if role is Role.LAYER:
            return self.is_quantized(node)
        return role is Role.MIXER and self.target.mixers

    def _read_as_integers(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs that need a quantizer for this integer operation."""
        tensors = tensor_inputs(node)
        is_sum = called_name(node) in _SUMS
        if self.target.sums is Sums.ALL or not is_sum or len(tensors) < 2:
            return tensors
        # The sum is fused into one layer: the engine adds the others to its unrounded result.
        layers = [
            tensor
            for tensor in tensors
            if role_of(self.root, tensor) is Role.LAYER
            and self.is_quantized(tensor)
            and len(tensor.users) == 1
        ]
        fused = max(layers, key=self.number.__getitem__, default=None)
        return [tensor for tensor in tensors if tensor is not fused]

    def _require(self, node: fx.Node) -> None:
        """Mark a node, or the node before it if it only moves values (`Role.CARRIER`)."""
        while role_of(self.root, node) is Role.CARRIER:
            (node,) = tensor_inputs(node)
        if node in self.wanted:
            return
        self.wanted.add(node)
        if role_of(self.root, node) is Role.JOIN:
            for part in tensor_inputs(node):
                if len(readers_of(part)) > 1:
                    self._require(part)

    def _require_before_output(self, node: fx.Node, seen: set[fx.Node]) -> None:
        """Mark the last quantized operations before an output."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node in seen or node in self.wanted:
                continue
            seen.add(node)
            if self._runs_in_integers(node):
                self._require(node)
            elif role_of(self.root, node) is not Role.INPUT:
                stack += tensor_inputs(node)

    def _require_result(self, node: fx.Node) -> None:
        """Mark the result of an integer operation, after the function that is fused into it."""
        function = self.after.get(node)
        while (
            function is not None
            and self.target.is_fused(function.kind)
            and set(readers_of(node)) <= set(function.nodes)
        ):
            node = function.value
            function = self.after.get(node)
        join = self._only_join(node)
        if join is None:
            self._require(node)
        else:
            self._require(join)  # All parts of a concatenation share its quantizer.

    def _only_join(self, node: fx.Node) -> fx.Node | None:
        """Return the concatenation that is the only reader of the node; None if there is none."""
        while True:
            readers = readers_of(node)
            if len(readers) != 1:
                return None
            (node,) = readers
            role = role_of(self.root, node)
            if role is Role.JOIN:
                return node
            if role is not Role.CARRIER:
                return None


def fixed_bounds(
    functions: Iterable[Function], target: Target
) -> Mapping[fx.Node, tuple[float, float]]:
    """Return the bounds of each function value that has a fixed range for the target."""
    return {f.value: target.fixed[f.kind] for f in functions if f.kind in target.fixed}


def readers_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read the node's values, and not only its sizes."""
    return [user for user in node.users if not reads_shape(user)]


def reads_shape(node: fx.Node) -> bool:
    """Return whether the node only reads sizes, which quantization does not change."""
    return node.op in {"call_function", "call_method"} and is_shape(node)

"""Find the activation functions of a graph by their values, not by how they are written.

``nn.SiLU()(x)``, ``F.silu(x)``, ``x * torch.sigmoid(x)`` and mmcv's ``Swish`` are one function. So
the graph is searched for nodes that together compute an elementwise function of one tensor. These
are run on some numbers, and their results are compared with those of known functions.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.comparison import tried
from dq.quant.graph.nodes import called_name, is_shape, module_of
from dq.quant.graph.roles import Role, is_constant, role_of, tensor_inputs
from dq.quant.numerics.activation_functions import FUNCTIONS, NAMED
from dq.quant.quantizers.fake_quantize import ActivationQuantizer

# Its parameter belongs to each channel, so it is computed from more than one tensor.
PRELU = NAMED["prelu"]
# Elementwise operations other than activation functions; some take numbers beside the tensor.
# Sums and products join functions to others.
_NAMES = [
    "abs",
    "add",
    "asinh",
    "atan",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "cos",
    "div",
    "exp",
    "expm1",
    "hardshrink",
    "iadd",
    "imul",
    "isub",
    "itruediv",
    "log",
    "log1p",
    "logsigmoid",
    "max",
    "maximum",
    "min",
    "minimum",
    "mul",
    "neg",
    "pow",
    "reciprocal",
    "rsqrt",
    "selu",
    "sin",
    "softsign",
    "sqrt",
    "square",
    "sub",
    "truediv",
    "where",
]
_FUNCTIONS = {
    found
    for place in (torch, F, operator)
    for name in _NAMES
    if callable(found := getattr(place, name, None))
}
_FUNCTIONS |= {call for each in FUNCTIONS if each is not PRELU for call in each.calls}
_FUNCTIONS |= {torch.special.expit, torch.special.erf}
_METHODS = {*_NAMES, *(f"{name}_" for name in _NAMES)}
_METHODS |= {name for each in FUNCTIONS for name in each.methods}
# These alone do not make a function: they only scale and shift, or join two tensors.
_ARITHMETIC = {"add", "div", "iadd", "imul", "isub", "itruediv", "mul", "neg", "sub", "truediv"}
_SUMS = {"add", "iadd", "isub", "sub"}
# The number of operations in the longest function: GELU with tanh has nine.
_LONGEST = 12

_PROBE = torch.linspace(-8.0, 8.0, 60)
# Values far from zero, where a function may have another sign than at the probe.
_FAR = torch.logspace(1, 4, 30)
_FAR = torch.cat([-_FAR.flip(0), _FAR])
_SHAPE = (1, 4, 3, 5)
OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function of one tensor, element by element.

    Attributes:
        kind: Name of a recognised function in `dq.quant.numerics.activation_functions`,
            ``leaky_relu``, ``prelu``, ``clip`` (ReLU, ReLU6 and other bounds), or ``other``.
        source: The node of its argument.
        nodes: The nodes that compute it, in order; the last one has its value.
        is_never_negative: Whether its values are 0 or more, as those of ReLU.
    """

    kind: str
    source: fx.Node
    nodes: tuple[fx.Node, ...]
    is_never_negative: bool = False

    @property
    def value(self) -> fx.Node:
        """The node of its value."""
        return self.nodes[-1]


@torch.no_grad()
def find_functions(root: nn.Module, graph: fx.Graph) -> list[Function]:
    """Return the functions of a graph, in order; each node is in at most one of them.

    Some of the model's modules are run. Their modes, buffers and random generators are restored.

    Args:
        root: The model, on any device.
        graph: Its graph.
    """
    with tried(root):
        return _found(_Search(root, graph), graph)


def _found(search: _Search, graph: fx.Graph) -> list[Function]:
    found: list[Function] = []
    taken: set[fx.Node] = set()
    # From the last node back, so that a function is found before its own parts.
    for node in reversed(graph.nodes):
        if node in taken:
            continue
        function = search.function_at(node)
        if function is not None and not taken & set(function.nodes):
            found.append(function)
            taken.update(function.nodes)
    return found[::-1]


class _Search:
    """Searches one graph.

    Args:
        root: The model.
        graph: Its graph; unchanged.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.order = {node: number for number, node in enumerate(graph.nodes)}
        self.modules: dict[type[nn.Module], bool] = {}
        # Values at the probe, by the nodes that were tried and their source.
        self.values: dict[tuple[fx.Node, ...], Tensor | None] = {}
        self.known = {each.name: each.compute(_PROBE) for each in FUNCTIONS if each.is_recognised}

    def function_at(self, node: fx.Node) -> Function | None:
        """Return the function that has this node as its value; None if there is none."""
        if not self._is_elementwise(node):
            return None
        nodes, source = self._widest(node)
        if source is None or all(called_name(n) in _ARITHMETIC for n in nodes):
            return None
        kind = self._kind(nodes, source)
        if (
            called_name(node) in _ARITHMETIC
            and kind == OTHER
            and not self._reads_twice(nodes, source)
        ):
            return None  # A function, and a scale that is not part of it.
        if called_name(node) in _SUMS and kind == OTHER:
            return None  # A function, and a residual sum.
        if len(nodes) > 1 and kind == OTHER and not self._reads_twice(nodes, source):
            return self._single(node)  # Several functions in a row.
        return self._described(kind, nodes, source)

    def _single(self, node: fx.Node) -> Function | None:
        sources = tensor_inputs(node)
        if len(sources) != 1 or called_name(node) in _ARITHMETIC:
            return None
        return self._described(self._kind([node], sources[0]), [node], sources[0])

    def _described(self, kind: str, nodes: Sequence[fx.Node], source: fx.Node) -> Function:
        return Function(
            kind=kind,
            source=source,
            nodes=tuple(nodes),
            is_never_negative=self._is_never_negative(nodes, source),
        )

    def _is_never_negative(self, nodes: Sequence[fx.Node], source: fx.Node) -> bool:
        values = self._values(nodes, source)
        if values is None or bool((values < 0).any()):
            return False
        return bool((self._run(nodes, source, _FAR) >= 0).all())

    def _values(self, nodes: Sequence[fx.Node], source: fx.Node) -> Tensor | None:
        """Return the function's values at the probe, shape (P,); None if it cannot be run there."""
        key = (*nodes, source)
        if key not in self.values:
            try:
                self.values[key] = self._run(nodes, source, _PROBE)
            except Exception:  # For example its parameters do not fit the size of the probe.
                self.values[key] = None
        return self.values[key]

    def _reads_twice(self, nodes: Sequence[fx.Node], source: fx.Node) -> bool:
        return sum(source in node.all_input_nodes for node in nodes) > 1

    def _widest(self, node: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
        """Return the nodes that compute ``node`` from a single source node, and that source.

        The search goes back from ``node``. It takes the first single source, or one further back if
        the nodes from there are a known function. The source is None if there is none.
        """
        nodes, frontier = [node], set(tensor_inputs(node))
        best: tuple[list[fx.Node], fx.Node | None] = ([node], None)
        while frontier and len(nodes) <= _LONGEST:
            last = max(frontier, key=self.order.__getitem__)
            if len(frontier) == 1:
                whole = sorted(nodes, key=self.order.__getitem__)
                if best[1] is None or self._kind(whole, last) != OTHER:
                    best = (whole, last)
            used_elsewhere = any(user not in nodes and not is_shape(user) for user in last.users)
            if used_elsewhere or not self._is_elementwise(last):
                break
            nodes.append(last)
            frontier = (frontier - {last}) | set(tensor_inputs(last))
        return best

    def _is_elementwise(self, node: fx.Node) -> bool:
        if is_constant(node) or is_shape(node) or not tensor_inputs(node):
            return False
        if node.op == "call_function":
            return node.target in _FUNCTIONS
        if node.op == "call_method":
            return node.target in _METHODS
        module = module_of(self.root, node)
        if module is None or role_of(self.root, node) is not Role.OTHER:
            return False
        if isinstance(module, PRELU.modules):
            return True
        if isinstance(module, ActivationQuantizer) or any(True for _ in module.parameters()):
            return False
        if type(module) not in self.modules:
            self.modules[type(module)] = _maps_each_element(module)
        return self.modules[type(module)]

    def _kind(self, nodes: Sequence[fx.Node], source: fx.Node) -> str:
        module, target = module_of(self.root, nodes[-1]), nodes[-1].target
        if len(nodes) == 1 and (isinstance(module, PRELU.modules) or target in PRELU.calls):
            return PRELU.name
        values = self._values(nodes, source)
        return OTHER if values is None else _kind_of(values, self.known)

    def _run(self, nodes: Sequence[fx.Node], source: fx.Node, probe: Tensor) -> Tensor:
        """Return the function's values at a probe, shape (P,)."""
        # To garbage-collect values it would first go through the whole graph, for each function.
        runner = fx.Interpreter(_OnCpu(self.root), garbage_collect_values=False, graph=source.graph)
        runner.env = {source: probe.reshape(_SHAPE).clone()}
        for node in nodes:
            for used in node.all_input_nodes:
                if used not in runner.env:
                    _run_constant(runner, used)
            runner.env[node] = runner.run_node(node)
        value = runner.env[nodes[-1]]
        assert isinstance(value, Tensor)
        return value.reshape(probe.shape).float()


class _OnCpu(nn.Module):
    """Gives an interpreter the modules of a model, and its tensors as copies on the CPU.

    Args:
        root: The model.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.__dict__["root"] = root

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["root"], name)
        return found.detach().cpu().float() if isinstance(found, Tensor) else found


def _run_constant(runner: fx.Interpreter, node: fx.Node) -> None:
    if not is_constant(node):
        raise ValueError(f"{node} is not a constant")
    for used in node.all_input_nodes:
        if used not in runner.env:
            _run_constant(runner, used)
    value = runner.run_node(node)
    runner.env[node] = value.detach().cpu() if isinstance(value, Tensor) else value


def _maps_each_element(module: nn.Module) -> bool:
    """Return whether a module is elementwise; tried on a few inputs."""
    x = _PROBE.reshape(_SHAPE)
    was_training = module.training
    try:
        module.eval()
        whole = module(x.clone())
        if not isinstance(whole, Tensor) or whole.shape != x.shape:
            return False
        for seed in range(2):
            mask = torch.rand(_SHAPE, generator=torch.Generator().manual_seed(seed)) < 0.5
            part = module(torch.where(mask, x, torch.flip(x, [-1, -2])))
            if not torch.equal(part[mask], whole[mask]):
                return False
    except Exception:
        return False  # It needs inputs of another shape or number.
    finally:
        module.train(was_training)
    return True


def _kind_of(values: Tensor, known: Mapping[str, Tensor]) -> str:
    """Return the kind of the function with these values at the probe.

    Args:
        values: Shape (P,).
        known: The values of the known functions, by name; shape (P,) each.
    """
    close = torch.isclose(values, torch.stack([*known.values()]), rtol=1e-4, atol=1e-5).all(1)
    if close.any():
        return [*known][int(close.nonzero()[0])]
    if torch.equal(values, _PROBE.clamp(float(values.min()), float(values.max()))):
        return "clip"
    positive, negative = _PROBE > 0, _PROBE < 0
    slope = values[negative] / _PROBE[negative]
    if torch.equal(values[positive], _PROBE[positive]) and torch.allclose(slope, slope.mean()):
        return "leaky_relu"
    return OTHER

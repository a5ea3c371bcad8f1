"""A model's forward pass as a torch.fx graph that runs with the model itself as ``self``.

torch.fx.GraphModule would build a second module hierarchy. Here the graph's code is bound to the
model: every call looks its module up in the model. So a layer that is replaced later is used at
once, and the state dict is the model's own.
"""

from __future__ import annotations

import copy
import hashlib
import linecache
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from dq.error_text import error_text
from dq.quant.graph.comparison import Reference
from dq.quant.graph.inputs import forward_with_inputs
from dq.quant.graph.nodes import (
    PART_OF_RESULT,
    SIDE_EFFECT,
    WITHOUT_GRADIENT,
    FlatGraph,
    flattened,
    module_of,
    restored,
)
from dq.quant.graph.without_gradient import detach_results_
from dq.quant.graph.writes import AUGMENTED, WriteError, replace_inplace_writes_
from dq.quant.kernels.recompute import version_of
from dq.quant.quantizers.layer_types import (
    declare_again,
    declared_layers,
    has_weight_of_hook,
    is_plain_layer,
)

# What a graph is compiled to.
_COMPILED = ("function", "training_function")
# In a file: what was declared about the types of the model's layers.
_DECLARED = "declared_layers"


class TraceError(RuntimeError):
    """A model, or a part of it, whose forward pass depends on data and has no static graph.

    Attributes:
        calls: Qualified names of the modules being called, the outermost first.
    """

    calls: tuple[str, ...] = ()


LeafTest = Callable[[nn.Module], bool]


class _Proxy(fx.Proxy):
    """A traced value that supports in-place writes.

    Attributes:
        requires_grad: False, so that code with activation checkpointing takes its plain path.
    """

    tracer: _Tracer
    requires_grad = False

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("data", "grad"):
            raise TypeError(f"{self.node.name}.{name} is assigned to; use copy_() or a new tensor")
        super().__setattr__(name, value)


def _augmented(function: Callable[..., Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    # Nodes get the name of the plain operator, which most of them become.
    name = AUGMENTED[function].__name__.strip("_")

    def assign(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name=name)

    return assign


for _function in AUGMENTED:
    setattr(_Proxy, f"__{_function.__name__}__", _augmented(_function))


class _ExampleProxy(_Proxy):
    """A value whose rank, or number of parts, is known from the examples.

    Both are the same for every input. The sizes of a tensor are not, and stay unknown.
    """

    def dim(self) -> int:
        """Return the number of dimensions."""
        rank: int = self.tracer.example_of(self.node).dim()
        return rank

    @property
    def ndim(self) -> int:
        """See `dim`."""
        return self.dim()

    def __len__(self) -> int:
        value = self.tracer.example_of(self.node)
        if not isinstance(value, list | tuple):
            raise TypeError("the size of a tensor differs from input to input")
        return len(value)

    def __iter__(self) -> Iterator[fx.Proxy]:
        take = self.tracer.create_proxy
        return iter(
            [take("call_function", operator.getitem, (self, i), {}) for i in range(len(self))]
        )


class _Tracer(fx.Tracer):
    """Keep layers, norms and ``is_leaf`` modules as nodes; trace into every other module.

    Attributes:
        calls: Names of the modules being called now.
        failed: ``calls`` at the first error.
    """

    def __init__(
        self, is_leaf: LeafTest, structures: Mapping[str, Any], examples: Sequence[torch.Tensor]
    ) -> None:
        super().__init__()
        self.is_leaf = is_leaf
        self.structures = structures
        self.examples = examples
        self.calls: list[str] = []
        self.failed: tuple[str, ...] | None = None
        self.runs_example = False
        self.values: dict[fx.Node, Any] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (_ExampleProxy if self.examples else _Proxy)(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Mark what is computed without a gradient."""
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta[WITHOUT_GRADIENT] = True
        return node

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.runs_example:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self.calls.append(path)
        try:
            if has_weight_of_hook(m) and not self.is_leaf(m):
                raise TypeError(
                    "a hook computes its weight; use torch.nn.utils.parametrizations.weight_norm or"
                    " spectral_norm instead of those of torch.nn.utils"
                )
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or tuple(self.calls)
            raise
        finally:
            self.calls.pop()
        if isinstance(result, fx.Proxy) and path in self.structures:
            return self._unpack(result, self.structures[path])
        return result

    def _unpack(self, value: Any, structure: Any) -> Any:
        """Return a kept module's result with the lists, tuples and dicts of ``structure``.

        Its parts are marked: they are tensors of their own, not selections from a tensor.
        """
        if isinstance(structure, Mapping):
            return {key: self._part(value, key, part) for key, part in structure.items()}
        if isinstance(structure, list | tuple):
            parts = [self._part(value, index, part) for index, part in enumerate(structure)]
            return parts if isinstance(structure, list) else tuple(parts)
        return None if structure is None else value

    def _part(self, value: Any, key: Any, structure: Any) -> Any:
        part = value[key]
        part.node.meta[PART_OF_RESULT] = True
        return self._unpack(part, structure)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.runs_example:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    @torch.no_grad()
    def example_of(self, node: fx.Node) -> Any:
        """Return the node's value for the examples, with every module in evaluation mode."""
        examples = iter(self.examples)
        modes = {module: module.training for module in self.root.modules()}
        for module in modes:
            module.training = False
        self.runs_example = True
        try:
            runner = fx.Interpreter(self.root, graph=node.graph)
            runner.env = self.values
            for earlier in node.graph.nodes:
                if earlier in self.values:
                    continue
                if earlier.op == "placeholder":
                    self.values[earlier] = next(examples)
                else:
                    self.values[earlier] = runner.run_node(earlier)
                if earlier is node:
                    break
        finally:
            self.runs_example = False
            for module, mode in modes.items():
                module.training = mode
        return self.values[node]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.is_leaf(m):
            return True
        if isinstance(m, _ConvNd | nn.Linear | _BatchNorm):
            # A subclass with its own forward (adaptive padding, weight standardisation) computes
            # something else, so it is traced into.
            return is_plain_layer(m) or isinstance(m, _BatchNorm)
        return bool(super().is_leaf_module(m, module_qualified_name))


def _keep_statistics_(root: nn.Module, graph: fx.Graph) -> None:
    """Mark norms that are called for their running statistics alone, so that they stay.

    A norm is not marked if it reads a layer with parameters whose result nothing else uses, such as
    the last stage of a backbone that a detector computes but ignores. Such layers are left out, and
    their parameters get no gradient.
    """
    used: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        root_of_use = node.op in {"placeholder", "output"} or SIDE_EFFECT in node.meta
        used[node] = root_of_use or any(used[user] for user in node.users)
    free: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        module = module_of(root, node)
        inputs = all(free[read] for read in node.all_input_nodes)
        if not node.users and inputs and _has_statistics(module):
            node.meta[SIDE_EFFECT] = True
        owns = node.op == "get_attr" or (
            module is not None and any(True for _ in module.parameters())
        )
        free[node] = used[node] or (inputs and not owns)


def _has_statistics(module: nn.Module | None) -> bool:
    return isinstance(module, _NormBase) and module.training and module.track_running_stats


def trace(
    root: nn.Module,
    forward: Callable[..., Any] | None = None,
    *,
    is_leaf: LeafTest = lambda module: False,
    structures: Mapping[str, Any] | None = None,
    examples: Sequence[torch.Tensor] = (),
    names: Sequence[str] = (),
) -> fx.Graph:
    """Trace ``forward(*inputs)`` into a graph whose module names are those of ``root``.

    Args:
        root: The model.
        forward: What to trace, calling modules of ``root``; ``root.forward`` by default.
        is_leaf: Says whether to keep a module as one node.
        structures: Example results of modules kept as one node, by qualified name, if these return
            more than a tensor.
        examples: One tensor per input of ``forward``; a single input needs none. With examples, a
            forward pass may ask for a tensor's rank.
        names: Of the inputs; ``x``, ``y``, ``x2``, ``x3``, ... by default.

    Returns:
        The graph. After an in-place write, readers use a node of its own that holds the new value
        (`dq.quant.graph.writes`). Constant tensors that the forward pass makes are registered on
        ``root`` as non-persistent buffers.

    Raises:
        TraceError: The forward pass depends on data, always changes the model's own buffers, or
            writes in place where that cannot be followed; the message names the place.
    """
    names = names or _input_names(len(examples))
    shell = _shell_with(names)(root, forward or root.forward)
    tracer = _Tracer(is_leaf, structures or {}, examples)
    state = _State(root)
    try:
        with torch.enable_grad():  # So that the model's own ``no_grad`` blocks are seen.
            graph = tracer.trace(shell)
        if not tracer.values:  # Else modules ran on the examples and may have changed buffers.
            state.refuse_changes()
        detach_results_(root, graph)
        replace_inplace_writes_(root, graph)
    except Exception as error:
        calls = error.calls if isinstance(error, WriteError) else tracer.failed or ()
        where = f" in {calls[-1]}" if calls else ""
        reason = error_text(error)
        failure = TraceError(f"{type(root).__name__} has no static graph{where}: {reason}")
        failure.calls = calls
        raise failure from error
    finally:
        state.put_back()
    _keep_statistics_(root, graph)
    remove_dead_code(graph)
    for node in graph.nodes:
        if node.op == "get_attr" and "." not in node.target and not hasattr(root, node.target):
            root.register_buffer(node.target, getattr(shell, node.target), persistent=False)
    return graph


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove every node that no output depends on, in place, except writes into the model."""
    graph.eliminate_dead_code(
        lambda node: node.op in {"placeholder", "output"} or SIDE_EFFECT in node.meta
    )


class _State:
    """A model's buffers before tracing, which runs parts of its forward pass."""

    def __init__(self, root: nn.Module) -> None:
        self.found = [
            (module, prefix, name, buffer, version_of(buffer), buffer.detach().clone())
            for prefix, module in root.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def refuse_changes(self) -> None:
        """Raise WriteError if tracing changed a buffer, because the graph would not."""
        for module, prefix, name, buffer, version, _ in self.found:
            if module._buffers.get(name) is not buffer or version_of(buffer) != version:
                error = WriteError(
                    f"the forward pass changes the buffer {prefix}{'.' if prefix else ''}{name}"
                    " for every input, which a graph cannot repeat"
                )
                error.calls = (prefix,) if prefix else ()
                raise error

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the value of every buffer."""
        for module, _, name, buffer, version, value in self.found:
            if version_of(buffer) != version:
                buffer.copy_(value)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer


class _Shell(nn.Module):
    """A module with the children and parameters of ``root`` and another forward pass."""

    function: Callable[..., Any]

    def __init__(self, root: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        # Copies, so that what tracing sets on the shell, such as constants, is not on the model.
        self._modules = dict(root._modules)
        self._parameters = dict(root._parameters)
        self._buffers = dict(root._buffers)
        # Not by setattr: nn.Module would register a function that is a module, as a child.
        self.__dict__["function"] = function


def _shell_with(names: Sequence[str]) -> type[_Shell]:
    """Return a shell whose forward pass has inputs of these names."""
    return type("_Shell", (_Shell,), {"forward": forward_with_inputs(names, "function")})


def _input_names(number: int) -> list[str]:
    """Return names for this number of inputs, at least one; input quantizers are named by them."""
    return ["x", "y", *(f"x{n}" for n in range(2, number))][: max(1, number)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The result of tracing a model.

    Attributes:
        graph: The forward pass in evaluation mode.
        training_graph: The forward pass in training mode if it differs, else None.
        left_float: Qualified names of modules that were kept whole, with the reason.
        reference: What was traced, to check that the graph computes the same.
    """

    graph: fx.Graph
    training_graph: fx.Graph | None = None
    left_float: Mapping[str, str] = field(default_factory=dict)
    reference: Reference | None = None

    def copied(self) -> Traced:
        """Return copies of the graphs, which may be changed."""
        training = None if self.training_graph is None else _copied(self.training_graph)
        return replace(self, graph=_copied(self.graph), training_graph=training)


def _copied(graph: fx.Graph) -> fx.Graph:
    copied: fx.Graph = copy.deepcopy(graph)
    return copied


class BoundGraph:
    """Call a graph with ``root`` as the module that its names refer to.

    Args:
        root: The model; kept by reference, not registered as a child.
        graph: The graph from `trace`, or one per mode. Call `recompile` after changing it.

    Attributes:
        training_graph: The graph that runs while ``root`` is in training mode; None if ``graph``
            runs in both modes.
        left_float: Modules that tracing kept whole, with the reason.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph | Traced) -> None:
        traced = graph if isinstance(graph, Traced) else Traced(graph=graph)
        self.root = root
        self.graph = traced.graph
        self.training_graph = traced.training_graph
        self.left_float = dict(traced.left_float)
        self.recompile()

    def recompile(self) -> None:
        """Turn the graph, or both, into Python functions."""
        self.function = self._compile(self.graph)
        self.training_function = (
            None if self.training_graph is None else self._compile(self.training_graph)
        )

    def _compile(self, graph: fx.Graph) -> Callable[..., Any]:
        code = graph.python_code("self")
        name = f"<dq.quant graph {hashlib.sha256(code.src.encode()).hexdigest()[:12]}>"
        namespace = dict(code.globals)
        exec(compile(code.src, name, "exec"), namespace)
        # So that tracebacks through the graph show its lines.
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(keepends=True), name)
        function: Callable[..., Any] = namespace["forward"]
        return function

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundGraph:
        """Return a copy, with a copy of the model; the compiled functions serve both."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes into a file: all but the compiled functions, with graphs as lists."""
        state = {
            name: flattened(value) if isinstance(value, fx.Graph) else value
            for name, value in vars(self).items()
            if name not in _COMPILED
        }
        return {**state, _DECLARED: declared_layers(self.root.modules())}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Set the state from a file; an old file may contain graphs instead of lists."""
        for name, value in state.items():
            if name == _DECLARED:
                declare_again(value)
            else:
                vars(self)[name] = restored(value) if isinstance(value, FlatGraph) else value

    def __getattr__(self, name: str) -> Any:
        """Compile the graphs of an object that has come from a file, when they are first needed.

        Not earlier: while a file is read, the model that refers to this object may be incomplete.
        """
        if name in _COMPILED and "graph" in vars(self):
            self.recompile()
            return vars(self)[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph on the model's present modules and return its outputs."""
        if self.training_function is not None and self.root.training:
            return self.training_function(self.root, *inputs)
        return self.function(self.root, *inputs)

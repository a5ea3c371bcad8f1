"""A model's forward pass as one torch.fx graph that runs with the model itself as ``self``.

torch.fx.GraphModule would build a second hierarchy of modules beside the model's. Here the graph's
code is bound to the model instead: every call looks its module up where the model has it, so a
layer replaced later is used at once, and the state dict stays the model's own.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_file_numbers = itertools.count()


class TraceError(RuntimeError):
    """A model, or a part of it, whose forward pass depends on data and has no static graph."""


LeafTest = Callable[[nn.Module], bool]

# Subclasses of torch's layers with a forward of their own that computes the same.
_plain_layers: set[type[nn.Module]] = set()


def declare_plain_layers(*types: type[nn.Module]) -> None:
    """Let these subclasses of a torch layer count as that layer, whatever their forward is."""
    _plain_layers.update(types)


class _Tracer(fx.Tracer):
    """Keep layers, norms and what ``is_leaf`` says as nodes; look into every other module."""

    def __init__(self, is_leaf: LeafTest) -> None:
        super().__init__()
        self.is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.is_leaf(m):
            return True
        if isinstance(m, _ConvNd | nn.Linear | _BatchNorm):
            # A subclass with a forward of its own (adaptive padding, weight standardisation)
            # computes something else than the layer, so it has to be looked into.
            return is_plain_layer(m) or isinstance(m, _BatchNorm)
        return bool(super().is_leaf_module(m, module_qualified_name))


def is_plain_layer(module: nn.Module) -> bool:
    """Say whether ``module`` computes just what torch's layer of its kind computes."""
    for kind in (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
    ):
        if isinstance(module, kind):
            return type(module).forward is kind.forward or type(module) in _plain_layers
    return False


def trace(
    root: nn.Module,
    forward: Callable[..., Any] | None = None,
    *,
    is_leaf: LeafTest = lambda module: False,
) -> fx.Graph:
    """Trace ``forward(*inputs)`` into a graph whose module names are those of ``root``.

    Args:
        root: The model.
        forward: What to trace, calling modules of ``root``; ``root.forward`` by default.
        is_leaf: Says of a module whether to keep it as one node.

    Returns:
        The graph. Tensors that the forward pass makes once are kept on ``root`` as buffers outside
        the state dict.

    Raises:
        TraceError: The forward pass decides on data; the message names where.
    """
    shell = _Shell(root, forward or root.forward)
    try:
        graph = _Tracer(is_leaf).trace(shell)
    except Exception as error:
        raise TraceError(f"{type(root).__name__} has no static graph: {error}") from error
    remove_dead_code(graph)
    for node in graph.nodes:
        if node.op == "get_attr" and "." not in node.target and not hasattr(root, node.target):
            root.register_buffer(node.target, getattr(shell, node.target), persistent=False)
    return graph


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove every node that no output depends on, in place."""
    graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})


class _Shell(nn.Module):
    """A module with the children and parameters of ``root`` and another forward pass."""

    def __init__(self, root: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self._modules = root._modules
        self._parameters = root._parameters
        # A copy: constants met in tracing are set on this shell, not on the model.
        self._buffers = dict(root._buffers)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class BoundGraph:
    """Call a graph with ``root`` as the module that its names refer to.

    Args:
        root: The model; kept by reference, not registered anywhere.
        graph: The graph, as `trace` returns it; compiled anew by `recompile` after a change.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.graph = graph
        self.recompile()

    def recompile(self) -> None:
        """Turn the graph into a Python function."""
        code = self.graph.python_code("self")
        name = f"<dq.quant graph {next(_file_numbers)}>"
        namespace = dict(code.globals)
        exec(compile(code.src, name, "exec"), namespace)
        # So that a traceback through the graph shows its lines.
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(keepends=True), name)
        self.function: Callable[..., Any] = namespace["forward"]

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph on the model's present modules and return its outputs."""
        return self.function(self.root, *inputs)

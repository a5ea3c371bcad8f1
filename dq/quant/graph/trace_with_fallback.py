"""Trace what can be traced and keep the rest whole: modules without a static graph stay float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.comparison import DifferenceError, Reference, refuse_difference
from dq.quant.graph.trace import BoundGraph, LeafTest, Traced, TraceError, trace
from dq.quant.quantizers.restore import as_it_was, whole_or_not_at_all

# A model with more untraceable modules than this is not worth its graph.
MOST_ATTEMPTS = 60


def trace_tolerantly(
    root: nn.Module,
    forward: Callable[..., Any],
    *examples: Tensor,
    is_leaf: LeafTest = lambda module: False,
    names: Sequence[str] = (),
) -> Traced:
    """Trace ``forward`` in both modes; keep whole whatever has no static graph or fails.

    Tracing is repeated, each time with the innermost module that failed kept as one node, until it
    succeeds. What such a module returns (a tensor, a list of five) is learned by running the model
    once.

    Args:
        root: The model; its modes are as before afterwards.
        forward: What to trace, calling modules of ``root``.
        examples: The inputs on which ``forward`` runs, one or more.
        is_leaf: Says of a module whether to keep it as one node in any case.
        names: Of the inputs, as for `dq.quant.graph.trace.trace`.

    Raises:
        TraceError: ``forward`` itself, outside of any module, has no static graph, or the graph
            computes something else on noise; where is named.
    """
    with whole_or_not_at_all(root):
        return _traced(_Attempt(root, forward, examples, is_leaf, names))


def _traced(attempt: _Attempt) -> Traced:
    root = attempt.root
    with as_it_was(root):
        while True:
            num_kept = len(attempt.kept)
            root.train()
            training = attempt.trace()
            root.eval()
            graph = attempt.trace()
            if len(attempt.kept) == num_kept:
                break
    found = Traced(
        graph=graph,
        training_graph=None if same_code(training, graph) else training,
        left_float=dict(attempt.kept),
        reference=Reference(forward=attempt.forward, examples=tuple(attempt.examples)),
    )
    assert found.reference is not None
    try:
        refuse_difference(root, found.reference, BoundGraph(root, found))
    except DifferenceError as error:
        raise TraceError(str(error)) from error
    return found


def same_code(one: fx.Graph, other: fx.Graph) -> bool:
    """Say whether two graphs run the same statements."""
    return str(one.python_code("self").src) == str(other.python_code("self").src)


class _Attempt:
    """Tracing with a growing set of modules that are kept whole.

    Attributes:
        kept: Their qualified names, with the reason.
    """

    def __init__(
        self,
        root: nn.Module,
        forward: Callable[..., Any],
        examples: Sequence[Tensor],
        is_leaf: LeafTest,
        names: Sequence[str],
    ) -> None:
        self.root, self.forward, self.examples, self.is_leaf = root, forward, examples, is_leaf
        self.names = names
        self.kept: dict[str, str] = {}
        self.modules: set[nn.Module] = set()
        self.structures: dict[str, Any] = {}

    def trace(self) -> fx.Graph:
        for _ in range(MOST_ATTEMPTS):
            try:
                return trace(
                    self.root,
                    self.forward,
                    is_leaf=self._stays,
                    structures=self._kept_structures(),
                    examples=self.examples,
                    names=self.names,
                )
            except TraceError as error:
                self._keep_innermost(error)
        raise TraceError(f"more than {MOST_ATTEMPTS} modules of it have no static graph")

    def _stays(self, module: nn.Module) -> bool:
        return module in self.modules or self.is_leaf(module)

    def _kept_structures(self) -> dict[str, Any]:
        return {name: self.structures[name] for name in self.kept if name in self.structures}

    def _keep_innermost(self, error: TraceError) -> None:
        if not self.structures:
            self.structures = _run(self.root, self.forward, self.examples, error)
        for name in reversed(error.calls):
            if name in self.structures and name not in self.kept:
                self._keep(name, str(error))
                return
        raise error

    def _keep(self, name: str, reason: str) -> None:
        module = self.root.get_submodule(name)
        # Containers of torch fail because of what they hold; other modules of one type fail alike.
        alike = not type(module).__module__.startswith("torch.")
        for other, candidate in self.root.named_modules():
            if candidate is module or (alike and type(candidate) is type(module)):
                self.modules.add(candidate)
                self.kept[other] = reason.partition(": ")[2] or reason


@torch.no_grad()
def _run(
    root: nn.Module, forward: Callable[..., Any], examples: Sequence[Tensor], cause: TraceError
) -> dict[str, Any]:
    """Return what every module of ``root`` returned in one forward pass, by name."""
    seen: dict[str, Any] = {}
    handles = []
    for name, module in root.named_modules():

        def record(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            seen[name] = output

        if name:
            handles.append(module.register_forward_hook(record))
    try:
        with as_it_was(root):
            root.eval()
            forward(*examples)
    except Exception as error:
        raise cause from error
    finally:
        for handle in handles:
            handle.remove()
    return seen

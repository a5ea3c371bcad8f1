"""Trace what can be traced; modules without a static graph are kept whole and stay float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.comparison import DifferenceError, Reference, refuse_difference
from dq.quant.graph.trace import BoundGraph, LeafTest, Traced, TraceError, trace
from dq.quant.quantizers.restore import (
    restored_state,
    undo_additions_on_error,
    watching_outputs,
)

# With more untraceable modules than this, a model's graph is not useful.
MOST_ATTEMPTS = 60


def trace_tolerantly(
    root: nn.Module,
    forward: Callable[..., Any],
    *examples: Tensor,
    is_leaf: LeafTest = lambda module: False,
    names: Sequence[str] = (),
) -> Traced:
    """Trace ``forward`` in both modes; keep modules whole that have no static graph or fail.

    Each time tracing fails, it is repeated with the innermost failing module kept as one node. The
    structure of that module's result (a tensor, a list of five) comes from running the model once.

    Args:
        root: The model; its modes are restored.
        forward: What to trace, calling modules of ``root``.
        examples: The inputs on which ``forward`` runs, one or more.
        is_leaf: Says whether to keep a module as one node in any case.
        names: Of the inputs, as for `dq.quant.graph.trace.trace`.

    Raises:
        TraceError: ``forward`` itself, outside of any module, has no static graph, or the graph
            computes something else on noise; the message names the place.
    """
    with undo_additions_on_error(root):
        return _traced(_Attempt(root, forward, examples, is_leaf, names))


def _traced(attempt: _Attempt) -> Traced:
    root = attempt.root
    with restored_state(root):
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
        # torch's containers fail because of their content; other modules of a type fail alike.
        alike = not type(module).__module__.startswith("torch.")
        for other, candidate in self.root.named_modules():
            if candidate is module or (alike and type(candidate) is type(module)):
                self.modules.add(candidate)
                self.kept[other] = reason.partition(": ")[2] or reason


@torch.no_grad()
def _run(
    root: nn.Module, forward: Callable[..., Any], examples: Sequence[Tensor], cause: TraceError
) -> dict[str, Any]:
    """Return the result of every module of ``root`` in one forward pass, by name."""
    seen: dict[str, Any] = {}
    inside = {name: module for name, module in root.named_modules() if name}

    def record(name: str, inputs: object, output: Any) -> None:
        seen[name] = output

    try:
        with restored_state(root), watching_outputs(inside, record):
            root.eval()
            forward(*examples)
    except Exception as error:
        raise cause from error
    return seen

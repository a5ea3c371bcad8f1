"""Check that a graph computes what the model computes: run both once on the same input.

Tracing records operations, not memory, so a missed in-place write shows only in the numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from dq.error_text import error_text
from dq.quant.quantizers.restore import restored_state, watching_outputs

log = logging.getLogger(__name__)

# The same operators in the same order give the same numbers, except for a device's rounding.
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A forward pass with example inputs.

    Attributes:
        forward: What was traced.
        examples: Tensors on which it runs; the comparison uses noise of their shape.
    """

    forward: Callable[..., Any]
    examples: tuple[Tensor, ...]


class DifferenceError(RuntimeError):
    """A graph that does not compute what the model computes; the message names the place."""


@torch.no_grad()
def refuse_difference(
    root: nn.Module,
    reference: Reference,
    graph: Callable[..., Any],
    plain: Callable[..., Any] | None = None,
) -> None:
    """Run the model and its graph once, in evaluation mode, and raise if the results differ.

    Modes, phases, buffers and random generators are restored. A model that does not run on noise
    is compared on the examples; one that does not run on these either is accepted.

    Args:
        root: The model, with all quantizers off.
        reference: Its own forward pass.
        graph: The graph to check.
        plain: The graph before quantizers were inserted; it gives better names to places.

    Raises:
        DifferenceError: An output differs, or the graph fails.
    """
    for inputs in (_noise(reference.examples), list(reference.examples)):
        try:
            expected = _leaves(_run(root, reference.forward, inputs))
        except Exception as error:
            log.debug("the model does not run: %s", error)
        else:
            break
    else:
        log.debug("the graph is not compared")
        return
    try:
        found = _leaves(_run(root, graph, inputs))
        same = _same(found, expected)
        reason = ""
    except Exception as error:
        same, reason = False, f" ({error_text(error)})"
    if not same:
        place = _first_difference(root, reference.forward, plain or graph, inputs)
        raise DifferenceError(
            f"the graph of {type(root).__name__} does not compute what the model computes{reason},"
            f" first seen {place}; make the statements there return new tensors instead of writing"
            " in place, or leave that module in float with a rule"
        )


def _noise(examples: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x.clone()
        for x in examples
    ]


def _run(root: nn.Module, forward: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    with tried(root, inputs):
        return forward(*[x.clone() for x in inputs])


@contextmanager
def tried(root: nn.Module, inputs: Sequence[Tensor] = ()) -> Iterator[None]:
    """Put ``root`` into evaluation mode in the body, and leave no trace of what runs there.

    Modes, phases, buffers and the random generators, of the CPU and of the inputs' GPUs, are
    restored.
    """
    with restored_state(root), _buffers_kept(root), _generators_kept(inputs):
        root.eval()
        yield


@contextmanager
def _buffers_kept(root: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in root.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@contextmanager
def _generators_kept(inputs: Sequence[Tensor]) -> Iterator[None]:
    devices = {x.device for x in inputs if x.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        yield


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(_alike, found, expected))


def _alike(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return bool((found == expected).all())
    finite = expected[expected.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(
        found.to(expected), expected, rtol=TOLERANCE, atol=TOLERANCE * size, equal_nan=True
    )


def _first_difference(
    root: nn.Module,
    forward: Callable[..., Any],
    graph: Callable[..., Any],
    inputs: Sequence[Tensor],
) -> str:
    """Return where the model and its graph first differ, among the modules that both call."""
    own, other = _results(root, forward, inputs), _results(root, graph, inputs)
    last = ""
    for call, expected in own.items():
        if call in other:
            if not _same(other[call], expected):
                return f"in the result of {call[0]}"
            last = call[0]
    return f"after {last}" if last else "in its outputs"


def _results(
    root: nn.Module, run: Callable[..., Any], inputs: Sequence[Tensor]
) -> dict[tuple[str, int], list[Tensor]]:
    """Return copies of the results of each module call, in the order in which the calls end."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    calls: dict[str, int] = {}
    inside = {name: module for name, module in root.named_modules() if name}

    def record(name: str, given: object, result: Any) -> None:
        number = calls[name] = calls.get(name, -1) + 1
        found[name, number] = [t.clone() for t in _leaves(result)]

    try:
        with watching_outputs(inside, record):
            _run(root, run, inputs)
    except Exception as error:
        log.debug("stopped while looking for the difference: %s", error)
    return found

"""Whose call a node is, and which call of a shared module is the same in the other mode's graph.

A quantizer is named after the module that produces its tensor and the number of the call. Training
may call the module more often than evaluation, and earlier: so the calls of the second graph are
recognised by what they compute, not counted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx


def owner_of(node: fx.Node) -> str:
    """Return the qualified name of what produced the node's value.

    A function's name is the module that calls it and its own name. torch.fx's number is left out,
    because it counts over the whole graph and differs between training and evaluation.
    """
    if node.op == "call_module":
        return str(node.target)
    if node.op == "placeholder":
        return node.name
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    function = re.sub(r"_\d+$", "", node.name.removeprefix(inside.replace(".", "_") + "_"))
    return f"{inside}.{function}" if inside else function


def describe_computations_(graph: fx.Graph, known: dict[fx.Node, str]) -> None:
    """Add to ``known`` what each node computes from the graph's inputs.

    Two nodes have equal texts if they apply the same operations to the same inputs. True and False
    count as equal, because functions such as dropout are told the mode.

    Args:
        graph: Not changed.
        known: Texts by node; those that are there stay.
    """
    for node in graph.nodes:
        if node in known:
            continue
        # The default of an input may differ between the modes.
        read = "" if node.op == "placeholder" else _text((node.args, node.kwargs), known)
        what = f"{node.op} {node.target!r} {read}"
        known[node] = hashlib.sha256(what.encode()).hexdigest()


def _text(value: Any, known: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, list | tuple):
        return f"({','.join(_text(item, known) for item in value)})"
    if isinstance(value, dict):
        return _text([[key, value[key]] for key in sorted(value)], known)
    if isinstance(value, slice):
        return f"slice{_text((value.start, value.stop, value.step), known)}"
    return repr(value)


def call_numbers(first: Sequence[str], second: Sequence[str]) -> list[int | None]:
    """Return for each call of the second graph the number of the same call of the first graph.

    Calls that compute the same are the same. Of the others, each is the call in its place if the
    graphs have equally many. None marks a call that only the second graph has.

    Args:
        first: What each call computes, in the order of the first graph.
        second: The same of the second graph.

    Raises:
        LookupError: The remaining calls cannot be told apart.
    """
    numbers: list[int | None] = [None] * len(second)
    free = list(range(len(first)))
    last: dict[str, int] = {}
    for place, what in enumerate(second):
        number = next((n for n in free if first[n] == what), last.get(what))
        if number is None:
            continue
        # A further call with the same value is rounded in the same way.
        numbers[place] = last[what] = number
        if number in free:
            free.remove(number)
    rest = [place for place, number in enumerate(numbers) if number is None]
    if not free or not rest:
        return numbers
    if len(free) != len(rest):
        raise LookupError(f"{len(rest)} calls for {len(free)}")
    for place, number in zip(rest, free, strict=True):
        numbers[place] = number
    return numbers

"""Rewrite functions as the operations with which a target computes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from dq.quant.graph.functions import Function
from dq.quant.numerics.activation_functions import FUNCTIONS
from dq.quant.targets.target import Target

_WHOLE = {each.name: each.compute for each in FUNCTIONS if each.is_one_operation}


def split_functions_(
    graph: fx.Graph, functions: Iterable[Function], target: Target, owner: dict[fx.Node, str]
) -> list[Function]:
    """Rewrite the functions of a graph for a target, in place; return the functions after that.

    A function of a kind in ``target.splits`` becomes the operations of the engine. A function that
    the model computes in several operations becomes a single one, unless the target fuses it.

    Args:
        graph: Its layers may be quantized layers already.
        functions: The graph's functions.
        target: The engine's rules.
        owner: Qualified name of the module that computes each node; new nodes are added to it.
    """
    if not target.finds_functions:
        return []
    found: list[Function] = []
    for function in functions:
        if function.kind in target.splits:
            found += _split(graph, function, owner)
        elif (
            len(function.nodes) > 1
            and function.kind in _WHOLE
            and not target.is_fused(function.kind)
        ):
            with graph.inserting_after(function.value):
                node = graph.call_function(_WHOLE[function.kind], (function.source,))
            _replace(graph, function, node, owner)
            found.append(replace(function, nodes=(node,)))
        else:
            found.append(function)
    return found


def _split(graph: fx.Graph, function: Function, owner: dict[fx.Node, str]) -> list[Function]:
    """Replace SiLU by a sigmoid and a product."""
    assert function.kind == "silu", function.kind
    with graph.inserting_after(function.value):
        product = graph.call_function(torch.mul, (function.source, function.source))
    with graph.inserting_before(product):
        sigmoid = graph.call_function(torch.sigmoid, (function.source,))
    product.args = (function.source, sigmoid)
    owner[sigmoid] = f"{owner[function.value]}.sigmoid"
    _replace(graph, function, product, owner)
    return [
        Function(kind="sigmoid", source=function.source, nodes=(sigmoid,), is_never_negative=True)
    ]


def _replace(graph: fx.Graph, function: Function, new: fx.Node, owner: dict[fx.Node, str]) -> None:
    owner[new] = owner[function.value]
    new.meta.update(
        {k: v for k, v in function.value.meta.items() if k in ("nn_module_stack", "stack_trace")}
    )
    function.value.replace_all_uses_with(new)
    for node in reversed(function.nodes):
        graph.erase_node(node)

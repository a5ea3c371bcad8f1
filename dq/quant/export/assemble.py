"""Export a calibrated network as a whole ONNX model: integers, operators, format."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.utils import _pytree

from dq.formats import FORMATS
from dq.quant.export.flavour import Flavour
from dq.quant.export.onnx_graph import DEFAULT_OPSET, INPUT, SECOND, placeholder_model
from dq.quant.export.onnx_operators import OPSET_DEFORMABLE
from dq.quant.integer.qparams import specs_of, widths_of
from dq.version import NAME, version


def assembled(
    network: fx.GraphModule,
    examples: Sequence[Tensor],
    *,
    kind: str = "onnx-qdq",
    opset: int | None = None,
    input_names: Sequence[str] = (INPUT, SECOND),
    more_outputs: Sequence[str] = (),
    after: Callable[[Any], Any] | None = None,
    rewrite_: Callable[[ir.Model], None] | None = None,
) -> ir.Model:
    """Return the network as an ONNX model in one of the formats.

    Args:
        network: Result of `dq.quant.integer.bias_overflow.network_for_engines`.
        examples: Its inputs.
        kind: A key of `dq.formats.FORMATS` with a flavour.
        opset: Version of ONNX's operators; None for the lowest that supports the network.
        input_names: Names of the inputs; further names are ignored.
        more_outputs: Names of the outputs that ``after`` adds.
        after: A function of the network's result that is exported too; it returns that result with
            more outputs.
        rewrite_: Replaces placeholders of ``after`` by operators, in place.

    Raises:
        ValueError: An operator has no ONNX form, or the opset is too low.
    """
    flavour: Flavour = importlib.import_module(str(FORMATS[kind].module)).FLAVOUR
    with torch.no_grad():
        names = output_names(network(*examples))
    model = placeholder_model(
        network,
        examples,
        opset=_opset(network, flavour, opset),
        output_names=[*names, *more_outputs],
        input_names=input_names,
        after=after,
    )
    if rewrite_ is not None:
        rewrite_(model)
    flavour.write_(model, specs_of(network))
    model.producer_name, model.producer_version = NAME, version()
    return model


def output_names(result: Any) -> list[str]:
    """Return a name for each tensor of a network's result: ``output.0.3`` for ``result[0][3]``."""
    found, _ = _pytree.tree_flatten_with_path(result)
    names = []
    for path, value in found:
        if value is None:
            continue
        keys = [str(getattr(key, "idx", getattr(key, "key", key))) for key in path]
        names.append(".".join(["output", *keys]))
    return names


def _opset(network: fx.GraphModule, flavour: Flavour, given: int | None) -> int:
    needed = max(flavour.opset_needed(widths_of(network)), DEFAULT_OPSET)
    if _is_deformable(network):
        needed = max(needed, OPSET_DEFORMABLE)
    if given is not None and given < needed:
        raise ValueError(
            f"opset {given} is too low: this model needs {needed} or later (16-bit and 4-bit"
            " integers came with 21, deformable convolutions with 19); give a later --opset"
        )
    return given or needed


def _is_deformable(network: fx.GraphModule) -> bool:
    """Return whether the network contains a deformable convolution."""
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    called += [type(module).__name__ for module in network.modules()]
    return any("deformconv" in name.replace("_", "").lower() for name in called)

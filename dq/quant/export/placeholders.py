"""The placeholder nodes of an exported network: one for each use of a quantizer."""

from __future__ import annotations

import onnx_ir as ir

from dq.quant.integer.modules import DOMAIN, WEIGHT


def placeholders(model: ir.Model) -> list[ir.Node]:
    """Return the placeholder nodes of a model, in order."""
    return [node for node in model.graph if node.domain == DOMAIN]


def site_of(node: ir.Node) -> str:
    """Return the name of the quantizer that a placeholder stands for."""
    return str(node.attributes["site"].as_string())


def is_rounding(node: ir.Node) -> bool:
    """Say whether a node is the placeholder of an activation's quantizer."""
    return node.domain == DOMAIN and node.op_type != WEIGHT


def is_repeated(node: ir.Node) -> bool:
    """Say whether a placeholder repeats its quantizer before another reader."""
    return "repeated" in node.attributes and bool(node.attributes["repeated"].as_int())

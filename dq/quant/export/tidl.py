"""Replace the placeholders of an exported network by Clip nodes and float weights, for TI's TIDL.

As in the original code (edgeai-torchvision's PAct2), an activation's range is a Clip from ``-2^n``
or 0 to ``2^n``, from which TIDL derives the scale. Weights are float numbers on their quantization
grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from dq.quant.export.flavour import Flavour
from dq.quant.export.placeholders import placeholders, site_of
from dq.quant.export.qdq import Writer, array_of, finish_
from dq.quant.integer.modules import WEIGHT
from dq.quant.numerics.spec import QuantSpec


def to_tidl_(model: ir.Model, specs: Mapping[str, QuantSpec]) -> None:
    """Replace the model's placeholders by Clip nodes and float weights, in place.

    Args:
        model: Result of `dq.quant.export.onnx_graph.placeholder_model`.
        specs: The integer format of every quantizer, by its name.

    Raises:
        ValueError: A scale is not a power of two, or a zero point is not 0; the message names the
            quantizer.
    """
    for node in placeholders(model):
        _check(site_of(node), node)
    writer = Writer(model, specs)
    for node in placeholders(model):
        site, name = site_of(node), writer.numbered(node)
        spec = specs[site]
        scale = array_of(node.inputs[1]).astype(np.float32)
        if node.op_type == WEIGHT:
            integers = array_of(node.inputs[0]).astype(np.float32)
            if spec.channel_axis is not None:
                shape = [1] * integers.ndim
                shape[spec.channel_axis] = -1
                scale = scale.reshape(shape)
            writer.use(node, writer.constant(f"{site}/weight", integers * scale))
            continue
        high = scale * np.float32(2 ** (spec.bits - 1 if spec.signed else spec.bits))
        low = -high if spec.signed else np.zeros_like(high)
        bounds = [writer.constant(f"{site}/{k}", v) for k, v in (("low", low), ("high", high))]
        writer.replace(node, ir.node("Clip", [node.inputs[0], *bounds], name=f"{name}/clip"), name)
    finish_(model)


def _check(site: str, node: ir.Node) -> None:
    scales = array_of(node.inputs[1]).astype(np.float64).ravel().tolist()
    if any(math.frexp(scale)[0] != 0.5 for scale in scales):
        raise ValueError(
            f"onnx-tidl needs power-of-two scales, but that of {site} is {scales[0]:g}; quantize"
            " with quant.preset=tidl, or export onnx-qdq"
        )
    if array_of(node.inputs[2]).any():
        raise ValueError(
            f"onnx-tidl has no zero points, but that of {site} is not 0; quantize with"
            " quant.preset=tidl, or export onnx-qdq"
        )


FLAVOUR = Flavour(write_=to_tidl_)

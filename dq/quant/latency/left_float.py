"""Change some layers of an exported model to float, as a rule of the recipe would.

So the effect of a rule can be measured before calibrating with it. An engine may treat such a layer
unexpectedly: ONNX Runtime 1.32 quantizes its weights itself, per tensor, if its input and its
result are quantized.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from onnx import ModelProto

from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.formats import DEQUANTIZE, QUANTIZE, site_of
from dq.quant.targets.registry import target_of
from dq.quant.targets.target import Results
from dq.quant.verify.onnxruntime_session import metadata_of


def is_ours(model: ModelProto) -> bool:
    """Return whether `launcher export` wrote the file, so that its names are module names."""
    return "recipe" in metadata_of(model)


def with_layers_in_float(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """Return a copy in which the layers with these names are in float.

    Their weights are not quantized. Their results are not quantized either, unless an activation
    function comes after them. Tensors that only they read are not quantized, unless the model's
    target needs every result quantized. A rule for the last layer of a network would also move
    another quantizer, which is not done here.

    Args:
        model: Written by `launcher export`.
        layers: Names of `dq.quant.latency.layers.Layer`.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    results = {f"{name.partition('+')[0]}/out" for name in layers}
    gone: set[str] = set()
    weights: set[str] = set()
    for node in model.graph.node:
        if node.op_type != DEQUANTIZE:
            continue
        site = site_of(node)
        if node.input[0] in stored and site in layers:
            gone.add(node.name)
            weights.add(node.output[0])
        elif site in results and node.input[0] in makers:
            gone |= {node.name, makers[node.input[0]].name}
    return float_twin(model, gone | _only_read_by(model, weights))


def _only_read_by(model: ModelProto, weights: Collection[str]) -> set[str]:
    """Return the names of the QDQ nodes that only layers with these weights need."""
    results = _results_of(model)
    readers: dict[str, list[bool]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(bool(set(node.input) & set(weights)))
    for output in model.graph.output:
        readers.setdefault(output.name, []).append(False)
    pairs: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type == DEQUANTIZE and all(readers.get(node.output[0], [False])):
            pairs.setdefault(node.input[0], []).append(node.name)
    found: set[str] = set()
    float_values = _before_any_rounding(model, weights)
    for node in model.graph.node:
        own = pairs.get(node.output[0], []) if node.op_type == QUANTIZE else []
        is_result = results is Results.ALL and node.input[0] not in float_values
        if own and not is_result and len(own) == len(readers[node.output[0]]):
            found |= {node.name, *own}
    return found


def _results_of(model: ModelProto) -> Results:
    """Return which results the model's target needs quantized.

    The file says it, because the target may be known only where the model was exported. Files of
    earlier versions have only the target's name.
    """
    metadata = metadata_of(model)
    if "results" in metadata:
        return Results(metadata["results"])
    return target_of(json.loads(metadata["recipe"])["target"]).results


def _before_any_rounding(model: ModelProto, weights: Collection[str]) -> set[str]:
    """Return the values that are not computed in integers: inputs, and results of float layers."""
    found = {given.name for given in model.graph.input}
    found |= {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        read = {name for name in node.input if name}
        if node.op_type != DEQUANTIZE and (read & set(weights) or read <= found):
            found.update(node.output)
    return found

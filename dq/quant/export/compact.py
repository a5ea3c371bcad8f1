"""Make an exported file small without changing what it computes.

A small detector has as many quantizers as a large one, so names and attributes can take a third of
its file. A node still has the name of its quantizer; the values inside the model get short names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

# The values that the ONNX standard gives these attributes if they are absent.
_DEFAULTS: Mapping[str, Any] = {"auto_pad": "NOTSET", "group": 1}
_ONES, _ZEROS = ("dilations", "strides"), ("output_padding", "pads")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def compact_(model: ir.Model) -> None:
    """Shorten the names of values and drop default attributes, in place.

    Args:
        model: Complete; this is the last change. The names of its inputs, outputs and nodes stay.
    """
    for node in model.graph:
        if node.domain == "" and node.op_type in _CONVOLUTIONS:
            _drop_defaults_(node)
    _shorten_names_(model.graph)


def _drop_defaults_(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        value = attribute.value
        if (
            (name in _DEFAULTS and value == _DEFAULTS[name])
            or (name in _ONES and set(value) == {1})
            or (name in _ZEROS and set(value) == {0})
            # It is the size of the weight, which is stored in the file.
            or name == "kernel_shape"
        ):
            del node.attributes[name]


def _shorten_names_(graph: ir.Graph) -> None:
    """Give the values that occur most often the shortest names.

    A weight in float keeps its name, because nothing else names its layer.
    """
    kept = {value.name for value in [*graph.inputs, *graph.outputs]}
    kept |= {name for name, value in graph.initializers.items() if _is_float_weight(value)}
    uses: Counter[ir.Value] = Counter()
    for value in [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]:
        if value.name not in kept:
            uses[value] = len(value.uses())
    # At first all get names that nothing has, because a short name may be another's old one.
    for number, value in enumerate(uses):
        value.name = f"//{number}"
    names = (name for name in (f"/{n}" for n in range(len(uses) + len(kept))) if name not in kept)
    for (value, _), name in zip(uses.most_common(), names, strict=False):
        value.name = name


def _is_float_weight(value: ir.Value) -> bool:
    shape, dtype = value.shape, value.dtype
    return dtype is not None and dtype.is_floating_point() and shape is not None and len(shape) > 1

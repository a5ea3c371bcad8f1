"""Replace the placeholders of an exported network by QuantizeLinear and DequantizeLinear (QDQ).

A weight becomes integers of its own width (int4, int8 or int16), with a DequantizeLinear for each
reader. An activation's placeholder becomes a QuantizeLinear and a DequantizeLinear. If a quantizer
uses fewer integers than its type has, a Clip before it limits the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dq.quant.export.averages import fit_averages_
from dq.quant.export.compact import compact_
from dq.quant.export.edits import constant
from dq.quant.export.flavour import Flavour
from dq.quant.export.input_rounding import round_inputs_late_
from dq.quant.export.node_names import LIMITS
from dq.quant.export.onnx_graph import OPSET_16_BITS
from dq.quant.export.placeholders import is_repeated, placeholders, site_of
from dq.quant.export.space_to_depth import join_slices_
from dq.quant.integer.modules import DOMAIN, WEIGHT
from dq.quant.numerics.spec import QuantSpec

Array = NDArray[np.generic]

_TYPES = {
    (4, True): (ir.DataType.INT4, ml_dtypes.int4),
    (4, False): (ir.DataType.UINT4, ml_dtypes.uint4),
    (8, True): (ir.DataType.INT8, np.int8),
    (8, False): (ir.DataType.UINT8, np.uint8),
    (16, True): (ir.DataType.INT16, np.int16),
    (16, False): (ir.DataType.UINT16, np.uint16),
}


def width(spec: QuantSpec, *, weight: bool) -> int:
    """Return the bits of the ONNX integer type that holds this integer format.

    Only weights are stored in 4 bits: engines cannot pool or resize 4-bit activations.
    """
    return 4 if weight and spec.bits <= 4 else 8 if spec.bits <= 8 else 16


def opset_needed(network: Iterable[tuple[QuantSpec, bool]]) -> int:
    """Return the first opset whose QuantizeLinear supports these widths; 0 if all do.

    Args:
        network: Each quantizer's integer format, and whether it is a weight's.
    """
    return OPSET_16_BITS if any(width(s, weight=w) != 8 for s, w in network) else 0


def to_qdq_(model: ir.Model, specs: Mapping[str, QuantSpec]) -> None:
    """Replace the model's placeholders by QDQ nodes, in place.

    Args:
        model: Result of `dq.quant.export.onnx_graph.placeholder_model`.
        specs: The integer format of every quantizer, by name.
    """
    fit_averages_(model)
    round_inputs_late_(model)
    join_slices_(model)
    writer = Writer(model, specs)
    for node in placeholders(model):
        if node.op_type == WEIGHT:
            writer.write_weight(node)
        else:
            writer.write_rounding(node)
    finish_(model)
    compact_(model)


def array_of(value: ir.Value | None) -> Array:
    """Return the content of an initializer."""
    assert value is not None
    assert value.const_value is not None
    found: Array = value.const_value.numpy()
    return found


def finish_(model: ir.Model) -> None:
    """Remove our domain, unused initializers and torch's metadata; sort the nodes."""
    model.opset_imports.pop(DOMAIN, None)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]
    # torch's metadata are the Python code of each node and a list of all tensors: a third of a
    # small file.
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
    model.graph.sort()


class Writer:
    """Writes nodes into a model, and each constant only once."""

    def __init__(self, model: ir.Model, specs: Mapping[str, QuantSpec]) -> None:
        self.graph, self.specs = model.graph, specs
        # The model's own inputs and outputs may have the name of a layer.
        taken = [*model.graph.inputs, *model.graph.outputs]
        self.uses: dict[str, int] = {str(value.name): 1 for value in taken}
        self.num_values = 0

    def constant(self, name: str, array: Array) -> ir.Value:
        """Return the initializer of this name, created from ``array`` if it does not exist."""
        return constant(self.graph, name, array)

    def parameters(self, site: str, node: ir.Node, spec: QuantSpec) -> Iterator[ir.Value]:
        """Yield scale and zero point of a quantizer."""
        kind = _TYPES[width(spec, weight=node.op_type == WEIGHT), spec.signed][1]
        yield self.constant(f"{site}/scale", array_of(node.inputs[1]).astype(np.float32))
        yield self.constant(f"{site}/zero_point", array_of(node.inputs[2]).astype(kind))

    def numbered(self, node: ir.Node) -> str:
        """Return the quantizer's name, with a number if it is a repetition or not the first use."""
        site = site_of(node)
        if not is_repeated(node) and site not in self.uses:
            self.uses[site] = 1
            return site
        self.uses[f"{site}#"] = self.uses.get(f"{site}#", 1) + 1
        return f"{site}#{self.uses[f'{site}#']}"

    def short_name(self) -> str:
        """Return a new short name for a value; long names would be most of a small file."""
        self.num_values += 1
        return f"/{self.num_values}"

    def use(self, node: ir.Node, value: ir.Value) -> None:
        """Replace a node's result by ``value`` and remove the node."""
        node.outputs[0].replace_all_uses_with(value)
        self.graph.remove(node, safe=True)

    def write_weight(self, node: ir.Node) -> None:
        """Write a weight's integers and the nodes that dequantize them."""
        site = site_of(node)
        spec, name = self.specs[site], self.numbered(node)
        integers = array_of(node.inputs[0]).astype(_TYPES[width(spec, weight=True), spec.signed][1])
        axis, old, stored = spec.channel_axis, node, f"{site}/integers"
        reader = next(iter(node.outputs[0].uses())).node if node.outputs[0].uses() else node
        if reader.op_type == "Transpose" and len(node.outputs[0].uses()) == 1:
            # Engines expect the integers directly before the product that reads them.
            order = list(reader.attributes["perm"].as_ints())
            integers, old = np.ascontiguousarray(integers.transpose(order)), reader
            axis = None if axis is None else order.index(axis)
            stored += "/transposed"
        values = [self.constant(stored, integers), *self.parameters(site, node, spec)]
        attributes = {} if axis is None else {"axis": axis}
        new = ir.node("DequantizeLinear", values, attributes, name=name)
        self.replace(old, new, name, also=node)

    def write_rounding(self, node: ir.Node) -> None:
        """Write the nodes that quantize and dequantize an activation."""
        site = site_of(node)
        spec, name = self.specs[site], self.numbered(node)
        scale, zero_point = self.parameters(site, node, spec)
        x = node.inputs[0]
        assert x is not None
        nodes = []
        whole = spec.bits == width(spec, weight=False) and not spec.narrow
        if not whole:
            bounds = clip_bounds(node, spec)
            low, high = (
                self.constant(f"{site}/{end}", bound)
                for end, bound in zip(("lowest", "highest"), bounds, strict=True)
            )
            nodes.append(ir.node("Clip", [x, low, high]))
            x = nodes[-1].outputs[0]
        nodes.append(ir.node("QuantizeLinear", [x, scale, zero_point]))
        last = ir.node("DequantizeLinear", [nodes[-1].outputs[0], scale, zero_point], name=name)
        for inner in nodes:
            inner.outputs[0].name = self.short_name()
            inner.name = f"{name}{LIMITS}" if inner.op_type == "Clip" else inner.outputs[0].name
            self.graph.insert_before(node, inner)
        self.replace(node, last, name)

    def replace(self, old: ir.Node, new: ir.Node, name: str, also: ir.Node | None = None) -> None:
        """Replace ``old``, and ``also`` if given, by ``new``."""
        before, after = old.outputs[0], new.outputs[0]
        after.shape, after.type = before.shape, before.type
        self.graph.insert_before(old, new)
        is_output = before.is_graph_output()
        after.name = before.name if is_output else self.short_name()
        if is_output:
            before.name = f"{name}/replaced"
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        if also is not None and also is not old:
            self.graph.remove(also, safe=True)


def clip_bounds(node: ir.Node, spec: QuantSpec) -> tuple[Array, Array]:
    """Return the smallest and largest real value of an activation's placeholder, float32 ``()``."""
    scale = array_of(node.inputs[1]).astype(np.float32)
    shift = array_of(node.inputs[2]).astype(np.float32)
    return (
        np.asarray((spec.quant_min - shift) * scale, np.float32),
        np.asarray((spec.quant_max - shift) * scale, np.float32),
    )


FLAVOUR = Flavour(write_=to_qdq_, opset_needed=opset_needed)

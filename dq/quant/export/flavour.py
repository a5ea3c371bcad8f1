"""What distinguishes one ONNX flavour from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dq.quant.numerics.spec import QuantSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """An ONNX flavour.

    Attributes:
        write_: Replaces a model's placeholders by operators, in place, given the integer format of
            every quantizer by its name.
        opset_needed: Returns the first opset that supports what is written; 0 if all do. It is
            given each quantizer's integer format, and whether the quantizer is a weight's.
    """

    write_: Callable[[ir.Model, Mapping[str, QuantSpec]], None]
    opset_needed: Callable[[Iterable[tuple[QuantSpec, bool]]], int] = lambda network: 0

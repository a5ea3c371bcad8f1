"""The result of one family: a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The columns, in the order of the chain, and the possible values of a cell.
STEPS = (
    "float",
    "calibrate",
    "qat",
    "resume",
    "eval",
    "mmdet",
    "export",
    "boxes",
    "nms",
    "onnxruntime",
)
YES, HAS_NOT, LOADS, TIES = "yes", "none", "loads", "ties"
REFUSED, CRASHED, DIFFERS = "refused", "crashed", "differs"
WHOLE = "whole way"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of one family.

    Attributes:
        config: Name of the config's file, without its ending.
        steps: The result of each step, by a name of `STEPS`.
        quantizers: Number of quantizers of its calibrated detector.
        left_float: The parts with weights that run in float, and why; empty if there are none.
        what: Why the chain ended early.
        seconds: Wall time in seconds.
    """

    config: str
    steps: Mapping[str, str] = field(default_factory=dict)
    quantizers: int = 0
    left_float: str = ""
    what: str = ""
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """`WHOLE`, or the worst of the steps."""
        for bad in (CRASHED, DIFFERS, REFUSED):
            if bad in self.steps.values():
                return bad
        complete = all(self.steps.get(step) in (YES, HAS_NOT, LOADS, TIES) for step in STEPS)
        return WHOLE if complete else CRASHED

    @property
    def quantized(self) -> str:
        """``OK`` if everything with weights is quantized, ``partly float``, or empty."""
        if not self.quantizers:
            return ""
        return "partly float" if self.left_float else "OK"

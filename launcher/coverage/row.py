"""What became of one family: a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The columns, in the order of the chain, and what each cell may say.
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
    """How far a family went.

    Attributes:
        config: Name of the config's file, without its ending.
        steps: By a name of `STEPS`, what became of it.
        quantizers: How many its calibrated detector has.
        left_float: What of it that has weights runs in float, and why; empty for nothing.
        what: The line that says why it ended early.
        seconds: Wall time.
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
        """``OK`` where all that has weights is quantized, ``partly float``, or nothing."""
        if not self.quantizers:
            return ""
        return "partly float" if self.left_float else "OK"

"""The formats that ``launcher export`` writes.

Only the standard library is needed to read the names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of files for engines.

    Attributes:
        ending: Of the file's name.
        module: Has the ONNX writer, a `dq.quant.export.flavour.Flavour` called FLAVOUR; None for
            integers without ONNX.
    """

    ending: str
    module: str | None = None


FORMATS = {
    "onnx-qdq": Format(ending=".onnx", module="dq.quant.export.qdq"),
    "onnx-tidl": Format(ending=".tidl.onnx", module="dq.quant.export.tidl"),
    "torch-int": Format(ending=".int.pth"),
}

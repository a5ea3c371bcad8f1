"""The formats that ``launcher export`` writes.

Only the standard library is needed to read the names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file format for engines.

    Attributes:
        ending: End of the file's name, such as ``.onnx``.
        module: The module of the ONNX writer; its FLAVOUR is a `dq.quant.export.flavour.Flavour`.
            None for a format of integers without ONNX.
    """

    ending: str
    module: str | None = None


FORMATS = {
    "onnx-qdq": Format(ending=".onnx", module="dq.quant.export.qdq"),
    "onnx-tidl": Format(ending=".tidl.onnx", module="dq.quant.export.tidl"),
    "torch-int": Format(ending=".int.pth"),
}

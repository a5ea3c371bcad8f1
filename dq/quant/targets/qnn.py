"""Qualcomm's QNN on the HTP: every operation runs in integers, so every result has a range.

A sigmoid's range is fixed: scale 1/256 at 8 bits and 1/65536 at 16 bits, zero point 0.
"""

from dq.quant.targets.target import BOUNDS, Results, Target

TARGET = Target(
    name="qnn",
    engine="QNN",
    source="QNN SDK, HTP operator definitions; onnxruntime/python/tools/quantization/"
    "execution_providers/qnn/quant_config.py",
    results=Results.ALL,
    observer="mse",
    fuses=frozenset({"clip"}),
    splits=frozenset({"silu"}),
    fixed=BOUNDS,
)

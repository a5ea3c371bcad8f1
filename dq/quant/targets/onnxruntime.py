"""ONNX Runtime on a CPU.

An operation between DequantizeLinear and QuantizeLinear becomes QLinearConv, QLinearAdd,
QLinearMul, QLinearSigmoid, QLinearLeakyRelu and so on. Without the QuantizeLinear after it, it runs
in float. Clipping functions disappear in the QuantizeLinear. SiLU is a sigmoid and a product.
"""

from dq.quant.targets.target import BOUNDS, Results, Target

TARGET = Target(
    name="onnxruntime",
    engine="ONNX Runtime",
    source="onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc",
    results=Results.ALL,
    fuses=frozenset({"clip"}),
    splits=frozenset({"silu"}),
    fixed=BOUNDS,
)

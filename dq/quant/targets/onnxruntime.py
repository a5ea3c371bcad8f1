"""ONNX Runtime on a CPU.

An operation between DequantizeLinear and QuantizeLinear becomes QLinearConv, QLinearAdd,
QLinearMul, QLinearSigmoid, QLinearLeakyRelu and so on. It runs in float if there is no
QuantizeLinear after it. Clipping functions are fused into the QuantizeLinear. SiLU is a sigmoid and
a product.
"""

from dq.quant.targets.target import BOUNDS, Results, Target

TARGET = Target(
    name="onnxruntime",
    engine="ONNX Runtime",
    source="onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc",
    results=Results.ALL,
    observer="mse",
    fuses=frozenset({"clip"}),
    splits=frozenset({"silu"}),
    fixed=BOUNDS,
)

"""TensorRT: symmetric ranges; a sum is fused into the convolution that computes an addend."""

from dq.quant.targets.target import INT8_SIGNED_ACTIVATION, Sums, Target

TARGET = Target(
    name="tensorrt",
    engine="TensorRT",
    source="TensorRT developer guide, Q/DQ placement recommendations; NVIDIA Model-Optimizer,"
    " modelopt/onnx/quantization/partitioning.py",
    activation=INT8_SIGNED_ACTIVATION,
    sums=Sums.ALL_BUT_FUSED,
    outputs=False,
)

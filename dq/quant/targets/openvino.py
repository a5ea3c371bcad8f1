"""OpenVINO on a CPU: activation functions are fused into the convolution before them."""

from dq.quant.targets.target import Target

TARGET = Target(
    name="openvino",
    engine="OpenVINO",
    source="OpenVINO's low precision transformations, and NNCF's quantizer propagation",
    outputs=False,
)

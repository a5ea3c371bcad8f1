"""OpenVINO on a CPU: activation functions are fused into the convolution before them.

With a zero point at its result, a convolution rounds in several operations instead of one.
"""

from dq.quant.targets.target import Target

TARGET = Target(
    name="openvino",
    engine="OpenVINO",
    source="OpenVINO's low precision transformations, and NNCF's quantizer propagation",
    outputs=False,
    slowed_by_zero_points=True,
)

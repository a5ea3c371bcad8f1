"""TI's TIDL: one power-of-two scale per tensor, for weights too, and no zero points."""

from dataclasses import replace

from dq.quant.targets.target import INT8_SIGNED_ACTIVATION, INT8_WEIGHT, Target

TARGET = Target(
    name="tidl",
    engine="TIDL",
    source="TI edgeai-tidl-tools, quantization; edgeai-torchvision's power-of-two ranges",
    weight=replace(INT8_WEIGHT, channel_axis=None, power_of_two=True),
    activation=replace(INT8_SIGNED_ACTIVATION, power_of_two=True),
)

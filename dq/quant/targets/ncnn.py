"""ncnn: convolutions and linear layers run in integers, everything else in float."""

from dq.quant.targets.target import INT8_SIGNED_ACTIVATION, Target

TARGET = Target(
    name="ncnn",
    engine="ncnn",
    source="ncnn, tools/quantize/ncnn2int8.cpp and ncnn2table.cpp",
    activation=INT8_SIGNED_ACTIVATION,
    mixers=False,
    outputs=False,
)

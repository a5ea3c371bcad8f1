"""Any engine: no quantizer between an operation and the activation function after it."""

from dq.quant.targets.target import Target

TARGET = Target(
    name="int8",
    engine="any integer engine",
    source="Jacob et al. 2018, arXiv 1712.05877: quantize what integer operations read",
)

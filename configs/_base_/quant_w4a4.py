# 4-bit weights and activations everywhere but in first and last layers.
_base_ = ["./quant_w4a8.py"]
quant = dict(
    recipe="qat-w4a4",
    rules=[dict(position="first", bits=8), dict(position="last", bits=8)],
)

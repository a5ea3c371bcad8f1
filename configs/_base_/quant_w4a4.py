# 4-bit weights and activations, except in the first and last layers and in their inputs.
_base_ = ["./quant_w4a8.py"]
quant = dict(
    recipe="qat-w4a4",
    rules=[
        dict(position="last_input", activation=dict(bits=8)),
        dict(position="first", bits=8),
        dict(position="last", bits=8),
    ],
)

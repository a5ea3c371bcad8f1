# Like quant_w4a4.py, but outputs without an activation function (bottlenecks, laterals) and sums
# have 8 bits: they are signed and far from uniform. Outputs of ReLU have 4.
_base_ = ["./quant_w4a4.py"]
quant = dict(
    rules=[
        dict(type="Conv2d", activation=dict(bits=8)),
        dict(type="add", bits=8),
        dict(position="first", bits=8),
        dict(position="last", bits=8),
    ],
)

# Like quant_w4a8.py, with 4-bit activations, and longer. Outputs without an activation function
# (bottlenecks, laterals) and sums have 8 bits: they are signed and far from uniform. So have
# depthwise layers and their inputs.
_base_ = ["./quant_w4a8.py"]
quant = dict(recipe="qat-w4a4")

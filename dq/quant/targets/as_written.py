"""For checkpoints from before there were targets: a function's own operations are quantized too.

``x * sigmoid(x)`` written in a model's code was quantized as a product of two tensors, while
``nn.SiLU`` was one function. Now both mean the same.
"""

from dataclasses import replace

from dq.quant.targets.any_engine import TARGET as ANY

TARGET = replace(ANY, name="as_written", finds_functions=False)

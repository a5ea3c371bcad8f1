"""The rules of checkpoints from before targets: operations of a function are quantized separately.

In these, ``x * sigmoid(x)`` in a model's code was quantized as a product of two tensors, while
``nn.SiLU`` was one function. With all other targets both are the same function.
"""

from dataclasses import replace

from dq.quant.targets.any_engine import TARGET as ANY

TARGET = replace(ANY, name="as_written", finds_functions=False)

"""The rules for checkpoints that name no target: operations of a function are quantized separately.

In such a checkpoint, ``x * sigmoid(x)`` in a model's code has quantizers for a product of two
tensors, while ``nn.SiLU`` is one function. With all other targets both are the same function.
"""

from dataclasses import replace

from dq.quant.targets.any_engine import TARGET as ANY

TARGET = replace(ANY, name="as_written", finds_functions=False)

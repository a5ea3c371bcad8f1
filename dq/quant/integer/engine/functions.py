"""Activation functions with the last digits of ONNX Runtime's float kernels.

torch's functions differ in the last digit, which decides at a rounding tie. The formulas here are
those of onnxruntime/core/mlas/lib: rational approximations of sigmoid and tanh (with Eigen's
coefficients), and a piecewise polynomial for the error function (N. Juffa's erff). They use fused
multiply-add, as on x86 with FMA3 and on ARM64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dq.quant.integer.engine.arithmetic import fused, polynomial

_SIGMOID_ABOVE = (
    4.37031012579801e-11,
    1.15627324459942e-07,
    6.08574864600143e-05,
    8.51377133304701e-03,
    2.48287947061529e-01,
)
_SIGMOID_BELOW = (
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
)
_TANH_ABOVE = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_BELOW = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
# The error function up to 0.921875; above that, minus the logarithm of its complement.
_ERF_SMALL = (
    -5.99104969e-4,
    4.99339588e-3,
    -2.67667342e-2,
    1.12818025e-1,
    -3.76124859e-1,
    1.28379151e-1,
)
_ERF_LARGE = (
    1.72948930e-5,
    -3.83208680e-4,
    3.88393435e-3,
    -2.42545605e-2,
    1.06777847e-1,
    6.34846687e-1,
    1.28717512e-1,
)
_ERF_SPLIT, _ERF_LAST = 0.921875, 3.925
_EXP = (1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, -6.93145752e-1, -1.42860677e-6
# Adding and subtracting this number rounds to an integer.
_ROUNDER = 1.25829120e7


def sigmoid(x: Tensor) -> Tensor:
    """Return the logistic function of ``x``, float32 of any shape."""
    x = x.clamp(-18.0, 18.0)
    square = x * x
    above = polynomial(square, _SIGMOID_ABOVE) * x
    return (above / polynomial(square, _SIGMOID_BELOW) + 0.5).clamp_(min=0.0)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of ``x``, float32 of any shape."""
    x = x.clamp(-9.0, 9.0)
    square = x * x
    return polynomial(square, _TANH_ABOVE) * x / polynomial(square, _TANH_BELOW)


def erf(x: Tensor) -> Tensor:
    """Return the error function of ``x``, float32 of any shape."""
    size = x.abs().clamp_(max=_ERF_LAST)
    small = fused(polynomial(size * size, _ERF_SMALL), size, size)
    exponent = -fused(polynomial(size, _ERF_LARGE), size, size)
    large = 1.0 - _exp(exponent)
    return torch.where(size > _ERF_SPLIT, large, small).copysign(x)


def _exp(x: Tensor) -> Tensor:
    power = fused(x, _like(x, _LOG2_E), _like(x, _ROUNDER)) - _ROUNDER
    rest = fused(power, _like(x, _LN2_HIGH), x)
    rest = fused(power, _like(x, _LN2_LOW), rest)
    return torch.ldexp(polynomial(rest, _EXP), power.int())


def _like(x: Tensor, value: float) -> Tensor:
    return torch.full_like(x, value)


def hard_sigmoid(x: Tensor) -> Tensor:
    """Return ``x / 6 + 1 / 2``, limited to 0 and 1; the factor is float32."""
    return (x * _like(x, 1 / 6) + 0.5).clamp_(0.0, 1.0)


def hard_swish(x: Tensor) -> Tensor:
    """Return ``x`` times its `hard_sigmoid`."""
    return x * hard_sigmoid(x)


def silu(x: Tensor) -> Tensor:
    """Return ``x`` times its `sigmoid`."""
    return x * sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    """Return ``x (1 + erf(x / sqrt(2))) / 2``, with the order of operations of its export."""
    return x * (0.5 * (erf(x / _like(x, math.sqrt(2.0))) + 1.0))

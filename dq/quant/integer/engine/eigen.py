"""Functions that ONNX Runtime computes with Eigen: exp, log, softplus, Mish and ELU.

They use Eigen's approximations (Eigen/src/Core/arch/Default/GenericPacketMathFunctions.h). ONNX
Runtime compiles them for every x86 processor, so they do not use fused multiply-add. The last one
to three values of a tensor are computed by the C library and may differ in the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dq.quant.integer.engine.functions import tanh

_LOG2_E, _LN2 = 1.44269504088896341, 0.6931471805599453
# ln(2) in two parts, the first one of few bits.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP_EVEN = (1.37449637986719608306884765625e-3, 4.166965186595916748046875e-2)
_EXP_EVEN_LAST = 0.49999988079071044921875
_EXP_ODD = (8.36894474923610687255859375e-3, 0.16666518151760101318359375)
_LOG_ABOVE = (0.18256296349849254, 1.0000000190281063, 1.0000000190281136)
_LOG_BELOW = (0.049616247954120038, 0.59923249590823520, 1.4999999999999927, 1.0)
_ROOT_HALF = 0.707106781186547524


def exp(x: Tensor) -> Tensor:
    """Return the exponential of ``x``, float32 of any shape."""
    x = x.clamp(-104.0, 88.723)
    power = torch.floor(x * _number(x, _LOG2_E) + 0.5)
    rest = x - power * _number(x, _LN2_HIGH)
    rest = power * _number(x, -_LN2_LOW) + rest
    square = rest * rest
    even = _polynomial(square, (*_EXP_EVEN, _EXP_EVEN_LAST))
    odd = _polynomial(square, _EXP_ODD)
    return torch.ldexp(square * (rest * odd + even) + (rest + 1.0), power.int())


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of positive ``x``, float32 of any shape."""
    mantissa, power = torch.frexp(x)
    small = mantissa < _number(x, _ROOT_HALF)
    rest = (mantissa - 1.0) + torch.where(small, mantissa, 0.0)
    power = power - small.int()
    ratio = rest * _polynomial(rest, _LOG_ABOVE) / _polynomial(rest, _LOG_BELOW)
    return power.float() * _number(x, _LN2) + ratio


def softplus(x: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``, float32 of any shape."""
    return x.clamp(min=0.0) + _log1p(exp(-x.abs()))


def mish(x: Tensor) -> Tensor:
    """Return ``x tanh(softplus(x))``."""
    return x * tanh(softplus(x))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return ``x`` where it is positive, else ``alpha (exp(x) - 1)``."""
    return torch.where(x >= 0, x, _number(x, alpha) * (exp(x) - 1.0))


def _log1p(x: Tensor) -> Tensor:
    more = x + 1.0
    return torch.where(more == 1.0, x, x * (log(more) / (more - 1.0)))


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    result = _number(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = x * result + _number(x, coefficient)
    return result


def _number(x: Tensor, value: float) -> Tensor:
    """Return a number as a float32 tensor; a Python number would not be rounded before its use."""
    return torch.tensor(value, dtype=x.dtype)

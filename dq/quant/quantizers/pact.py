"""PACT: activations clipped to a learned range and fake-quantized inside it.

After Choi et al. 2018 (arXiv 1805.06085, equations 1 to 3): the gradient of a clipping value is
the sum of the gradients of the values it clips, and weight decay shrinks the range. The paper's
lower bound is zero. Here both bounds are learned, for activations without a ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dq.quant.kernels.rounding import NO_CLIP, Clip, clipped
from dq.quant.numerics.affine import fake_quantize, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.fake_quantize import LearnedActivationQuantizer
from dq.quant.quantizers.half_precision import in_representable_dtype
from dq.quant.quantizers.learned_step import factor_of, fake_quantize_no_grad, with_zero_gradients
from dq.quant.quantizers.phase import Phase


class _LearnedClipping(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor,
        high: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        spec: QuantSpec,
        factor: float | Tensor,
    ) -> Tensor:
        factors = (factor,) if isinstance(factor, Tensor) else ()
        ctx.save_for_backward(x, scale, zero_point, *factors)
        ctx.spec, ctx.factor = spec, None if factors else factor
        return fake_quantize_no_grad(x, scale, zero_point, spec)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        x, scale, zero_point, *factors = ctx.saved_tensors
        factor = factors[0] if factors else ctx.factor
        integer = torch.round(x.to(scale.dtype) * (1.0 / scale)) + zero_point
        below, above = integer < ctx.spec.quant_min, integer > ctx.spec.quant_max
        upstream = gradient.to(scale.dtype)
        d_low = ((upstream * below).sum() * factor).to(scale.dtype)
        d_high = ((upstream * above).sum() * factor).to(scale.dtype)
        return gradient * ~(below | above), d_low, d_high, None, None, None, None


def learned_clip(
    x: Tensor, low: Tensor, high: Tensor, spec: QuantSpec, *, factor: float | Tensor
) -> Tensor:
    """Clip ``x`` to ``[low, high]`` and fake-quantize it, with gradients for all three.

    Args:
        x: Any shape and floating dtype.
        low: Lower bound, float32 ``()``; a positive one counts as zero.
        high: Upper bound, float32 ``()``; a negative one counts as zero.
        spec: The integer format; per tensor.
        factor: Multiplies the gradients of the bounds.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    scale, zero_point = scale_and_zero_point(low.detach(), high.detach(), spec)
    result: Tensor = _LearnedClipping.apply(x, low, high, scale, zero_point, spec, factor)
    return result


class PactActivationQuantizer(LearnedActivationQuantizer):
    """Fake-quantize an activation inside a learned range.

    Parameters ``clip_min`` and ``clip_max``, float32 ``()``. Their gradient, a sum over a whole
    feature map, is divided by the square root of its size.
    """

    clip_min: nn.Parameter
    clip_max: nn.Parameter

    def _add_state(self, scale: Tensor) -> None:
        self.clip_min = nn.Parameter(torch.zeros_like(scale))
        self.clip_max = nn.Parameter(scale * float(self.spec.quant_max))

    def scale_and_zero_point(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, both of shape ``()``."""
        return scale_and_zero_point(self.clip_min.detach(), self.clip_max.detach(), self.spec)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]  # a buffer in the base class
        """The present scale, float32 ``()``."""
        return self.scale_and_zero_point()[0]

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]  # a buffer in the base class
        """The present zero point, int32 ``()``."""
        return self.scale_and_zero_point()[1]

    @property
    def is_uninitialised(self) -> bool:
        """Whether the parameters still have their initial values; reads the device."""
        full = float(self.spec.quant_max)
        return not bool(self.clip_min.any()) and bool((self.clip_max == full).all())

    def sizes(self) -> dict[str, Tensor]:
        """Return what updates are compared with: both bounds with the width of the range."""
        width = (self.clip_max - self.clip_min).detach()
        return {"clip_min": width, "clip_max": width}

    @torch.no_grad()
    def initialise_from_range_(self) -> None:
        """Set the clipping values from the observer's range; see the base class."""
        low, high = self.observer.range_min, self.observer.range_max
        empty = low > high
        self.clip_min.copy_(torch.where(empty, torch.zeros_like(low), low.clamp(max=0.0)))
        full = torch.full_like(high, float(self.spec.quant_max))
        self.clip_max.copy_(torch.where(empty, full, high.clamp(min=0.0)))

    def clip_and_fake_quantize(
        self, x: Tensor, clip: Clip = NO_CLIP, *, in_place: bool = False
    ) -> Tensor:
        """Clip ``x`` and fake-quantize it if the phase says so; see the base class."""
        self.require_range()
        x = clipped(in_representable_dtype(x, self.spec) if self.phase.quantizes else x, clip)
        self.observe(x)
        if self.phase is Phase.TRAIN:
            factor = factor_of(x.numel(), 1, self.clip_min)
            return learned_clip(x, self.clip_min, self.clip_max, self.spec, factor=factor)
        y = fake_quantize(x, *self.scale_and_zero_point(), self.spec) if self.phase.quantizes else x
        return with_zero_gradients(y, self.clip_min, self.clip_max)

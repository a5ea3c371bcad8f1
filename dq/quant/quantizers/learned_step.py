"""Learned scales: LSQ for weights and activations, LSQ+ with a learned offset for activations.

The gradients are those of Esser et al. 2020 (arXiv 1902.08153, equations 2 and 3) and Bhalgat et
al. 2020 (arXiv 2004.09576, equations 5 and 6), for the integers that are exported: the learned
offset is rounded to an integer zero point, so that zero stays exactly representable.

torch has ``_fake_quantize_learnable_per_tensor_affine`` with the same gradients. It reads the
scale on the host in every call, which stalls a GPU at every layer, and its backward refuses
float16. So the forward here is torch's plain kernel, which evaluation and export use too, and the
backward is written out. Tests compare its gradients with those of torch's function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dq.quant.kernels import native
from dq.quant.kernels.recompute import computed_twice, make_recomputable, same_values
from dq.quant.kernels.rounding import (
    NO_CLIP,
    Clip,
    clipped,
    fake_quantize_learned,
    fake_quantize_weight,
)
from dq.quant.numerics.affine import (
    SMALLEST_SCALE,
    along_channels,
    fake_quantize,
    fake_quantize_composed,
    scale_and_zero_point,
    sum_over,
)
from dq.quant.numerics.shrunk_range import best_shrunk_range
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.fake_quantize import LearnedActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.half_precision import in_representable_dtype
from dq.quant.quantizers.learner import Learner
from dq.quant.quantizers.phase import Phase


def gradient_factor(num_values: int, spec: QuantSpec) -> float:
    """Return ``1 / sqrt(num_values * quant_max)``, which makes scales learn as fast as weights.

    From Esser et al. 2020, section 2.2.

    Args:
        num_values: Number of values that share the scale.
        spec: The integer format.
    """
    return _inverse_root(num_values, spec.quant_max)


def _inverse_root(num_values: int, share: int) -> float:
    return float((max(1, num_values) * max(1, share)) ** -0.5)


def factor_of(num_values: int, share: int, like: Tensor) -> float | Tensor:
    """Return ``1 / sqrt(num_values * share)``; a float64 tensor if the size is symbolic.

    With ``dynamic=True``, torch.compile makes sizes symbolic; a Python number would fix them.

    Args:
        num_values: Number of values that share a parameter.
        share: Second factor under the root, such as ``quant_max``.
        like: Gives the device.
    """
    if not torch.compiler.is_compiling():
        return _inverse_root(num_values, share)
    total = torch.full((), num_values, dtype=torch.float64, device=like.device)
    return (total.clamp(min=1.0) * max(1, share)).rsqrt()


def positive(raw: Tensor, spec: QuantSpec) -> Tensor:
    """Return the scale of a raw parameter: positive, and a power of two if the spec asks for it.

    If an optimizer step crosses zero, the scale is mirrored, so no scale dies. The power of two is
    the nearest one in the logarithm; its gradient is a straight-through estimator.

    Args:
        raw: The parameter, any shape.
        spec: The integer format.
    """
    scale = raw.abs().clamp(min=SMALLEST_SCALE)
    if spec.power_of_two:
        # The quotient is exactly one and carries the gradient.
        scale = torch.exp2(torch.round(torch.log2(scale.detach()))) * (scale / scale.detach())
    return scale


def zero_point_of(offset: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return the zero point if integer 0 has the real value ``offset``, int32."""
    integer = torch.round(-offset.detach() / scale.detach())
    return integer.clamp(spec.quant_min, spec.quant_max).to(torch.int32)


class _LearnedRounding(torch.autograd.Function):
    """Fake-quantize as torch does, with gradients of the values, the scale and the offset."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        zero_point: Tensor,
        spec: QuantSpec,
        factor: float | Tensor,
    ) -> Tensor:
        factors = (factor,) if isinstance(factor, Tensor) else ()
        ctx.save_for_backward(x, scale, zero_point, *factors)
        ctx.spec, ctx.factor, ctx.has_offset = spec, factor, offset is not None
        if factors:
            ctx.factor = None
        return fake_quantize_no_grad(x, scale, zero_point, spec)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        x, scale, zero_point, *factors = ctx.saved_tensors
        factor = factors[0] if factors else ctx.factor
        spec, axis = ctx.spec, ctx.spec.channel_axis
        step, shift = along_channels(x, scale, axis), along_channels(x, zero_point, axis)
        steps = x.to(scale.dtype) * (1.0 / step)
        integer = torch.round(steps) + shift
        inside = (integer >= spec.quant_min) & (integer <= spec.quant_max)
        # With a learned offset, a clipped value is scale * integer + offset; otherwise it is
        # scale * (integer - zero_point).
        clipped = integer.clamp(spec.quant_min, spec.quant_max)
        outside = clipped if ctx.has_offset else clipped - shift
        upstream = gradient.to(scale.dtype)
        by_scale = upstream * torch.where(inside, integer - shift - steps, outside)
        d_scale = (sum_over(by_scale, axis) * factor).to(scale.dtype)
        d_offset = None
        if ctx.has_offset:
            d_offset = (sum_over(upstream * ~inside, axis) * factor).to(scale.dtype)
        return gradient * inside, d_scale, d_offset, None, None, None


def fake_quantize_no_grad(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the result of `dq.quant.numerics.affine.fake_quantize`, without a gradient."""
    if torch.compiler.is_compiling():
        return fake_quantize_composed(x, scale, zero_point, spec)[0]
    return fake_quantize(x, scale, zero_point, spec)


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    spec: QuantSpec,
    *,
    offset: Tensor | None = None,
    factor: float | Tensor = 1.0,
) -> Tensor:
    """Fake-quantize ``x``, with gradients of the values, the scale and the offset.

    Args:
        x: Any shape and floating dtype.
        scale: Positive, float32, shape ``()`` or ``(x.shape[channel_axis],)``.
        zero_point: Like ``scale``, int32.
        spec: The integer format.
        offset: Real value of integer 0, from which `zero_point_of` gave ``zero_point``; None if the
            zero point is fixed.
        factor: Multiplies the gradients of scale and offset; see `gradient_factor`.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    result: Tensor = _LearnedRounding.apply(x, scale, offset, zero_point, spec, factor)
    if result.requires_grad and not torch.compiler.is_compiling():
        # The unquantized values are saved anyway, for the gradient of the scale.
        values, step = x.detach(), scale.detach()
        make_recomputable(
            result,
            lambda: fake_quantize(values, step, zero_point, spec),
            (values, step, zero_point),
        )
    return result


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        # Not saved for backward: a parameter may be updated from its range before that.
        ctx.kinds = [(p.shape, p.dtype, p.device) for p in parameters]
        # No view: an activation function of the network may change it in place.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        zeros = [torch.zeros(s, dtype=t, device=d) for s, t, d in ctx.kinds]
        return (gradients[0], *zeros)


def with_zero_gradients(x: Tensor, *parameters: Tensor) -> Tensor:
    """Return ``x`` and give the parameters a gradient of zero.

    DistributedDataParallel waits for a gradient of every parameter, even in phases that do not
    learn the scale.
    """
    if not torch.is_grad_enabled():
        return x
    result: Tensor = _ZeroGradients.apply(x, *parameters)
    if not torch.compiler.is_compiling():
        same_values(x, result)
    return result


class LsqActivationQuantizer(LearnedActivationQuantizer):
    """Fake-quantize an activation with a learned scale and, for LSQ+, a learned offset.

    Args:
        spec: The integer format; per tensor.
        observer: Gives the initial range.
        learn_offset: LSQ+; if False, the calibrated zero point stays. A symmetric format has no
            offset to learn.

    Parameters ``learned_scale`` and, for LSQ+, ``learned_offset`` (real value of integer 0),
    float32 ``()``; for LSQ the buffer ``fixed_zero_point`` int32 ``()``.
    """

    learned_scale: nn.Parameter
    learned_offset: nn.Parameter | None
    fixed_zero_point: Tensor | None

    def __init__(
        self, spec: QuantSpec, observer: MinMaxObserver, *, learn_offset: bool = False
    ) -> None:
        if learn_offset and spec.symmetric:
            learn_offset = False
        self._learn_offset = learn_offset
        super().__init__(spec, observer)

    def _add_state(self, scale: Tensor) -> None:
        learn = self.__dict__["_learn_offset"]
        self.learned_scale = nn.Parameter(scale)
        self.learned_offset = nn.Parameter(torch.zeros_like(scale)) if learn else None
        fixed = None if learn else torch.zeros_like(scale, dtype=torch.int32)
        self.register_buffer("fixed_zero_point", fixed)

    @property
    def scale(self) -> Tensor:  # type: ignore[override]  # a buffer in the base class
        """The present scale, float32 ``()``."""
        return positive(self.learned_scale, self.spec).detach()

    @property
    def zero_point(self) -> Tensor:  # type: ignore[override]  # a buffer in the base class
        """The present zero point, int32 ``()``."""
        if self.learned_offset is None:
            assert self.fixed_zero_point is not None
            return self.fixed_zero_point
        return zero_point_of(self.learned_offset, self.scale, self.spec)

    @property
    def is_uninitialised(self) -> bool:
        """Whether the parameters still have their initial values; reads the device."""
        shift = self.fixed_zero_point if self.learned_offset is None else self.learned_offset
        assert shift is not None
        return bool((self.learned_scale == 1).all()) and not bool(shift.any())

    def sizes(self) -> dict[str, Tensor]:
        """Return what updates are compared with: an offset with the width of the range."""
        found = super().sizes()
        if self.learned_offset is not None:
            width = self.scale * (self.spec.quant_max - self.spec.quant_min)
            found["learned_offset"] = width
        return found

    @torch.no_grad()
    def initialise_from_range_(self) -> None:
        """Set the parameters from the observer's range; see the base class."""
        low, high = self.observer.range_min, self.observer.range_max
        scale, zero_point = scale_and_zero_point(low, high, self.spec)
        self.learned_scale.copy_(scale)
        if self.learned_offset is None:
            assert self.fixed_zero_point is not None
            self.fixed_zero_point.copy_(zero_point)
        else:
            self.learned_offset.copy_(-zero_point * scale)

    def clip_and_fake_quantize(
        self, x: Tensor, clip: Clip = NO_CLIP, *, in_place: bool = False
    ) -> Tensor:
        """Clip ``x`` and fake-quantize it if the phase says so; see the base class."""
        if self.phase is not Phase.TRAIN:
            # These phases do the same as for a quantizer without learned parameters.
            return with_zero_gradients(
                super().clip_and_fake_quantize(x, clip, in_place=in_place), *self.parameters()
            )
        return self.learn(x, positive(self.learned_scale, self.spec), clip)

    def learn(self, x: Tensor, scale: Tensor, clip: Clip) -> Tensor:
        """Clip ``x`` and fake-quantize it with gradients of scale and offset; in phase TRAIN.

        Args:
            x: Any shape.
            scale: The present scale, ``()``, with its gradient.
            clip: Bounds of the activation function before the quantizer.
        """
        x = in_representable_dtype(x, self.spec)
        factor = factor_of(x.numel(), self.spec.quant_max, scale)
        offset, zero_point = self.learned_offset, self.zero_point
        if native.takes(x, scale):
            return fake_quantize_learned(
                x, scale, offset, zero_point, self.spec, clip=clip, factor=factor
            )
        return learned_fake_quantize(
            clipped(x, clip), scale, zero_point, self.spec, offset=offset, factor=factor
        )


class LsqWeightQuantizer(WeightQuantizer, Learner):
    """Fake-quantize a weight with a learned scale, per tensor or per output channel.

    The scale is stored: training, evaluation and export use the same one, even if the weight has
    changed since.

    Args:
        spec: The integer format.
        num_channels: Length of the channel axis; ignored per tensor.

    Parameter ``learned_scale`` float32 and buffer ``fixed_zero_point`` int32, shape ``()`` or
    ``(num_channels,)``.
    """

    fixed_zero_point: Tensor

    def __init__(self, spec: QuantSpec, *, num_channels: int = 1) -> None:
        super().__init__(spec)
        scale = torch.ones(() if spec.channel_axis is None else (num_channels,))
        self.learned_scale = nn.Parameter(scale)
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        self.register_buffer("fixed_zero_point", zero_point)

    @property
    def stored_scale(self) -> Tensor:
        """The learned parameter, ``()`` or ``(channels,)``."""
        return self.learned_scale

    def scale_and_zero_point(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stored scale and zero point; ``weight`` is not used."""
        return positive(self.learned_scale, self.spec).detach(), self.fixed_zero_point

    @torch.no_grad()
    def initialise_(self, weight: Tensor) -> None:
        """Set the scale to the one with the least squared quantization error of ``weight``."""
        scale, zero_point = least_squares_scale(weight, self.spec)
        self.learned_scale.copy_(scale)
        self.fixed_zero_point.copy_(zero_point)

    @torch.no_grad()
    def rescale_(self, ratio: Tensor) -> None:
        """Multiply the scale by ``|ratio|`` after the weight was multiplied by ``ratio``."""
        self.learned_scale.mul_(ratio.abs())

    def fake_quantize_natively(
        self, weight: Tensor, factor: Tensor | None, *, unfolds: bool = False
    ) -> Tensor:
        """Fold, fake-quantize with the learned scale and unfold in one pass; see the base class."""
        learns = self.phase is Phase.TRAIN
        scale = positive(self.learned_scale, self.spec)
        num_values = weight.numel() // max(1, scale.numel())
        y = fake_quantize_weight(
            weight,
            factor,
            self.spec,
            scale=scale if learns else scale.detach(),
            zero_point=self.fixed_zero_point,
            unfolds=unfolds,
            scale_factor=gradient_factor(num_values, self.spec),
        )
        return y if learns else with_zero_gradients(y, self.learned_scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, fake-quantized if the phase says so; same shape and dtype."""
        if self.phase.quantizes:
            weight = in_representable_dtype(weight, self.spec)
        if self.phase.quantizes and self.has_native_kernel(weight):
            return self.fake_quantize_natively(weight, None)
        if self.phase is Phase.TRAIN:
            return computed_twice(self._learned, weight)
        return with_zero_gradients(super().forward(weight), self.learned_scale)

    def _learned(self, weight: Tensor) -> Tensor:
        """Return the weight, fake-quantized by torch's operators with the learned scale."""
        scale = positive(self.learned_scale, self.spec)
        factor = gradient_factor(weight.numel() // max(1, scale.numel()), self.spec)
        return learned_fake_quantize(weight, scale, self.fixed_zero_point, self.spec, factor=factor)


def least_squares_scale(
    weight: Tensor, spec: QuantSpec, *, num_candidates: int = 40
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point with the least squared quantization error of ``weight``.

    LSQ's own initial value, ``2 * mean(|w|) / sqrt(quant_max)``, leaves most of 8 bits unused. This
    search works for every width.

    Args:
        weight: Any shape.
        spec: The integer format.
        num_candidates: Number of shares of the full range to try, down to a tenth.

    Returns:
        ``(scale, zero_point)`` of shape ``()`` or ``(weight.shape[channel_axis],)``.
    """
    shares = torch.linspace(1.0, 0.1, num_candidates).tolist()
    return scale_and_zero_point(*best_shrunk_range(weight, spec, shares), spec)

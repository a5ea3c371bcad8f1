"""Quantizers: activations use a stored scale, weights a scale computed from their own range."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dq.quant.kernels import native
from dq.quant.kernels.clip_and_round import fake_quantize_clipped
from dq.quant.kernels.recompute import computed_twice
from dq.quant.kernels.rounding import (
    NO_CLIP,
    Clip,
    clipped,
    fake_quantize_activation,
    fake_quantize_weight,
)
from dq.quant.numerics.affine import fake_quantize, range_over, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.fixed import FixedObserver
from dq.quant.observers.min_max import MinMaxObserver, buffers, forget_records_, update_ranges_
from dq.quant.quantizers.half_precision import in_representable_dtype
from dq.quant.quantizers.learner import Learner
from dq.quant.quantizers.phase import Phase, Phased


class ActivationQuantizer(Phased):
    """Observe a tensor's range, or fake-quantize it with the stored scale, or both.

    The scale changes only in `update_scales_`, after the step. So the forward pass has neither
    data-dependent branches nor collectives, and all ranks use the same scale.

    Args:
        spec: The integer format; per tensor.
        observer: Determines the range from the batches.

    Attributes:
        site: Its name below the model's quantizers, for messages; empty without a model.
        keeps_range: Whether the phase TRAIN leaves the range as it is. True if calibration searched
            for it in all images: a step observes only extremes, which would undo the search.

    Buffers ``scale`` float32 ``()`` and ``zero_point`` int32 ``()``. A subclass that learns them
    computes both from parameters instead.
    """

    scale: Tensor
    zero_point: Tensor
    # Attributes that only cache what was read from the device. They are not part of the state of a
    # training, so its checkpoints leave them out.
    not_resumed = ("_was_calibrated",)

    def __init__(self, spec: QuantSpec, observer: MinMaxObserver) -> None:
        super().__init__()
        self.spec = spec
        self.observer = observer
        self.site = ""
        self.keeps_range = False
        self._was_calibrated = False
        self._add_state(torch.ones_like(observer.range_min))

    def _add_state(self, scale: Tensor) -> None:
        """Register the state of the scale and the zero point."""
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int32))

    def entered(self, phase: Phase) -> None:
        """Start the observer's calibration in CALIBRATE and end it when training starts."""
        if phase is Phase.CALIBRATE and not self.observer.calibrates:
            self.observer.begin_calibration_()
        elif phase in (Phase.OBSERVE, Phase.TRAIN) and self.observer.calibrates:
            self.observer.end_calibration_()
        if phase is Phase.TRAIN:
            # Reads the device, between steps. Without a range there is nothing to keep.
            self.keeps_range = self.observer.searches and self.has_range

    @property
    def is_kept(self) -> bool:
        """Whether the phase is TRAIN and leaves the range as it is."""
        return self.keeps_range and self.phase is Phase.TRAIN

    @property
    def observes(self) -> bool:
        """Whether the forward pass records the tensor's values."""
        observing = self.observer.watches and self.phase.observes(self.training)
        return observing and not self.is_kept

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, fake-quantized if the phase says so.

        Returns:
            A tensor of the shape and dtype of ``x``. It is float32 if it is fake-quantized and its
            dtype cannot represent the result, see `dq.quant.quantizers.half_precision`.

        Raises:
            ValueError: The phase is FROZEN and no range was ever observed or loaded.
        """
        return self.clip_and_fake_quantize(x)

    def clip_and_fake_quantize(
        self, x: Tensor, clip: Clip = NO_CLIP, *, in_place: bool = False
    ) -> Tensor:
        """Clip ``x``, then do the same as `forward`, in one pass if possible.

        Args:
            x: Any shape.
            clip: Bounds of the activation function before the quantizer.
            in_place: ``x`` may be overwritten; only native kernels use this.
        """
        self.require_range()
        observes = self.observes
        rounds = self.phase.quantizes
        if rounds:
            x = in_representable_dtype(x, self.spec)
        if native.takes(x, self.observer.range_min) and (
            not observes or self.observer.records_extremes
        ):
            return fake_quantize_activation(
                x,
                self.scale if rounds else None,
                self.zero_point if rounds else None,
                self.spec,
                clip=clip,
                record=(self.observer.batch_min, self.observer.batch_max) if observes else None,
                in_place=in_place,
            )
        # torch.compile decides by itself what to save for the backward pass.
        merges = rounds and clip != NO_CLIP and not torch.compiler.is_compiling()
        merges = merges and torch.is_grad_enabled() and x.requires_grad
        with torch.no_grad() if merges else contextlib.nullcontext():
            y = clipped(x, clip)
        if observes:
            self.observer.observe(y)
        if merges:
            return fake_quantize_clipped(x, y, self.scale, self.zero_point, self.spec, clip)
        return fake_quantize(y, self.scale, self.zero_point, self.spec) if rounds else y

    @property
    def has_range(self) -> bool:
        """Whether anything was observed. Reads the device, so do not call it inside a step."""
        return bool((self.observer.range_min <= self.observer.range_max).all())

    @property
    def is_uninitialised(self) -> bool:
        """Whether scale and zero point still have their initial values; reads the device."""
        return bool((self.scale == 1).all()) and not bool(self.zero_point.any())

    def require_range(self) -> None:
        """Raise ValueError if the phase is FROZEN and there is no range.

        The device is read once, in the first FROZEN forward pass.
        """
        if self._was_calibrated or self.phase is not Phase.FROZEN or torch.compiler.is_compiling():
            return
        if not self.has_range and self.is_uninitialised:
            raise ValueError(
                f"the quantizer {self.site or '(without a name)'} has no range; calibrate the"
                " model first, or load a calibrated checkpoint"
            )
        self._was_calibrated = True

    @torch.no_grad()
    def initialise_from_range_(self) -> None:
        """Set scale and zero point from the observer's range; an empty range gives scale 1."""
        if isinstance(self.observer, FixedObserver):
            self.observer.follow_(self.spec)
        scale, zero_point = scale_and_zero_point(
            self.observer.range_min, self.observer.range_max, self.spec
        )
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def extra_repr(self) -> str:
        """Show bits and phase in the printed model."""
        return f"bits={self.spec.bits}, phase={self.phase.value}"


class LearnedActivationQuantizer(ActivationQuantizer, Learner):
    """An activation quantizer whose scale is a trained parameter.

    Until the phase fake-quantizes, the scale follows the observed range. After that the range stays
    and the optimizer changes the scale. Data parallelism averages its gradient like any other, so
    it is equal on all ranks.
    """

    def initialise_from_range_(self) -> None:
        """Set the parameters from the observer's range; an empty range gives scale 1."""
        raise NotImplementedError

    @property
    def is_uninitialised(self) -> bool:
        """Whether the parameters still have their initial values; reads the device."""
        raise NotImplementedError

    def observe(self, x: Tensor) -> None:
        """Record ``x`` if the phase observes and does not fake-quantize yet."""
        if self.phase.observes(self.training) and not self.phase.quantizes:
            self.observer.observe(x)


class WeightQuantizer(Phased):
    """Fake-quantize a weight with a scale computed from it in every forward pass.

    A weight is equal on all ranks, so its range needs neither an observer nor communication.

    Args:
        spec: The integer format; usually symmetric and per channel.
    """

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def stored_scale(self) -> Tensor | None:
        """The stored scale of a quantizer that learns it; None if the scale is computed."""
        return None

    def initialise_(self, weight: Tensor) -> None:
        """Set a stored scale from the weight; nothing to do for a computed one."""

    def rescale_(self, ratio: Tensor) -> None:
        """Multiply a stored scale by the ratio by which the weight was multiplied."""

    def scale_and_zero_point(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point for ``weight``, shape ``()`` or ``(channels,)``."""
        low, high = range_over(weight.detach(), self.spec.channel_axis)
        return scale_and_zero_point(low, high, self.spec)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, fake-quantized if the phase says so.

        Returns:
            A tensor of the shape of ``weight``; of its dtype or, as for activations, float32.
        """
        if not self.phase.quantizes:
            return weight
        weight = in_representable_dtype(weight, self.spec)
        if self.has_native_kernel(weight):
            return self.fake_quantize_natively(weight, None)
        return computed_twice(self._composed, weight)

    def _composed(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, computed by torch's operators."""
        scale, zero_point = self.scale_and_zero_point(weight)
        return fake_quantize(weight, scale, zero_point, self.spec)

    def has_native_kernel(self, weight: Tensor) -> bool:
        """Say whether `fake_quantize_natively` supports this weight and equals `forward`."""
        owner = next(kind for kind in type(self).__mro__ if "forward" in vars(kind))
        return (
            "fake_quantize_natively" in vars(owner)
            and self.spec.channel_axis in (None, 0)
            and native.takes(weight)
        )

    def fake_quantize_natively(
        self, weight: Tensor, factor: Tensor | None, *, unfolds: bool = False
    ) -> Tensor:
        """Fold, fake-quantize and unfold in one pass; only in a phase that fake-quantizes.

        Args:
            weight: ``(output channels, ...)``.
            factor: The fold factor, ``(output channels,)``, or None.
            unfolds: Divide by the factor again.
        """
        return fake_quantize_weight(weight, factor, self.spec, unfolds=unfolds)

    def extra_repr(self) -> str:
        """Show bits and phase in the printed model."""
        return f"bits={self.spec.bits}, phase={self.phase.value}"


def activation_quantizers(module: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return every activation quantizer below ``module`` by qualified name, in module order."""
    found = module.named_modules()
    return {name: child for name, child in found if isinstance(child, ActivationQuantizer)}


def observers_of(quantizers: Sequence[ActivationQuantizer]) -> list[MinMaxObserver]:
    """Return each quantizer's observer, without nn.Module's slow attribute look-up.

    See `dq.quant.observers.min_max.buffers`.

    Args:
        quantizers: In any order; the result has the same order.
    """
    return [cast(MinMaxObserver, quantizer._modules["observer"]) for quantizer in quantizers]


@torch.no_grad()
def update_scales_(quantizers: list[ActivationQuantizer]) -> None:
    """Update each range with its recorded batch, then compute all scales, in few operations.

    A learned scale follows its range only while its phase does not fake-quantize. A FROZEN
    quantizer keeps its range and scale and drops its records.
    """
    frozen = [quantizer for quantizer in quantizers if quantizer.phase is Phase.FROZEN]
    forget_records_(observers_of(frozen))
    if frozen:
        quantizers = [q for q in quantizers if q.phase is not Phase.FROZEN]
    update_ranges_(observers_of(quantizers))
    followers: list[ActivationQuantizer] = []
    for quantizer in quantizers:
        if not isinstance(quantizer, LearnedActivationQuantizer):
            followers.append(quantizer)
        elif not quantizer.phase.quantizes:
            quantizer.initialise_from_range_()
    groups: dict[tuple[QuantSpec, torch.device], list[ActivationQuantizer]] = {}
    for quantizer, tensor in zip(followers, buffers(followers, "scale"), strict=True):
        groups.setdefault((quantizer.spec, tensor.device), []).append(quantizer)
    for (spec, _), group in groups.items():
        observers = observers_of(group)
        low = torch.stack(buffers(observers, "range_min"))
        high = torch.stack(buffers(observers, "range_max"))
        scale, zero_point = scale_and_zero_point(low, high, spec)
        torch._foreach_copy_(buffers(group, "scale"), scale.unbind())
        torch._foreach_copy_(buffers(group, "zero_point"), zero_point.unbind())

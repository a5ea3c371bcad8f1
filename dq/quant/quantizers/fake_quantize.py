"""The two quantizers: activations round with an agreed scale, weights with their own range."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dq.quant.kernels import native
from dq.quant.kernels.clip_and_round import round_clipped
from dq.quant.kernels.rounding import NO_CLIP, Clip, clipped, round_activation, round_weight
from dq.quant.numerics.affine import fake_quantize, range_over, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver, buffers, forget_records_, update_ranges_
from dq.quant.quantizers.half_precision import widened
from dq.quant.quantizers.phase import Phase, Phased


class ActivationQuantizer(Phased):
    """Observe a tensor's range in one act and round to the scale agreed so far in the other.

    The scale changes only in `update_scales_`, after the step, so the forward pass holds no
    decision on data and no collective, and every rank that agreed rounds alike.

    Args:
        spec: The integers; per tensor.
        observer: What turns batches into a range.

    Attributes:
        site: Its name below the model's quantizers, for messages; empty for one that stands alone.

    Buffers ``scale`` float32 ``()`` and ``zero_point`` int32 ``()``; a subclass that learns them
    has parameters instead and computes both from those.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec, observer: MinMaxObserver) -> None:
        super().__init__()
        self.spec = spec
        self.observer = observer
        self.site = ""
        self._was_calibrated = False
        self._add_state(torch.ones_like(observer.range_min))

    def _add_state(self, scale: Tensor) -> None:
        """Register what the scale and the zero point are kept in."""
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int32))

    def entered(self, phase: Phase) -> None:
        """Let the observer calibrate in the phase CALIBRATE, and no more in a training after it."""
        if phase is Phase.CALIBRATE and not self.observer.calibrates:
            self.observer.begin_calibration_()
        elif phase in (Phase.OBSERVE, Phase.TRAIN) and self.observer.calibrates:
            self.observer.end_calibration_()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, rounded when the phase rounds.

        Returns:
            A tensor of the shape of ``x`` and its dtype; float32 for a rounded one whose dtype
            could not hold the rounded values, see `dq.quant.quantizers.half_precision`.

        Raises:
            ValueError: The phase is FROZEN and no range was ever observed or loaded.
        """
        return self.behind_clip(x)

    def behind_clip(self, x: Tensor, clip: Clip = NO_CLIP, *, in_place: bool = False) -> Tensor:
        """Clip ``x`` and do with the result what `forward` does, in one pass where possible.

        Args:
            x: Any shape.
            clip: What the activation function before the quantizer does.
            in_place: ``x`` may be written into; only native kernels make use of it.
        """
        self.require_range()
        observes, rounds = self.phase.observes(self.training), self.phase.rounds
        if rounds:
            x = widened(x, self.spec)
        if native.takes(x, self.observer.range_min) and (
            not observes or self.observer.records_extremes
        ):
            return round_activation(
                x,
                self.scale if rounds else None,
                self.zero_point if rounds else None,
                self.spec,
                clip=clip,
                record=(self.observer.batch_min, self.observer.batch_max) if observes else None,
                in_place=in_place,
            )
        # torch.compile finds by itself what need not be kept.
        merges = rounds and clip != NO_CLIP and not torch.compiler.is_compiling()
        merges = merges and torch.is_grad_enabled() and x.requires_grad
        with torch.no_grad() if merges else contextlib.nullcontext():
            y = clipped(x, clip)
        if observes:
            self.observer.observe(y)
        if merges:
            return round_clipped(x, y, self.scale, self.zero_point, self.spec, clip)
        return fake_quantize(y, self.scale, self.zero_point, self.spec) if rounds else y

    @property
    def has_range(self) -> bool:
        """Whether anything was observed; reads the device, so not for use inside a step."""
        return bool((self.observer.range_min <= self.observer.range_max).all())

    @property
    def is_as_made(self) -> bool:
        """Whether scale and zero point are still those of a new quantizer; reads the device."""
        return bool((self.scale == 1).all()) and not bool(self.zero_point.any())

    def require_range(self) -> None:
        """Raise ValueError where the phase is FROZEN and there is nothing to round with.

        The device is read once, in the first forward pass that is frozen.
        """
        if self._was_calibrated or self.phase is not Phase.FROZEN or torch.compiler.is_compiling():
            return
        if not self.has_range and self.is_as_made:
            raise ValueError(
                f"the quantizer {self.site or '(without a name)'} has no range to round with;"
                " calibrate the model first, or load a calibrated checkpoint"
            )
        self._was_calibrated = True

    @torch.no_grad()
    def take_range_(self) -> None:
        """Begin anew from the observer's range, whatever the phase; an empty one gives scale 1."""
        scale, zero_point = scale_and_zero_point(
            self.observer.range_min, self.observer.range_max, self.spec
        )
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def extra_repr(self) -> str:
        """Name bits and phase in the printed model."""
        return f"bits={self.spec.bits}, phase={self.phase.value}"


class LearnedActivationQuantizer(ActivationQuantizer):
    """An activation quantizer whose scale is a parameter that training moves.

    Until the phase rounds, the scale follows the observed range like any other; from then on the
    range is left alone and the optimizer decides. Ranks need no agreement on it: data parallelism
    averages its gradient like any parameter's, so it is equal on all of them.
    """

    def take_range_(self) -> None:
        """Begin anew from the observer's range; a range that is empty gives scale 1."""
        raise NotImplementedError

    @property
    def is_as_made(self) -> bool:
        """Whether the parameters are still those of a new quantizer; reads the device."""
        raise NotImplementedError

    def observe(self, x: Tensor) -> None:
        """Record ``x`` where the phase observes and does not round yet."""
        if self.phase.observes(self.training) and not self.phase.rounds:
            self.observer.observe(x)


class WeightQuantizer(Phased):
    """Round a weight to a scale computed from that weight, in every forward pass.

    A weight is equal on all ranks, so its range needs neither observer nor agreement.

    Args:
        spec: The integers; usually symmetric and per channel.
    """

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def scale_and_zero_point(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` rounds ``weight`` with, shape ``()`` or ``(channels,)``."""
        low, high = range_over(weight.detach(), self.spec.channel_axis)
        return scale_and_zero_point(low, high, self.spec)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, rounded when the phase rounds.

        Returns:
            A tensor of the shape of ``weight``; of its dtype or, as for activations, float32.
        """
        if not self.phase.rounds:
            return weight
        weight = widened(weight, self.spec)
        if self.rounds_natively(weight):
            return self.round_natively(weight, None)
        scale, zero_point = self.scale_and_zero_point(weight)
        return fake_quantize(weight, scale, zero_point, self.spec)

    def rounds_natively(self, weight: Tensor) -> bool:
        """Say whether `round_natively` can take this weight, and stands for this `forward`."""
        owner = next(kind for kind in type(self).__mro__ if "forward" in vars(kind))
        return (
            "round_natively" in vars(owner)
            and self.spec.channel_axis in (None, 0)
            and native.takes(weight)
        )

    def round_natively(
        self, weight: Tensor, factor: Tensor | None, *, unfolds: bool = False
    ) -> Tensor:
        """Fold, round and unfold in one pass; to be called in a phase that rounds.

        Args:
            weight: ``(output channels, ...)``.
            factor: What folding multiplies it by, ``(output channels,)``, or None.
            unfolds: Divide by the factor again.
        """
        return round_weight(weight, factor, self.spec, unfolds=unfolds)

    def extra_repr(self) -> str:
        """Name bits and phase in the printed model."""
        return f"bits={self.spec.bits}, phase={self.phase.value}"


def activation_quantizers(module: nn.Module) -> dict[str, ActivationQuantizer]:
    """Return every activation quantizer below ``module`` by qualified name, in module order."""
    found = module.named_modules()
    return {name: child for name, child in found if isinstance(child, ActivationQuantizer)}


def observers_of(quantizers: Sequence[ActivationQuantizer]) -> list[MinMaxObserver]:
    """Return each quantizer's observer, without the time that nn.Module's look-up takes.

    `dq.quant.observers.min_max.buffers` says why that matters.

    Args:
        quantizers: In any order, which the result has too.
    """
    return [cast(MinMaxObserver, quantizer._modules["observer"]) for quantizer in quantizers]


@torch.no_grad()
def update_scales_(quantizers: list[ActivationQuantizer]) -> None:
    """Fold each observer's batch into its range, then derive all scales, in few operations.

    A learned scale follows its range only while its phase does not round. A quantizer that is
    FROZEN keeps range and scale, and what it had recorded before is forgotten.
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
        elif not quantizer.phase.rounds:
            quantizer.take_range_()
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

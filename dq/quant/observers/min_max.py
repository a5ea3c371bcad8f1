"""Observers: modules that watch tensors and determine the range to represent.

`observe` records a batch in the forward pass, and `update_` then updates the range. In between, the
records of several ranks may be merged: ``merge`` names for each record the reduction that merges
it. Every buffer starts neutral (minimum +inf, maximum -inf): a rank without data changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dq.quant.numerics.affine import range_over

Range = tuple[Tensor, Tensor]


class MinMaxObserver(nn.Module):
    """Range from the smallest to the largest value ever seen.

    Args:
        channel_axis: Dimension with one range per index, or None.
        num_channels: Length of that dimension; with ``channel_axis=None`` the shape is ``()``.

    Buffers of float32, shape ``()`` or ``(num_channels,)``: ``range_min`` and ``range_max`` (in
    checkpoints), ``batch_min``, ``batch_max`` and ``num_batches`` (not in checkpoints).
    ``num_batches`` counts the batches of the range; 0 if that is unknown.
    """

    merge: ClassVar[dict[str, str]] = {"batch_min": "min", "batch_max": "max"}
    # Whether `observe` does anything.
    watches: ClassVar[bool] = True
    # Whether calibration collects all of its images and searches for the best range in them.
    searches: ClassVar[bool] = False
    range_min: Tensor
    range_max: Tensor
    batch_min: Tensor
    batch_max: Tensor
    num_batches: Tensor

    def __init__(self, *, channel_axis: int | None = None, num_channels: int = 1) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        shape = () if channel_axis is None else (num_channels,)
        for name in ("range", "batch"):
            kept = name == "range"
            self.register_buffer(f"{name}_min", torch.full(shape, torch.inf), persistent=kept)
            self.register_buffer(f"{name}_max", torch.full(shape, -torch.inf), persistent=kept)
        self.register_buffer("num_batches", torch.zeros(shape), persistent=False)
        self.calibrates = False

    def begin_calibration_(self) -> None:
        """Prepare for calibration; an existing range is continued."""
        self.calibrates = True

    def end_calibration_(self) -> None:
        """Treat the range as final, as if it came from a checkpoint."""
        self.calibrates = False
        self.num_batches.zero_()

    def observe(self, x: Tensor) -> None:
        """Record a batch; several calls before `update_` count as one batch.

        Args:
            x: Any shape. A tensor (or channel) with a value that is not finite is left out as a
                whole, since it would spoil the range for good.
        """
        low, high = range_over(x.detach(), self.channel_axis)
        sound = torch.isfinite(low) & torch.isfinite(high)
        low = torch.where(sound, low, torch.inf)
        high = torch.where(sound, high, -torch.inf)
        self.batch_min.copy_(torch.minimum(self.batch_min, low))
        self.batch_max.copy_(torch.maximum(self.batch_max, high))

    @property
    def records_extremes(self) -> bool:
        """Whether `observe` only updates ``batch_min`` and ``batch_max`` of shape ``()``."""
        return type(self).observe is MinMaxObserver.observe and self.channel_axis is None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for observers whose `updated` can be computed in one stacked operation."""
        return (type(self), buffers([self], "range_min")[0].shape)

    def updated(self, old: Range, batch: Range, number: Tensor) -> Range:
        """Return the range after a batch; pure and elementwise, so it works on stacked ranges.

        Args:
            old: ``(range_min, range_max)`` of any shape.
            batch: ``(batch_min, batch_max)`` of that shape, finite.
            number: Index of the batch in the range, from 1; 0 if the range existed before.
        """
        return torch.minimum(old[0], batch[0]), torch.maximum(old[1], batch[1])

    def prepare_update_(self) -> None:
        """Prepare for `updated` the records that only this kind of observer has; none here."""

    def forget_(self) -> None:
        """Drop the records that only this kind of observer has; none here."""

    def update_(self) -> None:
        """Update the range with the recorded batch and drop the record."""
        update_ranges_([self])


class MovingAverageObserver(MinMaxObserver):
    """Moving average of each batch's minimum and maximum: first a plain mean, then exponential.

    The first batches have equal weights, until a weight of ``1 / n`` would be less than
    ``momentum``. Otherwise, with momentum 0.01, the first batch would dominate the range for a
    hundred steps (Adam corrects the same bias). A range that existed before (calibrated or loaded)
    already is an average.

    Args:
        momentum: Final weight of a new batch, 0.01 as in torch and in Jacob et al.
        channel_axis: As for `MinMaxObserver`.
        num_channels: As for `MinMaxObserver`.

    Raises:
        ValueError: The momentum is not more than 0 and at most 1.
    """

    def __init__(
        self, *, momentum: float = 0.01, channel_axis: int | None = None, num_channels: int = 1
    ) -> None:
        super().__init__(channel_axis=channel_axis, num_channels=num_channels)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; use more than 0 and at most 1")
        self.momentum = momentum

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for observers whose `updated` can be computed in one stacked operation."""
        return (type(self), buffers([self], "range_min")[0].shape, self.momentum)

    def updated(self, old: Range, batch: Range, number: Tensor) -> Range:
        """Return the averaged range; see `MinMaxObserver.updated`."""
        first = old[0] > old[1]
        equal_weight = torch.where(number > 0, 1.0 / number.clamp(min=1.0), 0.0)
        weight = equal_weight.clamp(min=self.momentum).to(old[0].dtype)
        low = torch.where(first, batch[0], torch.lerp(old[0], batch[0], weight))
        high = torch.where(first, batch[1], torch.lerp(old[1], batch[1], weight))
        return low, high


def buffers(modules: Sequence[nn.Module], name: str) -> list[Tensor]:
    """Return the tensor of that name of each module, equal to its attribute.

    It reads the module's buffer dict directly: with a thousand quantizers, nn.Module's attribute
    look-up takes longer than all the arithmetic.
    """
    try:
        return [module._buffers[name] for module in modules]  # type: ignore[misc]
    except KeyError:  # Some module has a property or a parameter of this name.
        return [getattr(module, name) for module in modules]


@torch.no_grad()
def update_ranges_(observers: list[MinMaxObserver]) -> None:
    """Update the ranges of many observers with their recorded batches, in few stacked operations.

    An observer that recorded nothing keeps its range.
    """
    groups: dict[tuple[object, ...], list[MinMaxObserver]] = {}
    for observer, tensor in zip(observers, buffers(observers, "range_min"), strict=True):
        observer.prepare_update_()
        groups.setdefault((*observer.key, tensor.device), []).append(observer)
    for group in groups.values():
        range_min, range_max, batch_min, batch_max, num_batches = (
            buffers(group, name)
            for name in ("range_min", "range_max", "batch_min", "batch_max", "num_batches")
        )
        old_min, old_max = torch.stack(range_min), torch.stack(range_max)
        low, high = torch.stack(batch_min), torch.stack(batch_max)
        usable = torch.isfinite(low) & torch.isfinite(high) & (low <= high)
        before = torch.stack(num_batches)
        first = old_min > old_max
        number = torch.where(first, 1.0, torch.where(before > 0, before + 1.0, 0.0))
        new_min, new_max = group[0].updated((old_min, old_max), (low, high), number)
        new_min = torch.where(usable, new_min, old_min)
        new_max = torch.where(usable, new_max, old_max)
        torch._foreach_copy_(range_min, new_min.unbind())
        torch._foreach_copy_(range_max, new_max.unbind())
        torch._foreach_copy_(num_batches, torch.where(usable, number, before).unbind())
        _forget_(batch_min, batch_max)


@torch.no_grad()
def forget_records_(observers: Sequence[MinMaxObserver]) -> None:
    """Drop the records since the last update; ranges stay."""
    groups: dict[tuple[object, ...], list[MinMaxObserver]] = {}
    for observer, tensor in zip(observers, buffers(observers, "batch_min"), strict=True):
        groups.setdefault((tensor.shape, tensor.device), []).append(observer)
        observer.forget_()
    for group in groups.values():
        _forget_(buffers(group, "batch_min"), buffers(group, "batch_max"))


def _forget_(batch_min: list[Tensor], batch_max: list[Tensor]) -> None:
    # On a GPU, copying many tensors is one launch; filling each one would be one launch per tensor.
    neutral = torch.full_like(batch_min[0], torch.inf)
    torch._foreach_copy_(batch_min, [neutral] * len(batch_min))
    torch._foreach_copy_(batch_max, [-neutral] * len(batch_max))

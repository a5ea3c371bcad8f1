"""Observers: modules that watch tensors and end with the range to represent.

An observer records a batch with `observe` inside the forward pass and folds it into its range with
`update_` afterwards. In between the records of several ranks may be merged: ``merge`` says for each
record how two of them become one, so whoever merges needs to know nothing else. Every buffer
begins neutral (minimum +inf, maximum -inf): a rank without data changes nothing.
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
        channel_axis: Dimension with a range for each index, or None.
        num_channels: Length of that dimension; 1 with ``channel_axis=None`` gives shape ``()``.

    Buffers ``range_min``, ``range_max`` (kept in checkpoints), ``batch_min``, ``batch_max`` and
    ``num_batches``, how many the range was made of from its beginning or 0 where that is not known
    (not kept), float32, shape ``()`` or ``(num_channels,)``.
    """

    merge: ClassVar[dict[str, str]] = {"batch_min": "min", "batch_max": "max"}
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
        """Make ready for calibration; a range that is there is gone on from."""
        self.calibrates = True

    def end_calibration_(self) -> None:
        """Take the range for settled, as if it came from a checkpoint."""
        self.calibrates = False
        self.num_batches.zero_()

    def observe(self, x: Tensor) -> None:
        """Record a batch: several in a row before `update_` count as one.

        Args:
            x: Any shape; a tensor (or channel) with a value that is not finite is left out whole,
                since it would ruin the range for good.
        """
        low, high = range_over(x.detach(), self.channel_axis)
        sound = torch.isfinite(low) & torch.isfinite(high)
        low = torch.where(sound, low, torch.inf)
        high = torch.where(sound, high, -torch.inf)
        self.batch_min.copy_(torch.minimum(self.batch_min, low))
        self.batch_max.copy_(torch.maximum(self.batch_max, high))

    @property
    def records_extremes(self) -> bool:
        """Whether `observe` does no more than widen ``batch_min`` and ``batch_max``, ``()``."""
        return type(self).observe is MinMaxObserver.observe and self.channel_axis is None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for observers whose `updated` may be computed in one stacked operation."""
        return (type(self), buffers([self], "range_min")[0].shape)

    def updated(self, old: Range, batch: Range, number: Tensor) -> Range:
        """Return the range after a batch; pure and elementwise, so it works on stacks of ranges.

        Args:
            old: ``(range_min, range_max)`` of any shape.
            batch: ``(batch_min, batch_max)`` of that shape, finite.
            number: Which batch of the range this is, 1 for the first one; 0 where the range was
                there before.
        """
        return torch.minimum(old[0], batch[0]), torch.maximum(old[1], batch[1])

    def fold_(self) -> None:
        """Make ready for `updated` what only this kind of observer recorded; here nothing."""

    def forget_(self) -> None:
        """Drop what only this kind of observer recorded; here nothing."""

    def update_(self) -> None:
        """Fold the recorded batch into the range and forget the batch."""
        update_ranges_([self])


class MovingAverageObserver(MinMaxObserver):
    """Moving average of each batch's minimum and maximum: of all alike, then exponential.

    The first batches weigh alike until the ``n``-th would weigh less than ``momentum``, as in Adam
    and elsewhere where a mean begins from nothing: with 0.01 the first batch alone would be most of
    the range for a hundred steps. A range that was there before (calibrated, or loaded) is an
    average already.

    Args:
        momentum: Weight of a new batch in the long run, 0.01 as in torch and in Jacob et al.
        channel_axis: As for `MinMaxObserver`.
        num_channels: As for `MinMaxObserver`.
    """

    def __init__(
        self, *, momentum: float = 0.01, channel_axis: int | None = None, num_channels: int = 1
    ) -> None:
        super().__init__(channel_axis=channel_axis, num_channels=num_channels)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; it must lie above 0 and not above 1")
        self.momentum = momentum

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for observers whose `updated` may be computed in one stacked operation."""
        return (type(self), buffers([self], "range_min")[0].shape, self.momentum)

    def updated(self, old: Range, batch: Range, number: Tensor) -> Range:
        """Return the averaged range; see `MinMaxObserver.updated`."""
        first = old[0] > old[1]
        alike = torch.where(number > 0, 1.0 / number.clamp(min=1.0), 0.0)
        weight = alike.clamp(min=self.momentum).to(old[0].dtype)
        low = torch.where(first, batch[0], torch.lerp(old[0], batch[0], weight))
        high = torch.where(first, batch[1], torch.lerp(old[1], batch[1], weight))
        return low, high


def buffers(modules: Sequence[nn.Module], name: str) -> list[Tensor]:
    """Return the tensor of that name of each module, as reading the attribute does.

    With a thousand quantizers nn.Module's own look-up takes longer than all the arithmetic, so
    this reads buffers where the module keeps them.
    """
    try:
        return [module._buffers[name] for module in modules]  # type: ignore[misc]
    except KeyError:  # Some module has a property or a parameter instead.
        return [getattr(module, name) for module in modules]


@torch.no_grad()
def update_ranges_(observers: list[MinMaxObserver]) -> None:
    """Fold the recorded batches of many observers into their ranges, in few stacked operations.

    An observer that saw nothing keeps its range.
    """
    groups: dict[tuple[object, ...], list[MinMaxObserver]] = {}
    for observer, tensor in zip(observers, buffers(observers, "range_min"), strict=True):
        observer.fold_()
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
    """Drop what was recorded since the last update; ranges stay."""
    groups: dict[tuple[object, ...], list[MinMaxObserver]] = {}
    for observer, tensor in zip(observers, buffers(observers, "batch_min"), strict=True):
        groups.setdefault((tensor.shape, tensor.device), []).append(observer)
        observer.forget_()
    for group in groups.values():
        _forget_(buffers(group, "batch_min"), buffers(group, "batch_max"))


def _forget_(batch_min: list[Tensor], batch_max: list[Tensor]) -> None:
    # On a GPU a copy of many tensors is one launch, and filling each would be one apiece.
    neutral = torch.full_like(batch_min[0], torch.inf)
    torch._foreach_copy_(batch_min, [neutral] * len(batch_min))
    torch._foreach_copy_(batch_max, [-neutral] * len(batch_max))

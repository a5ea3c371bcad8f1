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

from dq.quant.affine import range_over

Range = tuple[Tensor, Tensor]


class MinMaxObserver(nn.Module):
    """Range from the smallest to the largest value ever seen.

    Args:
        channel_axis: Dimension with a range for each index, or None.
        num_channels: Length of that dimension; 1 with ``channel_axis=None`` gives shape ``()``.

    Buffers ``range_min``, ``range_max`` (kept in checkpoints) and ``batch_min``, ``batch_max``
    (not kept), float32, shape ``()`` or ``(num_channels,)``.
    """

    merge: ClassVar[dict[str, str]] = {"batch_min": "min", "batch_max": "max"}
    range_min: Tensor
    range_max: Tensor
    batch_min: Tensor
    batch_max: Tensor

    def __init__(self, *, channel_axis: int | None = None, num_channels: int = 1) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        shape = () if channel_axis is None else (num_channels,)
        for name in ("range", "batch"):
            kept = name == "range"
            self.register_buffer(f"{name}_min", torch.full(shape, torch.inf), persistent=kept)
            self.register_buffer(f"{name}_max", torch.full(shape, -torch.inf), persistent=kept)

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

    def updated(self, old: Range, batch: Range) -> Range:
        """Return the range after a batch; pure and elementwise, so it works on stacks of ranges.

        Args:
            old: ``(range_min, range_max)`` of any shape.
            batch: ``(batch_min, batch_max)`` of that shape, finite.
        """
        return torch.minimum(old[0], batch[0]), torch.maximum(old[1], batch[1])

    def fold_(self) -> None:
        """Make ready for `updated` what only this kind of observer recorded; here nothing."""

    def update_(self) -> None:
        """Fold the recorded batch into the range and forget the batch."""
        update_ranges_([self])


class MovingAverageObserver(MinMaxObserver):
    """Exponential moving average of each batch's minimum and maximum; the first one counts whole.

    Args:
        momentum: Weight of a new batch, 0.01 as in torch and in Jacob et al.
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

    def updated(self, old: Range, batch: Range) -> Range:
        """Return the averaged range; see `MinMaxObserver.updated`."""
        first = old[0] > old[1]
        low = torch.where(first, batch[0], torch.lerp(old[0], batch[0], self.momentum))
        high = torch.where(first, batch[1], torch.lerp(old[1], batch[1], self.momentum))
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
        range_min, range_max, batch_min, batch_max = (
            buffers(group, name) for name in ("range_min", "range_max", "batch_min", "batch_max")
        )
        old_min, old_max = torch.stack(range_min), torch.stack(range_max)
        low, high = torch.stack(batch_min), torch.stack(batch_max)
        usable = torch.isfinite(low) & torch.isfinite(high) & (low <= high)
        new_min, new_max = group[0].updated((old_min, old_max), (low, high))
        new_min = torch.where(usable, new_min, old_min)
        new_max = torch.where(usable, new_max, old_max)
        torch._foreach_copy_(range_min, new_min.unbind())
        torch._foreach_copy_(range_max, new_max.unbind())
        # On a GPU a copy of many tensors is one launch, and filling each would be one apiece.
        neutral = low.new_full(low.shape[1:], torch.inf)
        torch._foreach_copy_(batch_min, [neutral] * len(group))
        torch._foreach_copy_(batch_max, [-neutral] * len(group))

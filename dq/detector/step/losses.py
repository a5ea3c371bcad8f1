"""Losses that stay on the device until they are read, and mmcv's log buffer for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableSequence, ValuesView
from typing import Any

import numpy as np
import torch
from mmcv.runner.log_buffer import LogBuffer
from torch import Tensor

from dq.dist.exchange import collectives
from dq.dist.exchange.agreed_names import agreed_names

NUM_KEPT = 2000
LOSSES = "losses"
SAME_LOSSES = (
    "let the model return the same losses in every step on every rank, a zero if there is nothing"
    " to learn from"
)


class LossValues(OrderedDict[str, Any]):
    """A step's losses by name: stored as tensors, read as numbers.

    mmdet copies every loss to the host in every step. Here the first read copies them all, and the
    losses of most steps are never read.

    Attributes:
        tensors: The losses, on their device.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__(tensors)
        self.tensors = dict(tensors)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, Tensor):
            waiting = {k: v for k, v in super().items() if isinstance(v, Tensor)}
            numbers = torch.stack([v.detach() for v in waiting.values()]).tolist()
            for key, number in zip(waiting, numbers, strict=True):
                super().__setitem__(key, number)
            value = super().__getitem__(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return a loss as a number."""
        return self[name] if self.__contains__(name) else default

    # The methods of the base class would return the tensors.
    def items(self) -> Any:
        """Return names and numbers."""
        return ItemsView(self)

    def values(self) -> Any:
        """Return the numbers."""
        return ValuesView(self)

    def copy(self) -> Any:
        """Return the numbers as a plain dict without tensors."""
        return OrderedDict((name, self[name]) for name in self)

    def __reduce__(self) -> Any:
        return OrderedDict, (list(self.items()),)


class Values(MutableSequence[Any]):
    """One name's values in a log buffer: stored as tensors, read as numbers.

    Attributes:
        kept: As they were recorded.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.kept = list(values)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> Any:
        found = self.kept[index]
        return _numbers(found) if isinstance(index, slice) else _numbers([found])[0]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.kept[index] = value

    def __delitem__(self, index: Any) -> None:
        del self.kept[index]

    def insert(self, index: int, value: Any) -> None:
        """Insert a value."""
        self.kept.insert(index, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(_numbers(self.kept))

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Values) else other)

    __hash__ = None  # type: ignore[assignment]


def _numbers(values: list[Any]) -> list[Any]:
    """Return the values with scalar tensors as numbers, with one copy from the device for all."""
    waiting = [v.detach().reshape(()) for v in values if isinstance(v, Tensor) and v.numel() == 1]
    if not waiting:
        return list(values)
    found = iter(torch.stack([t.to(waiting[0].device).double() for t in waiting]).tolist())
    return [next(found) if isinstance(v, Tensor) and v.numel() == 1 else v for v in values]


class LossLog(LogBuffer):  # type: ignore[misc]
    """mmcv's log buffer for losses: one copy from the device for each line of the log.

    Losses stay on the device until they are logged. Then the ranks compare the names and exchange
    all means at once. Every rank must log at the same steps. Other values that hooks record belong
    to this rank only.

    Attributes:
        shared: Names that are averaged over all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_averaged: int | None = None
        self._means: tuple[int, dict[str, float]] | None = None
        self.shared: set[str] = set()

    def average(self, n: int = 0) -> None:
        """Average the latest ``n`` values (0: all) over steps and, for losses, over ranks.

        Raises:
            ValueError: The ranks have logged different losses (raised on all ranks).
            RuntimeError: A loss is not finite on some rank (raised on all ranks).
        """
        if self.is_averaged == n:
            return
        self.is_averaged = n
        if self._means is None or self._means[0] != n:
            # Several loggers call this, and hooks of one rank may record values in between.
            self._means = n, self._means_of_all_ranks(n)
        numbers = self._means[1]
        for name, values in self.val_history.items():
            if name in numbers:
                self.output[name] = numbers[name]
                continue
            counts = np.array(self.n_history[name][-n:])
            self.output[name] = float(np.sum(np.array(values[-n:]) * counts) / np.sum(counts))
        self.ready = True

    def _means_of_all_ranks(self, n: int) -> dict[str, float]:
        own = [name for name in self.val_history if name in self.shared]
        names = agreed_names(own, LOSSES, SAME_LOSSES)
        if not names:
            return {}
        means = torch.stack([self._mean(name, n) for name in names])
        numbers = dict(zip(names, collectives.all_reduce_(means, "mean").tolist(), strict=True))
        bad = [name for name in own if not np.isfinite(numbers[name])]
        if bad:
            raise RuntimeError(
                f"{', '.join(bad)} is not finite; lower optimizer.lr or add"
                " optimizer_config=dict(grad_clip=dict(max_norm=35, norm_type=2))"
            )
        return numbers

    def _mean(self, name: str, n: int) -> Tensor:
        values, counts = self.val_history[name].kept[-n:], self.n_history[name][-n:]
        device = values[-1].device if isinstance(values[-1], Tensor) else torch.device("cpu")
        stacked = torch.stack([torch.as_tensor(v, device=device) for v in values])
        if len(set(counts)) == 1:
            return stacked.mean().double()
        weights = torch.tensor(counts, device=device, dtype=torch.float64)
        return (stacked.double() * weights).sum() / weights.sum()

    def update(self, vars: dict[str, Any], count: int = 1) -> None:
        """Record the values of a step; drop those that no interval will average any more."""
        assert isinstance(vars, dict)
        self.is_averaged = None
        if isinstance(vars, LossValues):
            self._means = None
            self.shared |= vars.tensors.keys()
        for name in vars:
            value = vars.tensors[name] if isinstance(vars, LossValues) else vars[name]
            if name not in self.val_history:
                self.val_history[name], self.n_history[name] = Values(), []
            self.val_history[name].append(value)
            self.n_history[name].append(count)
            if len(self.val_history[name]) > NUM_KEPT:
                del self.val_history[name][: NUM_KEPT // 2]
                del self.n_history[name][: NUM_KEPT // 2]

    def remove_last(self, names: Iterable[str]) -> None:
        """Remove the last value of each name, because its step was skipped."""
        self.is_averaged = self._means = None
        for name in self.val_history.keys() & set(names):
            self.val_history[name].pop()
            self.n_history[name].pop()
            if not self.val_history[name]:
                del self.val_history[name], self.n_history[name]

    def put_back(
        self, name: str, values: Iterable[Any], counts: Iterable[int], *, shared: bool
    ) -> None:
        """Start a name's history with the values of a resumed training."""
        self.val_history[name], self.n_history[name] = Values(values), list(counts)
        if shared:
            self.shared.add(name)

    def clear_output(self) -> None:
        """Clear the output, so that the next interval is averaged again."""
        super().clear_output()
        self.is_averaged = self._means = None

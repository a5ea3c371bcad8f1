"""Register observers and target engines of your own by name, without a change of this package.

A registered name works wherever a name of the package works: in a `Recipe`, in the ``quant``
section of a config, in a checkpoint. The module that registers it must be imported before: by your
own script, or as one of a config's ``custom_imports``.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from dq.error_text import typed_error_text
from dq.names import hint, is_one_of
from dq.quant.observers.min_max import MinMaxObserver, update_ranges_
from dq.quant.recipes.presets import PRESETS, preset_for
from dq.quant.recipes.recipe import OBSERVERS, new_observer
from dq.quant.targets.as_written import TARGET as AS_WRITTEN
from dq.quant.targets.registry import TARGETS
from dq.quant.targets.target import INT8_ACTIVATION, Target

# How records of several ranks can be merged.
MERGES = ("min", "max", "sum")


def register_observer(name: str, observer: type[MinMaxObserver]) -> None:
    """Make an observer available by name: ``Recipe(observer=name)``.

    A subclass of `MinMaxObserver` or `MovingAverageObserver` overrides ``updated``, which gives the
    range after a batch. It gets the ranges of many tensors stacked, so it must compute each by
    itself. A subclass of `HistogramObserver` overrides ``search``, which gives the range from the
    counts of all calibrated values. The class is built with the arguments of its base class and
    tried once on a few values. Registering the same class again does nothing.

    Args:
        name: Letters, digits and ``_``.
        observer: The class.

    Raises:
        ValueError: The name is taken, it is not such a class, or the trial fails; the message says
            how.
    """
    _check_name("observer", name)
    if not (inspect.isclass(observer) and issubclass(observer, MinMaxObserver)):
        raise ValueError(
            f"observer {name!r} is {observer!r}; give a subclass of MinMaxObserver,"
            " MovingAverageObserver or HistogramObserver, not an object of it"
        )
    known = OBSERVERS.get(name)
    if known is observer:
        return
    if known is not None:
        raise ValueError(f"observer {name!r} exists already ({_place(known)}); choose another name")
    _try(name, observer)
    OBSERVERS.update({name: observer})


def register_target(target: Target) -> None:
    """Make a target engine available by name: ``preset(name)``, or ``Recipe(target=name)``.

    The preset has the target's integer formats and observer. Registering an equal target again does
    nothing.

    Args:
        target: The rules of the engine; its ``name`` is letters, digits and ``_``.

    Raises:
        ValueError: The name is taken, the observer does not exist, or it is not a target.
    """
    if not isinstance(target, Target):
        raise ValueError(f"{target!r} is not a target; give dq.quant.Target(name=..., engine=...)")
    name = target.name
    _check_name("target", name)
    if TARGETS.get(name) == target:
        return
    if name in {*TARGETS, *PRESETS, AS_WRITTEN.name}:
        raise ValueError(
            f"target {name!r} exists already, as a target or a preset; choose another name"
        )
    if not is_one_of(target.observer, OBSERVERS):
        raise ValueError(
            f"target {name!r}: observer {target.observer!r} does not exist;"
            f" {hint(str(target.observer), OBSERVERS)}"
        )
    TARGETS.update({name: target})
    PRESETS.update({name: preset_for(target)})


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"the {what}'s name is {name!r}; use letters, digits and _, and begin with no digit"
        )


def _place(observer: type[MinMaxObserver]) -> str:
    return f"{observer.__module__}.{observer.__qualname__}"


def _try(name: str, kind: type[MinMaxObserver]) -> None:
    """Raise ValueError unless the observer finds ranges, each by itself."""
    batches = [torch.linspace(-1.0, 3.0, 240).reshape(2, 4, 5, 6)]
    batches.append(batches[0].flip(0) * 8)
    try:
        alone = [_found([kind], [batch])[0] for batch in batches]
        together = _found([kind, kind], batches)
        merges = new_observer(kind, INT8_ACTIVATION)
        records = {key: getattr(merges, key) for key in merges.merge}
    except Exception as error:
        reason = typed_error_text(error)
        raise ValueError(
            f"observer {name!r} ({_place(kind)}) fails in a trial: {reason}"
        ) from error
    for key, value in records.items():
        if not isinstance(value, Tensor) or merges.merge[key] not in MERGES:
            raise ValueError(
                f"observer {name!r}: merge has {key!r}: {merges.merge[key]!r}; it names buffers,"
                f" each with one of {', '.join(MERGES)}"
            )
    for low, high in alone:
        if not (torch.isfinite(low) and torch.isfinite(high) and low <= high):
            raise ValueError(
                f"observer {name!r} ({_place(kind)}) gives the range {float(low):g} to"
                f" {float(high):g} in a trial; a range is finite and not reversed"
            )
    if not all(map(_are_equal, alone, together)):
        raise ValueError(
            f"observer {name!r} ({_place(kind)}) gives other ranges when several tensors are"
            " updated at once; its updated(old, batch, number) must be elementwise"
        )


def _found(kinds: list[type[MinMaxObserver]], batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the range that a new observer of each kind finds for its batch."""
    observers = [new_observer(kind, INT8_ACTIVATION) for kind in kinds]
    for observer, batch in zip(observers, batches, strict=True):
        observer.begin_calibration_()
        observer.observe(batch)
    update_ranges_(observers)
    for observer in observers:
        observer.end_calibration_()
    return [(observer.range_min, observer.range_max) for observer in observers]


def _are_equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

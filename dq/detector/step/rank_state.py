"""The training state of one rank: random generators, losses not logged yet, plain attributes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dq.detector.step.losses import LossLog
from dq.dist.exchange import collectives

Plain = dict[str, dict[str, Any]]


def generators() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's random number generators."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_generators(state: Mapping[str, Any]) -> None:
    """Restore the states that `generators` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; each rank gets its own seed, derived from ``seed``."""
    own = seed + 1000003 * collectives.rank()
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def plain_attributes(model: nn.Module) -> Plain:
    """Return the numbers, strings and tuples of them that modules store outside their buffers.

    mmdet's detectors have such state: for YOLOX the current input size and when to change it, and
    whether the head already uses the L1 loss.

    A module's ``not_resumed`` names attributes that are no state of a training.

    Returns:
        Attributes by name, by module name; modules without any are left out.
    """
    found: Plain = {}
    for name, module in model.named_modules():
        others = {"training", *getattr(module, "not_resumed", ())}
        plain = {k: v for k, v in vars(module).items() if k not in others and _is_plain(v)}
        if plain:
            found[name] = plain
    return found


def changed_attributes(before: Plain, model: nn.Module) -> Plain:
    """Return the attributes that differ from a former result of `plain_attributes`."""
    now = plain_attributes(model)
    changed: Plain = {}
    for name, plain in now.items():
        old = before.get(name, {})
        new = {k: v for k, v in plain.items() if k not in old or old[k] != v}
        if new:
            changed[name] = new
    return changed


def set_attributes(model: nn.Module, changed: Plain) -> None:
    """Set the attributes from `changed_attributes`; modules that do not exist are skipped."""
    modules = dict(model.named_modules())
    for name, plain in changed.items():
        if name in modules:
            modules[name].__dict__.update(plain)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def pending_logs(buffer: LossLog) -> dict[str, tuple[Any, list[int]]]:
    """Return the values not logged yet, with their counts, by name."""
    pending = {}
    for name, values in buffer.val_history.items():
        if name in ("time", "data_time"):
            continue
        kept: Any = list(values)
        if values and name in buffer.shared:
            kept = torch.stack([torch.as_tensor(value) for value in values.kept]).cpu()
        pending[name] = (kept, list(buffer.n_history[name]))
    return pending


def set_pending_logs(
    buffer: LossLog, pending: Mapping[str, tuple[Any, list[int]]], device: torch.device
) -> None:
    """Restore the values from `pending_logs`."""
    for name, (values, counts) in pending.items():
        kept = values.to(device).unbind() if isinstance(values, Tensor) else values
        buffer.put_back(name, kept, counts, shared=isinstance(values, Tensor))

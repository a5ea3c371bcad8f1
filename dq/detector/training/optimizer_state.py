"""Load an optimizer's state from a checkpoint, with the old or the new settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

log = logging.getLogger(__name__)


def load_optimizer_(
    optimizer: Optimizer, state: Mapping[str, Any], source: str, *, new_settings: bool
) -> None:
    """Load momentum and similar state into an optimizer of the same parameters.

    Args:
        optimizer: Built from the config.
        state: A ``state_dict`` from a checkpoint.
        source: The checkpoint's name, for messages.
        new_settings: Keep the learning rate and all other settings of the optimizer. If its type or
            its parameter groups differ, the old state is dropped.

    Raises:
        ValueError: The state belongs to another optimizer or other parameters.
    """
    own = optimizer.state_dict()
    names = {name for group in own["param_groups"] for name in group if name != "params"}
    fits = _sizes(state) == _sizes(own)
    if new_settings:
        had = {name for group in state["param_groups"] for name in group}
        # Settings of newer torch versions are ignored, because older files lack them.
        if fits and {n for n in names if n not in had} <= _SINCE and _kinds(state) == _kinds(own):
            optimizer.load_state_dict({**state, "param_groups": own["param_groups"]})
        else:
            log.warning("the optimizer differs from that of %s: its state starts again", source)
        return
    if not fits:
        raise ValueError(
            f"{source} has an optimizer of other parameters; resume with the config it was made"
            " with, or restart the optimizer's state with --resume-with optimizer"
        )
    try:
        optimizer.load_state_dict(dict(state))
        groups = optimizer.param_groups
        lacking = sorted({name for group in groups for name in names if name not in group})
    except (KeyError, TypeError, AttributeError) as error:  # A parameter has no state.
        lacking = [str(error)]
    if lacking:
        raise ValueError(
            f"{source} has the state of another optimizer than {type(optimizer).__name__} (it does"
            f" not say {', '.join(lacking)}); resume with the config it was made with, or restart"
            " the optimizer's state with --resume-with optimizer"
        )


_SINCE = {"foreach", "capturable", "differentiable", "fused", "maximize", "decoupled_weight_decay"}
# Settings that decide which state each parameter has.
_KIND = ("momentum", "amsgrad", "centered")


def _sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


def _kinds(state: Mapping[str, Any]) -> list[tuple[bool, ...]]:
    return [tuple(bool(group.get(name)) for name in _KIND) for group in state["param_groups"]]

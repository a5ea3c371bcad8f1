"""An optimizer's state from a checkpoint: with its own settings, or with those of the config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

log = logging.getLogger(__name__)


def load_optimizer_(
    optimizer: Optimizer, state: Mapping[str, Any], source: str, *, new_settings: bool
) -> None:
    """Load momentum and the like into an optimizer of the same parameters.

    Args:
        optimizer: As the config builds it.
        state: Its ``state_dict``, as a checkpoint has it.
        source: The checkpoint's name, for messages.
        new_settings: Keep the learning rate and all other settings that the optimizer has. Where
            it is of another type, or groups its parameters in another way, the state that belongs
            to the former one is left out.

    Raises:
        ValueError: The state is of another optimizer or of other parameters.
    """
    own = optimizer.state_dict()
    names = {name for group in own["param_groups"] for name in group if name != "params"}
    fits = _sizes(state) == _sizes(own)
    if new_settings:
        had = {name for group in state["param_groups"] for name in group}
        # What came with a newer torch counts for nothing: older files lack it.
        if fits and {n for n in names if n not in had} <= _SINCE and _kinds(state) == _kinds(own):
            optimizer.load_state_dict({**state, "param_groups": own["param_groups"]})
        else:
            log.warning(
                "the optimizer is another one than that of %s: its state begins anew", source
            )
        return
    if not fits:
        raise ValueError(
            f"{source} has an optimizer of other parameters; go on with the config it was made"
            " with, or let the optimizer's state begin anew with --resume-with optimizer"
        )
    try:
        optimizer.load_state_dict(dict(state))
        groups = optimizer.param_groups
        lacking = sorted({name for group in groups for name in names if name not in group})
    except (KeyError, TypeError, AttributeError) as error:  # It misses its own for a parameter.
        lacking = [str(error)]
    if lacking:
        raise ValueError(
            f"{source} has the state of another optimizer than {type(optimizer).__name__} (it does"
            f" not say {', '.join(lacking)}); go on with the config it was made with, or let the"
            " optimizer's state begin anew with --resume-with optimizer"
        )


_SINCE = {"foreach", "capturable", "differentiable", "fused", "maximize", "decoupled_weight_decay"}
# Settings that decide what there is for each parameter.
_KIND = ("momentum", "amsgrad", "centered")


def _sizes(state: Mapping[str, Any]) -> list[int]:
    return [len(group["params"]) for group in state["param_groups"]]


def _kinds(state: Mapping[str, Any]) -> list[tuple[bool, ...]]:
    return [tuple(bool(group.get(name)) for name in _KIND) for group in state["param_groups"]]

"""Save an integer network as plain tensors, and load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dq.counted import counted
from dq.quant.integer.qparams import integer_modules, qparams

INTEGER = "integer_network"


def integer_content(network: fx.GraphModule) -> dict[str, Any]:
    """Return what to save of an integer network: ``state`` and ``qparams``.

    Plain values and tensors, so that ``torch.load(..., weights_only=True)`` reads the file.
    """
    state = {key: value.cpu() for key, value in network.state_dict().items()}
    return {"state": state, "qparams": qparams(network)}


def load_integers_(network: fx.GraphModule, content: Mapping[str, Any], source: str) -> None:
    """Load integers and scales into a network of the same detector and recipe.

    Args:
        network: Result of `dq.quant.integer.convert.integer_network`; its ranges do not matter.
        content: As `integer_content` returned it.
        source: The file's name, for messages.

    Raises:
        ValueError: The file is of another detector, or was quantized in another way.
    """
    state: Mapping[str, Tensor] = content["state"]
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(state))
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    wrong += [k for k in own if k in state and own[k].dtype != state[k].dtype]
    if wrong:
        raise ValueError(
            f"{source} holds another network:"
            f" {counted(len(wrong), 'entr[y differs|ies differ]')} (first: {wrong[0]}); use the"
            " config it was exported with"
        )
    network.load_state_dict(dict(state))


def num_bytes(network: fx.GraphModule) -> tuple[int, int]:
    """Return the bytes of the weights as integers and as float32."""
    integers = [m for m in integer_modules(network).values() if hasattr(m, "integers")]
    tensors = [t for m in integers if isinstance(t := m.integers, torch.Tensor)]
    return sum(t.nbytes for t in tensors), sum(4 * t.numel() for t in tensors)

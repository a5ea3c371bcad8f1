"""The content of a checkpoint: the float detector's weights, quantizer state and recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import mmdet
from mmcv.runner import weights_to_cpu
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.model.build import float_state
from dq.dist.equality.digest import digest
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.float_layout import restore_scaled_, scaled_weights, to_float, to_scaled
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.targets import as_written

QUANTIZATION = "quantization"
# The weights as channel scaling has changed them; the state dict has the float detector's.
SCALED = "scaled_weights"
# Likewise the weights as calibration has clipped or repaired them.
REPAIRED = "repaired_weights"


def compose(
    detector: nn.Module,
    *,
    graph: QuantizedGraph | None,
    recipe: Recipe | None,
    meta: Mapping[str, Any],
    optimizer: Any = None,
    originals: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a checkpoint that plain mmdet loads as a checkpoint of the float detector.

    Args:
        detector: Unwrapped.
        graph: Its quantized graph, None for a float detector.
        recipe: The recipe of the graph.
        meta: mmdet's ``meta`` (epoch, iter, config, CLASSES, ...); plain values only.
        optimizer: Its state is stored if given.
        originals: See `dq.quant.ptq.repairs.Calibration.originals`.

    Returns:
        ``state_dict`` with the float detector's keys, ``meta``, and for a quantized detector
        ``quantization`` with ``state`` (tensors by quantizer name), its ``digest``, ``recipe``,
        ``sites``, ``scaled_weights`` and ``repaired_weights``.
    """
    weights = weights_to_cpu(detector.state_dict())
    scaled, repaired = {}, {}
    if graph is not None:
        scaled = {k: v.clone() for k, v in scaled_weights(graph, weights).items()}
        own = to_float(graph, weights)
        repaired = {k: own[k].clone() for k in originals}
        weights = to_float(graph, {**weights, **weights_to_cpu(dict(originals))})
    content: dict[str, Any] = {
        "meta": {"mmdet_version": mmdet.__version__, **meta},
        "state_dict": {k: v for k, v in weights.items() if not k.startswith(f"{CONTAINER}.")},
    }
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    if graph is not None:
        assert recipe is not None
        state = {k: v.cpu() for k, v in graph.quantizers.state_dict().items()}
        content[QUANTIZATION] = {
            "state": state,
            "digest": digest(state.items()),
            "recipe": asdict(recipe),
            "sites": [asdict(site) for site in graph.sites],
            SCALED: scaled,
            REPAIRED: repaired,
        }
    return content


def weights_of(
    graph: QuantizedGraph | None, content: Mapping[str, Any], source: str
) -> dict[str, Tensor]:
    """Return the weights in a checkpoint with the channel scales that this graph has at present.

    Args:
        graph: Its channels may be scaled; None for a float detector.
        content: Of any checkpoint.
        source: Its name, for messages.
    """
    state = float_state(content, source)
    return state if graph is None or not has_float_weights(content) else to_scaled(graph, state)


def repaired_state(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return a checkpoint's weights as calibration has clipped and repaired them.

    Args:
        content: Of any checkpoint; a float one has nothing repaired.
        source: Its name, for messages.

    Raises:
        ValueError: It contains no weights.
    """
    return float_state(content, source) | _repaired(content)


def originals_of(
    graph: QuantizedGraph, content: Mapping[str, Any], source: str
) -> dict[str, Tensor]:
    """Return the float values of all repaired weights, as a model with this graph has them.

    Args:
        graph: Of the checkpoint's detector, with its channel scales.
        content: Of any checkpoint.
        source: Its name, for messages.
    """
    names = _repaired(content)
    state = to_scaled(graph, float_state(content, source)) if names else {}
    return {name: state[name] for name in names}


def _repaired(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return dict(content.get(QUANTIZATION, {}).get(REPAIRED, {}))


def has_float_weights(content: Mapping[str, Any]) -> bool:
    """Return whether the state dict has the float detector's weights.

    A checkpoint of an older version, with channel scales and without `SCALED`, has the scaled ones.
    """
    stored = content.get(QUANTIZATION)
    return stored is None or SCALED in stored or not stored["recipe"].get("scaled")


def load_quantization(graph: QuantizedGraph, content: Mapping[str, Any], source: str) -> None:
    """Load quantizer state into a prepared detector that has the checkpoint's weights.

    Weights whose channels the state scales are scaled, so call it once after `load_float_state`.

    Raises:
        ValueError: The checkpoint has no quantizer state, or that of another model or recipe.
    """
    if QUANTIZATION not in content:
        raise ValueError(f"{source} is a float checkpoint; calibrate it first")
    state: Mapping[str, Tensor] = content[QUANTIZATION]["state"]
    said = content[QUANTIZATION].get("digest")
    if said is not None and said != digest(state.items()):
        raise ValueError(
            f"the ranges in {source} do not match the digest that was written with them, so they"
            " have been changed or damaged; use another checkpoint"
        )
    own = graph.quantizers.state_dict()
    wrong = sorted(set(own) ^ set(state))
    if wrong:
        raise ValueError(
            f"{source} was quantized in another way:"
            f" {counted(len(wrong), 'quantizer entr[y differs|ies differ]')} (first:"
            f" {wrong[0]}); use the config and the recipe it was made with"
        )
    graph.quantizers.load_state_dict(dict(state))
    if SCALED in content[QUANTIZATION]:
        restore_scaled_(graph, content[QUANTIZATION][SCALED])


def recipe_of(content: Mapping[str, Any]) -> Recipe | None:
    """Return the quantization recipe of a checkpoint, None for a float checkpoint.

    Raises:
        ValueError: Its observer or target is not one of the package, and is not registered.
    """
    if QUANTIZATION not in content:
        return None
    stored = dict(content[QUANTIZATION]["recipe"])
    rules = tuple(
        Rule(**{**rule, "weight": _spec(rule["weight"]), "activation": _spec(rule["activation"])})
        for rule in stored.pop("rules")
    )
    weight, activation = _spec(stored.pop("weight")), _spec(stored.pop("activation"))
    assert weight is not None
    assert activation is not None
    for name in ("raised", "scaled"):
        stored[name] = tuple(stored.get(name, ()))
    stored.setdefault("target", as_written.TARGET.name)  # Older checkpoints have none.
    try:
        return Recipe(weight=weight, activation=activation, rules=rules, **stored)
    except ValueError as error:
        raise ValueError(
            f"the checkpoint's recipe: {error}; if it is your own, add the module that registers it"
            " to custom_imports"
        ) from error


def _spec(stored: Mapping[str, Any] | None) -> QuantSpec | None:
    return None if stored is None else QuantSpec(**stored)

"""The content of a checkpoint: the float detector's weights, quantizer state and recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import mmdet
from mmcv.runner import weights_to_cpu
from torch import Tensor, nn

from dq.dist.equality.digest import digest
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.targets import as_written

QUANTIZATION = "quantization"


def compose(
    detector: nn.Module,
    *,
    graph: QuantizedGraph | None,
    recipe: Recipe | None,
    meta: Mapping[str, Any],
    optimizer: Any = None,
) -> dict[str, Any]:
    """Return a checkpoint that plain mmdet loads as a checkpoint of the float detector.

    Args:
        detector: Unwrapped.
        graph: Its quantized graph, None for a float detector.
        recipe: The recipe of the graph.
        meta: mmdet's ``meta`` (epoch, iter, config, CLASSES, ...); plain values only.
        optimizer: Its state is stored if given.

    Returns:
        ``state_dict`` with the float detector's keys, ``meta``, and for a quantized detector
        ``quantization`` with ``state`` (tensors by quantizer name), its ``digest``, ``recipe``
        and ``sites``.
    """
    weights = weights_to_cpu(detector.state_dict())
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
        }
    return content


def load_quantization(graph: QuantizedGraph, content: Mapping[str, Any], source: str) -> None:
    """Load quantizer state into a prepared detector.

    Raises:
        ValueError: The checkpoint has no quantizer state, or that of another model or recipe.
    """
    if QUANTIZATION not in content:
        raise ValueError(f"{source} is a float checkpoint; calibrate it first")
    state: Mapping[str, Tensor] = content[QUANTIZATION]["state"]
    said = content[QUANTIZATION].get("digest")
    if said is not None and said != digest(state.items()):
        raise ValueError(
            f"the ranges in {source} are not those that were equal on all ranks when it was"
            " written; use another checkpoint"
        )
    own = graph.quantizers.state_dict()
    wrong = sorted(set(own) ^ set(state))
    if wrong:
        raise ValueError(
            f"{source} was quantized in another way: {len(wrong)} quantizer entries differ"
            f" (first: {wrong[0]}); use the config and the recipe it was made with"
        )
    graph.quantizers.load_state_dict(dict(state))


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
    stored.setdefault("target", as_written.TARGET.name)  # From before there were targets.
    try:
        return Recipe(weight=weight, activation=activation, rules=rules, **stored)
    except ValueError as error:
        raise ValueError(
            f"the checkpoint's recipe: {error}; if it is your own, add the module that registers it"
            " to custom_imports"
        ) from error


def _spec(stored: Mapping[str, Any] | None) -> QuantSpec | None:
    return None if stored is None else QuantSpec(**stored)

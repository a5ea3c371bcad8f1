"""Every scale and zero point of a network as plain values, for ``qparams.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import fx

from dq.quant.integer.modules import IntegerActivation, IntegerWeight
from dq.quant.numerics.spec import QuantSpec


def integer_modules(network: fx.GraphModule) -> dict[str, IntegerActivation | IntegerWeight]:
    """Return what holds scales in an integer network, by the name of its quantizer."""
    kinds = IntegerActivation | IntegerWeight
    return {module.site: module for module in network.modules() if isinstance(module, kinds)}


def specs_of(network: fx.GraphModule) -> dict[str, QuantSpec]:
    """Return the integers of every quantizer of an integer network, by its name."""
    return {site: module.spec for site, module in integer_modules(network).items()}


def widths_of(network: fx.GraphModule) -> list[tuple[QuantSpec, bool]]:
    """Return each quantizer's integers, and whether it is a weight's."""
    modules = integer_modules(network).values()
    return [(module.spec, isinstance(module, IntegerWeight)) for module in modules]


def qparams(network: fx.GraphModule) -> dict[str, Mapping[str, Any]]:
    """Return kind, integers, scale and zero point of every quantizer, by its name.

    ``real = scale * (integer - zero_point)``. Scales and zero points are a number per tensor, or
    a list with one for each index of ``channel_axis``.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for site, module in integer_modules(network).items():
        spec = module.spec
        found[site] = {
            "kind": "weight" if isinstance(module, IntegerWeight) else "activation",
            **asdict(spec),
            "quant_min": spec.quant_min,
            "quant_max": spec.quant_max,
            "scale": module.scale.tolist(),
            "zero_point": module.zero_point.tolist(),
        }
    return found

"""Every scale and zero point of a network as plain values, for ``qparams.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import fx

from dq.quant.integer.modules import IntegerActivation, IntegerWeight
from dq.quant.numerics.spec import QuantSpec


def integer_modules(network: fx.GraphModule) -> dict[str, IntegerActivation | IntegerWeight]:
    """Return the modules of an integer network that have scales, by quantizer name."""
    kinds = IntegerActivation | IntegerWeight
    return {module.site: module for module in network.modules() if isinstance(module, kinds)}


def specs_of(network: fx.GraphModule) -> dict[str, QuantSpec]:
    """Return the integer format of every quantizer of an integer network, by its name."""
    return {site: module.spec for site, module in integer_modules(network).items()}


def widths_of(network: fx.GraphModule) -> list[tuple[QuantSpec, bool]]:
    """Return each quantizer's integer format, and whether it is a weight's."""
    modules = integer_modules(network).values()
    return [(module.spec, isinstance(module, IntegerWeight)) for module in modules]


def qparams(network: fx.GraphModule) -> dict[str, Mapping[str, Any]]:
    """Return kind, integer format, scale and zero point of every quantizer, by its name.

    ``real = scale * (integer - zero_point)``. Scales and zero points are one number per tensor, or
    a list with one number per index of ``channel_axis``.
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

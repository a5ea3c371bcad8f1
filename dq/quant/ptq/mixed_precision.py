"""Automatic mixed precision: raise the few most sensitive quantizers to 16 bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from dq.counted import counted
from dq.quant.analysis.sensitivity import Calls, Sensitivity, output_sqnr
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.settings import Mixed
from dq.quant.ptq.widths import raise_bits_
from dq.quant.recipes.recipe import RAISED_BITS

log = logging.getLogger(__name__)


def choose_raised_(
    graph: QuantizedGraph,
    batches: Sequence[Tensor],
    found: Sequence[Sensitivity],
    mixed: Mixed,
    parts: Calls | None = None,
) -> tuple[str, ...]:
    """Raise the most sensitive quantizers to `RAISED_BITS`, as few as reach the target.

    The target is one for the outputs of each network: the graph's own and those of its parts. In a
    network that has reached it no quantizer is raised.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN.
        batches: A few images on the model's device.
        found: Result of `sensitivities`.
        mixed: Largest number to raise, and the target.
        parts: The float inputs of each part whose quantizers are in ``found``.

    Returns:
        Their names, the most sensitive first.
    """
    candidates = [s for s in found if s.bits < RAISED_BITS]
    owner = {site.name: part for part, own in graph.networks.items() for site in own.sites}
    reached = _reached(graph, batches, parts)
    before = min(reached.values())
    raised: list[str] = []
    for candidate in candidates:
        part = owner[candidate.name]
        if len(raised) == mixed.max_raised:
            break
        if mixed.target_sqnr is not None and reached[part] >= mixed.target_sqnr:
            continue
        raise_bits_(graph, [candidate.name])
        raised.append(candidate.name)
        calls = (parts or {})[part] if part else batches
        reached[part] = output_sqnr(graph.networks[part], calls)
        log.info("%s now has %d bits, SQNR %.1f dB", candidate.name, RAISED_BITS, reached[part])
    after = min(reached.values())
    raised_text = counted(len(raised), "quantizer[s]")
    log.info("%s raised, lowest SQNR %.1f -> %.1f dB", raised_text, before, after)
    return tuple(raised)


def _reached(
    graph: QuantizedGraph, batches: Sequence[Tensor], parts: Calls | None
) -> dict[str, float]:
    """Return the SQNR at the outputs of each network, in decibel, each on float inputs."""
    calls = {part: (parts or {}).get(part, ()) if part else batches for part in graph.networks}
    return {part: output_sqnr(graph.networks[part], own) for part, own in calls.items() if own}


def analyze(
    graph: QuantizedGraph,
    batches: Sequence[Tensor],
    found: Sequence[Sensitivity],
    mixed: Mixed,
    parts: Calls | None = None,
) -> dict[str, Any]:
    """Raise the most sensitive quantizers; return plain values for a table.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN, some quantizers raised.
        batches: A few images on the model's device.
        found: Result of `sensitivities` for them.
        mixed: Largest number to raise, and the target.
        parts: As for `choose_raised_`.

    Returns:
        ``quantizers`` (dicts of `Sensitivity`, the most sensitive first), ``sqnr`` with all
        quantizers on (the lowest of all networks), ``raised`` (names) and ``sqnr_raised``.
    """
    before = min(_reached(graph, batches, parts).values())
    raised = choose_raised_(graph, batches, found, mixed, parts)
    return {
        "quantizers": [asdict(s) for s in found],
        "sqnr": before,
        "raised": list(raised),
        "sqnr_raised": min(_reached(graph, batches, parts).values()),
    }

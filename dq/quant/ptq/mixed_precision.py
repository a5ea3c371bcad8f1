"""Automatic mixed precision: raise the few most sensitive quantizers to 16 bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from dq.quant.analysis.sensitivity import Sensitivity, output_sqnr
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.settings import Mixed
from dq.quant.ptq.widths import raise_bits_
from dq.quant.recipes.recipe import RAISED_BITS

log = logging.getLogger(__name__)


def choose_raised_(
    graph: QuantizedGraph, batches: Sequence[Tensor], found: Sequence[Sensitivity], mixed: Mixed
) -> tuple[str, ...]:
    """Raise the most sensitive quantizers to `RAISED_BITS`, as few as reach the target.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN.
        batches: A few images on the model's device.
        found: Result of `sensitivities`.
        mixed: Largest number to raise, and the target.

    Returns:
        Their names, the most sensitive first.
    """
    candidates = [s for s in found if s.bits < RAISED_BITS]
    before = reached = output_sqnr(graph, batches)
    raised: list[str] = []
    for candidate in candidates[: mixed.max_raised]:
        if mixed.target_sqnr is not None and reached >= mixed.target_sqnr:
            break
        raise_bits_(graph, [candidate.name])
        raised.append(candidate.name)
        reached = output_sqnr(graph, batches)
        log.info("%s has %d bit now, SQNR %.1f dB", candidate.name, RAISED_BITS, reached)
    log.info("%d quantizers raised, SQNR %.1f -> %.1f dB", len(raised), before, reached)
    return tuple(raised)


def analyze(
    graph: QuantizedGraph, batches: Sequence[Tensor], found: Sequence[Sensitivity], mixed: Mixed
) -> dict[str, Any]:
    """Raise the most sensitive quantizers; return plain values for a table.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN, some quantizers raised.
        batches: A few images on the model's device.
        found: Result of `sensitivities` for them.
        mixed: Largest number to raise, and the target.

    Returns:
        ``quantizers`` (dicts of `Sensitivity`, the most sensitive first), ``sqnr`` with all
        quantizers on, ``raised`` (names) and ``sqnr_raised``.
    """
    before = output_sqnr(graph, batches)
    raised = choose_raised_(graph, batches, found, mixed)
    return {
        "quantizers": [asdict(s) for s in found],
        "sqnr": before,
        "raised": list(raised),
        "sqnr_raised": output_sqnr(graph, batches),
    }

"""The bridge between ranks and quantizers: calibrate on one rank, merge ranges, verify equality."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten
from torch._utils import _unflatten_dense_tensors as unflatten

from dq.counted import counted
from dq.dist.equality.digest import differing_names, digest
from dq.dist.exchange import collectives
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.analysis.sensitivity import (
    Calls,
    Sensitivity,
    names_measured,
    noises_of_all,
    ranked,
)
from dq.quant.graph.nodes import as_tuple
from dq.quant.graph.per_channel.channel_scales import scale_channels_of_, scaled_names
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.observers.min_max import MinMaxObserver, buffers
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, observers_of, update_scales_

log = logging.getLogger(__name__)


@torch.no_grad()
def merge_records_(observers: Sequence[MinMaxObserver]) -> None:
    """Make what the observers have recorded since the last update equal on all ranks.

    Every rank must call it, at the same step, with the same observers. Minima are negated, so one
    all-reduce merges minima and maxima together. Sums, if an observer has any, take a second one.

    Args:
        observers: In the same order on every rank.
    """
    if collectives.world_size() == 1:
        return
    kinds: dict[str, list[Tensor]] = {"min": [], "max": [], "sum": []}
    # Observers grouped by kind, in an order that is the same on every rank.
    by_records: dict[tuple[tuple[str, str], ...], list[MinMaxObserver]] = {}
    for observer in observers:
        by_records.setdefault(tuple(observer.merge.items()), []).append(observer)
    for records, group in by_records.items():
        for name, kind in records:
            kinds[kind] += buffers(group, name)
    extremes = kinds["min"] + kinds["max"]
    if extremes:
        flat = _flat(extremes)
        num_minima = sum(t.numel() for t in kinds["min"])
        flat[:num_minima].neg_()
        collectives.all_reduce_(flat, "max")
        flat[:num_minima].neg_()
        _scatter_(flat, extremes)
    if any(t.numel() for t in kinds["sum"]):
        flat = _flat(kinds["sum"])
        collectives.all_reduce_(flat, "sum")
        _scatter_(flat, kinds["sum"])


def _flat(tensors: list[Tensor]) -> Tensor:
    flat: Tensor = flatten(tensors)  # type: ignore[no-untyped-call]
    return flat


def _scatter_(flat: Tensor, tensors: list[Tensor]) -> None:
    torch._foreach_copy_(tensors, unflatten(flat, tensors))  # type: ignore[no-untyped-call]


def merge_ranges_(quantizers: Sequence[ActivationQuantizer]) -> None:
    """Give every rank the same new ranges and scales, from what all ranks observed.

    Every rank must call it, once per step, after the forward passes. Ranges that training keeps
    are left out; if it keeps all, there is no collective.
    """
    moving = [quantizer for quantizer in quantizers if not quantizer.is_kept]
    if moving:
        merge_records_(observers_of(moving))
        update_scales_(moving)


def calibrate_on_one_rank(
    graph: QuantizedGraph, work: Callable[[], object], *, rank: int = 0, limit_s: float = 86400.0
) -> str:
    """Calibrate on one rank, send model and quantizers to all ranks, verify that they are equal.

    Every rank must call it. The others wait on the store and not in a collective, so calibration
    may take longer than the collectives' time-out.

    Args:
        graph: The prepared model, equal on all ranks before the call.
        work: Calibrates ``graph``; called on ``rank`` only.
        rank: The calibrating rank.
        limit_s: Longest time that the others wait, in seconds.

    Returns:
        The digest of all quantizer state, equal on all ranks.

    Raises:
        RuntimeError: The calibrating rank failed (raised on all ranks, with its message), or the
            ranks differ afterwards.
    """
    run_on_rank(work, rank=rank, limit_s=limit_s)
    # The repairs of a calibration also change parameters of the float layers.
    tensors = list(graph.root.state_dict().values())
    collectives.broadcast_coalesced_(tensors, source=rank)
    # Treat every rank as if loaded from a checkpoint. Only the calibrating rank knows the number of
    # batches in its ranges, so it would update them with other weights than the other ranks.
    for observer in observers_of(list(graph.activations().values())):
        observer.end_calibration_()
    return check_equal_on_ranks(graph, "after calibration")


def sensitivities_over_ranks(
    graph: QuantizedGraph,
    batches: Sequence[Tensor],
    parts: Calls | None = None,
    *,
    source: int = 0,
) -> list[Sensitivity]:
    """Measure the sensitivity of every quantizer, each on one rank; every rank gets all results.

    Every rank must call it. The result is the same for any number of ranks.

    Args:
        graph: Prepared, with ranges on ``source``. All ranks get the parameters and the quantizer
            state of ``source``. Afterwards the graph is in evaluation mode and FROZEN.
        batches: A few images on the model's device; used from ``source`` only.
        parts: Float inputs of the graph's parts, as for
            `dq.quant.analysis.sensitivity.sensitivities`; used from ``source`` only.
        source: The rank that has calibrated.
    """
    graph.root.eval()
    collectives.broadcast_coalesced_(list(graph.root.state_dict().values()), source)
    device = next(iter(graph.root.state_dict().values())).device
    here, parts = _images_of(batches, device, source), _calls_of(parts or {}, device, source)
    names = names_measured(graph, parts)
    # Early quantizers take longer, so every rank gets some of them.
    own = names[collectives.rank() :: collectives.world_size()]
    found = noises_of_all(graph, here, parts, own)
    wait_for_all_ranks("the sensitivities of all quantizers")
    noises: dict[str, float] = {}
    for part in collectives.all_gather_objects(found):
        noises |= part
    return ranked(graph, noises)


def share_channel_scales_(graph: QuantizedGraph, *, source: int = 0) -> None:
    """Insert on all ranks the channel scales that a calibration on one rank has inserted.

    Every rank must call it, before state is exchanged: the scales are part of that state.

    Args:
        graph: The prepared model.
        source: The rank that has calibrated.
    """
    names: tuple[str, ...] = collectives.broadcast_object(scaled_names(graph), source=source)
    scale_channels_of_(graph, names)


def _images_of(batches: Sequence[Tensor], device: torch.device, source: int) -> Sequence[Tensor]:
    """Return the images of one rank on all ranks."""
    kinds = collectives.broadcast_object([(b.shape, b.dtype) for b in batches], source)
    if collectives.rank() != source:
        batches = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds]
    collectives.broadcast_coalesced_(batches, source)
    return batches


def _calls_of(parts: Calls, device: torch.device, source: int) -> Calls:
    """Return on all ranks the inputs of parts that one rank has."""
    lengths: dict[str, list[int]] = collectives.broadcast_object(
        {part: [len(as_tuple(call)) for call in calls] for part, calls in parts.items()}, source
    )
    flat = [x for calls in parts.values() for call in calls for x in as_tuple(call)]
    tensors = iter(_images_of(flat, device, source))
    return {
        part: [tuple(islice(tensors, number)) for number in numbers]
        for part, numbers in lengths.items()
    }


def check_equal_on_ranks(graph: QuantizedGraph, when: str) -> str:
    """Compare the digest of all quantizer state over the ranks and return it.

    Every rank must call it. Scales of weights are computed and not part of the state. They enter
    the digest if they are equal on all ranks; otherwise a warning names the layers, see
    `differing_weight_scales`.

    Args:
        graph: The prepared model.
        when: For the message, such as ``after calibration``.

    Raises:
        RuntimeError: Ranks differ; the message names the quantizers.
    """
    state = sorted(graph.quantizers.state_dict().items())
    names = differing_names(state)
    if names:
        owners = sorted({name.rpartition(".")[0].removesuffix(".observer") for name in names})
        raise RuntimeError(
            f"ranges differ between ranks {when}:"
            f" {counted(len(owners), 'quantizer[s]')}, first {', '.join(owners[:5])}; this is a"
            " fault of the cluster or of this program, the checkpoints written before are sound"
        )
    scales = weight_scales(graph)
    different = differing_weight_scales(scales)
    if different:
        log.warning(
            "%s other scales on other ranks %s, by a factor of up to %.3g (%s): batch norms keep"
            " statistics of single ranks; train with --sync-bn",
            counted(len(different), "weight[s] [has|have]"),
            when,
            max(different.values()),
            ", ".join(list(different)[:5]),
        )
    same = {name: scale for name, scale in scales.items() if name not in different}
    return digest([*state, *((f"{name} as rounded", scale) for name, scale in same.items())])


def weight_scales(graph: QuantizedGraph) -> dict[str, Tensor]:
    """Return the scales with which each quantized weight of the graph is rounded in inference."""
    found: dict[str, Tensor] = {}
    for site, quantized, layer, norm in graph.all_layers():
        found[site.name] = quantized.quantized_weight(layer, norm)[1]
    return found


def differing_weight_scales(scales: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the weights whose scales differ between ranks, and the largest factor between them.

    A folded weight contains its norm's running statistics. If norms are not synchronized, each rank
    rounds with its own scales until the statistics are averaged. A power-of-two scale is either
    almost equal or differs by a factor of two, and then ranks train for different grids.

    Every rank must call it.

    Args:
        scales: From `weight_scales`, for the same graph on every rank.
    """
    names = differing_names(scales.items())
    if not names:
        return {}
    flat = torch.cat([scales[name].reshape(-1).double() for name in names])
    highest, lowest = flat.clone(), -flat
    collectives.all_reduce_(highest, "max")
    collectives.all_reduce_(lowest, "max")
    ratios = torch.split(highest / -lowest, [scales[name].numel() for name in names])
    return {name: float(ratio.max()) for name, ratio in zip(names, ratios, strict=True)}

"""The network that a training runs: traced, compiled, under autocast, on all ranks."""

from __future__ import annotations

import logging

import torch
from mmcv import Config
from torch import nn

from dq.counted import counted
from dq.detector.hooks.weight_average import AverageRule, averaged_by, without_ema_hooks
from dq.detector.model.autocast import run_under_autocast
from dq.detector.model.compilation import Network, compilation, compiled
from dq.detector.model.graph import attach, parameters_outside, trace_detector
from dq.detector.refinements.extras import Extras
from dq.detector.refinements.refinery import Refinery
from dq.detector.step.parallel_detector import LoneDetector, ParallelDetector
from dq.detector.training.assignment import Continued, Quantization
from dq.dist.exchange.data_parallel import wrap
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.graph.trace import BoundGraph
from dq.quant.training.weight_average import WeightAverage

log = logging.getLogger("dq.train")


def network_to_train(
    config: Config,
    detector: nn.Module,
    quantization: Quantization | None,
    device: torch.device,
    continued: Continued | None = None,
) -> Extras:
    """Make the detector run the network to train, and return the optional parts of the training.

    Parameters that the network does not use are excluded from training. The EMA hooks in
    ``config.custom_hooks`` are replaced by our own average.

    Args:
        config: Of the training; changed in place.
        detector: On the device.
        quantization: Given for quantization-aware training.
        device: The device of the detector.
        continued: Given for a float detector that is trained further.

    Raises:
        ValueError: A setting is invalid, or needs a graph and the detector cannot be traced.
    """
    _lay_out_(detector, config)
    graph = _float_graph(detector) if quantization is None else quantization.graph
    if graph is not None:
        distill = None if quantization is None else quantization.refinements.distill
        _leave_out_unused(detector, graph, heads=distill is not None and distill.alone)
    config.custom_hooks, rule = without_ema_hooks(config.get("custom_hooks"))
    if quantization is not None:
        refinery = _refinery(detector, quantization, rule)
        run_on(detector, refinery.network, config, device)
        return refinery
    if graph is not None:
        run_on(detector, graph, config, device)
    else:
        _refuse_without_graph(config)
    extras = Extras(detector)
    if continued is not None and continued.ema is not None:
        extras.keep(WeightAverage(detector, continued.ema.momentum))
    elif rule is not None:
        extras.keep(averaged_by(rule, detector))
    return extras


def _lay_out_(detector: nn.Module, config: Config) -> None:
    """Put channels last in the memory of the weights; outputs of the layers get this layout too."""
    wanted = config.get("channels_last", False)
    if not isinstance(wanted, bool):
        raise ValueError(f"channels_last is {wanted!r}; use True or False")
    if wanted:
        detector.to(memory_format=torch.channels_last)


def _float_graph(detector: nn.Module) -> BoundGraph | None:
    try:
        return BoundGraph(detector, trace_detector(detector))
    except ValueError as error:
        log.info("trained without a graph: %s", error)
        return None


def _leave_out_unused(detector: nn.Module, graph: BoundGraph, *, heads: bool) -> None:
    """Exclude parameters that the network does not use from training, and log their names."""
    names = parameters_outside(detector, graph.graph, heads=heads)
    for name in names:
        detector.get_parameter(name).requires_grad_(False)
    if names:
        log.info("%s not used and not trained: %s", counted(len(names), "parameter[s]"), names)


def _refinery(
    detector: nn.Module, quantization: Quantization, rule: AverageRule | None
) -> Refinery:
    return Refinery(
        detector,
        quantization.graph,
        quantization.schedule,
        quantization.refinements,
        rule,
        originals=quantization.originals,
    )


def run_on(detector: nn.Module, network: Network, config: Config, device: torch.device) -> None:
    """Make mmdet's methods call ``network``, compiled and under autocast if the config says so.

    A float detector runs on its graph only for one of these two.
    """
    settings = compilation(config, device)
    if settings is not None:
        network = compiled(network, detector, settings)
    if config.get("fp16"):
        run_under_autocast(detector, network, device)
    elif settings is not None or hasattr(detector, CONTAINER):
        attach(detector, network)


def _refuse_without_graph(config: Config) -> None:
    for setting in ("fp16", "compile"):
        if config.get(setting):
            raise ValueError(f"{setting} needs a detector that can be traced; leave it out")


def on_all_ranks(config: Config, detector: nn.Module, device: torch.device) -> nn.Module:
    """Return the detector in the wrapper that mmcv's runner calls, for one rank or several."""
    model = wrap(
        detector,
        device=device,
        find_unused_parameters=bool(config.get("find_unused_parameters", False)),
        cls=ParallelDetector,
        late=[p for n, p in detector.named_parameters() if n.startswith(f"{CONTAINER}.")],
    )
    return LoneDetector(detector) if model is detector else model

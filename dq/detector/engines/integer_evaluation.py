"""A torch-int file's evaluation beside the fake-quantized detector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmcv import Config
from torch import fx, nn

from dq.detector.data.datasets import dataset_of
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.engines.agreement import Agreement, is_within_gate, measured_on
from dq.detector.engines.exact_torch import run_exactly_
from dq.detector.engines.integer_file import run_integers_
from dq.detector.evaluation.evaluate import detect
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.serialize import num_bytes


def evaluate_integers(
    config: Config,
    detector: nn.Module,
    graph: QuantizedGraph,
    networks: Mapping[str, fx.GraphModule],
    differing: list[str],
) -> Agreement:
    """Evaluate a file of integers on ``data.test`` over all ranks, beside its checkpoint.

    Every rank must call it; all get the same result.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        detector: Of the checkpoint, on the CPU; its methods are changed in place.
        graph: Its own, with frozen ranges.
        networks: As `dq.detector.engines.integer_file.load_networks` returns them.
        differing: Names of the file's tensors that are not what the checkpoint yields.
    """
    dataset = dataset_of(config, "test", test_mode=True)
    workers = evaluation_workers(config, "test")
    cpu = torch.device("cpu")
    run_exactly_(detector, graph)
    expected = detect(detector, dataset, device=cpu, workers=workers)
    run_integers_(detector, networks)
    found = detect(detector, dataset, device=cpu, workers=workers)

    def conclude() -> Agreement:
        assert expected is not None
        assert found is not None
        name, fake, value, metrics, boxes = measured_on(config, dataset, expected, found)
        sizes = [num_bytes(network) for network in networks.values()]
        return Agreement(
            metric=name,
            integer=value,
            fake_quantized=fake,
            metrics=metrics,
            boxes=boxes,
            bytes_integer=sum(own for own, _ in sizes),
            bytes_float=sum(plain for _, plain in sizes),
            cause="" if is_within_gate(fake, value) else _cause(differing),
        )

    return on_main_rank(conclude)


def _cause(differing: list[str]) -> str:
    if not differing:
        return "the file holds what the checkpoint yields, so rounding ties add up"
    named = ", ".join(differing[:3])
    return f"{len(differing)} tensors of the file are not what the checkpoint yields: {named}"

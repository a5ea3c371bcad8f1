"""The stage that evaluates a file of integers for torch beside the fake-quantized detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dq.detector.data.datasets import dataset_of, test_classes
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.engines.exact_torch import run_exactly_
from dq.detector.engines.integer_file import load_networks, read_integer_file, run_integers_
from dq.detector.evaluation.evaluate import detect
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.integer.serialize import num_bytes
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.agreement import (
    Agreement,
    is_within_gate,
    measured_on,
    refuse_missing,
    refuse_other,
    write_agreement,
)
from launcher.stages.conclusion import read_checkpoint
from launcher.stages.rounding_detector import rounding_detector


def evaluated_integer_file(
    plan: Plan, place: Session, path: Path, checkpoint: Path, *, trusted: bool
) -> Agreement:
    """Evaluate a torch-int file on ``data.test`` over all ranks, beside its checkpoint.

    Its weights and scales are the file's. Every rank must call it; all get the same
    result.

    Raises:
        ValueError: The file is damaged, or is not of this checkpoint, config or data set.
    """
    refuse_missing(checkpoint, path)
    file: dict[str, Any] = on_main_rank(lambda: read_integer_file(path))
    content, sha256 = read_checkpoint(checkpoint, trusted=trusted)
    detector, graph, _ = rounding_detector(plan, place, content, checkpoint)
    networks, differing = load_networks(path, file, graph, test_classes(plan.config))
    refuse_other(path, file["meta"].get("checkpoint_sha256"), checkpoint, sha256)
    dataset = dataset_of(plan.config, "test", test_mode=True)
    workers = evaluation_workers(plan.config, "test")
    cpu = torch.device("cpu")
    run_exactly_(detector, graph)
    expected = detect(detector, dataset, device=cpu, workers=workers)
    run_integers_(detector, networks)
    found = detect(detector, dataset, device=cpu, workers=workers)

    def conclude() -> Agreement:
        assert expected is not None
        assert found is not None
        name, fake, value, metrics, boxes = measured_on(plan, dataset, expected, found)
        sizes = [num_bytes(network) for network in networks.values()]
        result = Agreement(
            metric=name,
            integer=value,
            fake_quantized=fake,
            metrics=metrics,
            boxes=boxes,
            bytes_integer=sum(own for own, _ in sizes),
            bytes_float=sum(plain for _, plain in sizes),
            cause="" if is_within_gate(fake, value) else _cause(differing),
        )
        write_agreement(place.experiment / "eval_torch_int", result)
        return result

    return on_main_rank(conclude)


def _cause(differing: list[str]) -> str:
    if not differing:
        return "the file holds what the checkpoint yields, so rounding ties add up"
    named = ", ".join(differing[:3])
    return f"{len(differing)} tensors of the file are not what the checkpoint yields: {named}"

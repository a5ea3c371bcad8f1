"""Evaluate an exported ONNX model in an engine, and compare it with the fake-quantized detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from torch import nn

from dq.detector.data.datasets import dataset_of, evaluation_loader
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.engines.agreement import Agreement, evaluate_both
from dq.detector.engines.onnx_detector import (
    DETECTIONS,
    exported_size,
    open_networks,
    run_in_engine_,
    run_in_torch_,
)
from dq.detector.evaluation.evaluate import detect, score
from dq.detector.export.write import inputs_of_heads
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.latency.float_twin import float_twin
from dq.quant.verify.engine import Engine
from dq.quant.verify.layer_differences import LayerDifference, layer_differences, worst
from dq.quant.verify.onnxruntime_session import load_model, metadata_of

NUM_COMPARED = 4
# A layer is named if a value differs by more than this, in scales and beyond rounding. Float32 sums
# in another order differ by less: a thousandth of a scale at 8 bits, a third at 16 bits.
LARGE_DIFFERENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerResult(Agreement):
    """The evaluation of an exported model in an engine, and of its checkpoint.

    Attributes:
        engine: Name and version of the engine.
        num_integer: Number of layers that the engine computes in integers.
        num_float: Number of layers that it computes in float.
        layers: The layers that differ most on the same input; empty if the gate was passed or all
            layers agree.
        fake_again: If the gate was missed although all layers agree: the metric of the fake-
            quantized detector with float sums in another order. Else None.
    """

    engine: str
    num_integer: int
    num_float: int
    layers: tuple[LayerDifference, ...] = ()
    fake_again: float | None = None


def exported_metadata(model: Path) -> dict[str, str]:
    """Return the metadata that `launcher export` wrote into a model.

    Raises:
        ValueError: The file is missing, damaged, or of another tool.
    """
    found = dict(metadata_of(load_model(model)))
    if not {"config", "checkpoint", "classes"} <= set(found):
        raise ValueError(f"{model} was not written by `launcher export`; export the checkpoint")
    return found


def evaluate_in_engine(
    config: Config,
    detector: nn.Module,
    graph: QuantizedGraph,
    models: Mapping[str, Any],
    engine: Engine,
) -> IntegerResult:
    """Evaluate an exported model and its checkpoint on ``data.test``, over all ranks.

    Every rank must call it; all get the same result.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        detector: The checkpoint's detector, on the CPU; its methods are changed in place.
        graph: The detector's quantized graph, with frozen ranges.
        models: From `dq.detector.engines.onnx_detector.load_models`.
        engine: Runs the models.

    Raises:
        ValueError: The engine cannot run the model.
    """
    # Opened before the checkpoint is evaluated, which may take long.
    networks = open_networks(models, engine, threads=torch.get_num_threads())
    whole = DETECTIONS if DETECTIONS in models else ""
    plain = float_twin(models[whole])

    def conclude(dataset: Any, found: Agreement) -> IntegerResult:
        network = networks[whole]
        layers: tuple[LayerDifference, ...] = ()
        cause = ""
        if not found.passed:
            images = _some_images(dataset, exported_size(network.metadata))
            layers, cause = _explain(images, detector, graph, models, engine)
            if layers and not network.exact:
                cause += "; this CPU has no VNNI, so its sums of 8-bit products may saturate"
        return IntegerResult(
            **{**found.content(), "cause": cause},
            engine=str(engine),
            num_integer=network.num_integer,
            num_float=network.num_float,
            layers=layers,
        )

    result = evaluate_both(
        config,
        detector,
        lambda: run_in_torch_(detector, graph, networks),
        lambda: run_in_engine_(detector, graph, networks),
        (models[whole].ByteSize(), plain.ByteSize()),
        conclude,
    )
    if result.cause and not result.layers:
        run_in_torch_(detector, graph, networks, exactly=False)
        result = replace(result, fake_again=_with_other_sums(config, detector)[result.metric])
    return result


def _with_other_sums(config: Config, detector: nn.Module) -> dict[str, float]:
    """Return the detector's metrics with the sums of other kernels of torch, in another order.

    Sums of float32 then differ in their last digits, which changes values at rounding ties. The
    difference of the metric shows how accurately it can be measured. Every rank must call it.
    """
    dataset = dataset_of(config, "test", test_mode=True)
    workers = evaluation_workers(config, "test")
    with torch.backends.mkldnn.flags(enabled=False):
        found = detect(detector, dataset, device=torch.device("cpu"), workers=workers)

    def measure() -> dict[str, float]:
        assert found is not None
        return score(dataset, found, config.get("evaluation", {}))

    return on_main_rank(measure)


def _explain(
    images: list[torch.Tensor],
    detector: Any,
    graph: QuantizedGraph,
    models: Mapping[str, Any],
    engine: Engine,
) -> tuple[tuple[LayerDifference, ...], str]:
    """Return the layers that differ most on the same input, and the cause as text."""
    inputs: dict[str, list[torch.Tensor]] = {"": images}
    for batch in images:
        for part, given in inputs_of_heads(detector, graph, batch).items():
            inputs.setdefault(part, []).append(given)

    def wrong(*, integers: bool) -> list[LayerDifference]:
        return [
            difference
            for part, batches in inputs.items()
            for difference in layer_differences(
                graph.parts[part] if part else graph,
                models[part],
                batches,
                engine=engine,
                integers=integers,
            )
            if difference.excess > LARGE_DIFFERENCE
        ]

    if found := wrong(integers=False):
        cause = "the exported graph itself differs, not only its integer arithmetic"
        return tuple(worst(found)), cause
    try:
        found = wrong(integers=True)
    except ValueError as error:
        return (), f"the exported graph agrees when computed in float, and layer by layer {error}"
    if found:
        cause = (
            "the exported graph agrees when computed in float; its integer arithmetic differs"
            f" in {engine.title}"
        )
        return tuple(worst(found)), cause
    return (), "each layer agrees when both get the same input, so rounding ties add up"


def _some_images(dataset: Any, size: tuple[int, int]) -> list[torch.Tensor]:
    """Return this rank's first `NUM_COMPARED` test images ``(1, C, *size)``, padded to the size."""
    images: list[torch.Tensor] = []
    for batch in evaluation_loader(dataset, workers=0):
        image = batch["img"][0]
        image = getattr(image, "data", image)
        image = image[0] if isinstance(image, list) else image
        padding = (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2])
        images.append(torch.nn.functional.pad(image, padding))
        if len(images) == NUM_COMPARED:
            break
    return images

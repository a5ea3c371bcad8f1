"""The stage that evaluates an exported model beside the fake-quantized detector."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dq.detector.box_differences import BoxDifferences, box_differences
from dq.detector.checkpoint import load_quantization, recipe_of
from dq.detector.data import dataset_of, evaluation_loader, test_classes
from dq.detector.evaluate import detect, main_metric, score
from dq.detector.export import inputs_of_heads
from dq.detector.graph import quantize_detector
from dq.detector.onnx_detector import (
    DETECTIONS,
    exported_size,
    load_models,
    run_fake_quantized_,
    run_in_onnx_,
)
from dq.dist.one_reader import on_main_rank
from dq.quant.layer_differences import LayerDifference, layer_differences, worst
from dq.quant.onnx_session import OnnxNetwork, float_model, load_model, metadata_of
from dq.quant.phase import Phase, set_phase
from dq.quant.quantized_graph import QuantizedGraph
from dq.tracking.json_file import write_json
from dq.tracking.summary import FILE_NAME
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.conclusion import read_checkpoint
from launcher.stages.float_detector import float_detector

log = logging.getLogger(__name__)

# Of the metric, 0 to 1: a tenth of a percentage point.
GATE = 0.001
NUM_TIMED = 15
NUM_COMPARED = 4
# A layer whose values are off by more scales, beyond rounding, is named for it. Sums of float32 in
# another order stay below: a thousandth at 8 bits, a third at 16.
LARGE_DIFFERENCE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerResult:
    """What the evaluation of an exported model found.

    Attributes:
        metric: Name of the metric.
        integer: Its value for the exported model, 0 to 1.
        fake_quantized: Its value for the fake-quantized detector.
        passed: Whether they are within `GATE` of each other.
        boxes: Differences of the detections, the fake-quantized detector being the first.
        num_integer: Layers that ONNX Runtime computes in integers.
        num_float: Layers that it computes in float.
        ms_integer: Median time of the network for one image, in milliseconds.
        ms_float: That of the same network in float.
        bytes_integer: Size of the model.
        bytes_float: Size of the same model in float.
        layers: Layers that differ most on the same input; empty where the gate was passed, or all
            agree.
        cause: What the comparison of layers says; empty where the gate was passed.
    """

    metric: str
    integer: float
    fake_quantized: float
    passed: bool
    boxes: BoxDifferences
    num_integer: int
    num_float: int
    ms_integer: float
    ms_float: float
    bytes_integer: int
    bytes_float: int
    layers: tuple[LayerDifference, ...] = ()
    cause: str = ""


def exported_metadata(model: Path) -> dict[str, str]:
    """Return what `launcher export` wrote into a model.

    Raises:
        ValueError: The file is missing or damaged, or another tool's.
    """
    found = dict(metadata_of(load_model(model)))
    if not {"config", "checkpoint", "classes"} <= set(found):
        raise ValueError(f"{model} was not written by `launcher export`; export the checkpoint")
    return found


def evaluated_in_onnxruntime(
    plan: Plan, place: Session, model: Path, checkpoint: Path, *, trusted: bool
) -> IntegerResult:
    """Evaluate an exported model on ``data.test`` over all ranks, beside its checkpoint.

    Every rank must call it; all get the same result.

    Raises:
        ValueError: The model is damaged, or is not of this checkpoint, config or data set.
    """
    if not checkpoint.is_file():
        raise ValueError(
            f"checkpoint {checkpoint} does not exist; give the one that {model} was exported from"
            " with --checkpoint"
        )
    content, sha256 = read_checkpoint(checkpoint, trusted=trusted)
    recipe = recipe_of(content)
    if recipe is None:
        raise ValueError(f"{checkpoint} is a float checkpoint, which no model is exported from")
    detector = float_detector(plan, place, content, checkpoint).cpu().eval()
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, str(checkpoint))
    set_phase(graph.quantizers, Phase.FROZEN)
    models = load_models(model, graph, test_classes(plan.config))
    if metadata_of(models[""]).get("checkpoint_sha256") != sha256:
        raise ValueError(f"{model} was not exported from {checkpoint}; export it again")
    dataset = dataset_of(plan.config, "test", test_mode=True)
    workers = plan.config.data.get("test_dataloader", {}).get("workers_per_gpu", 1)
    cpu = torch.device("cpu")
    run_fake_quantized_(detector, graph, models)
    expected = detect(detector, dataset, device=cpu, workers=workers)
    network = run_in_onnx_(detector, graph, models, threads=torch.get_num_threads())
    found = detect(detector, dataset, device=cpu, workers=workers)

    def conclude() -> IntegerResult:
        assert expected is not None
        assert found is not None
        settings = plan.config.get("evaluation", {})
        name, fake = main_metric(score(dataset, expected, settings))
        value = main_metric(score(dataset, found, settings))[1]
        passed = abs(fake - value) <= GATE + 1e-9
        times, sizes = _compare_with_float(models.get(DETECTIONS, models[""]), network)
        layers, cause = ((), "") if passed else _explain(dataset, detector, graph, models)
        result = IntegerResult(
            metric=name,
            integer=value,
            fake_quantized=fake,
            passed=passed,
            boxes=box_differences(expected, found),
            num_integer=network.num_integer,
            num_float=network.num_float,
            ms_integer=times[0],
            ms_float=times[1],
            bytes_integer=sizes[0],
            bytes_float=sizes[1],
            layers=layers,
            cause=cause,
        )
        folder = place.experiment / "eval_onnxruntime"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE_NAME, asdict(result))
        return result

    return on_main_rank(conclude)


def _compare_with_float(
    model: Any, network: OnnxNetwork
) -> tuple[tuple[float, float], tuple[int, int]]:
    """Return median milliseconds of one image, and bytes: in integers, and in float."""
    plain = float_model(model)
    other = OnnxNetwork(plain, threads=torch.get_num_threads())
    images = torch.zeros([1 if isinstance(s, str) else s for s in network.size])
    times: dict[OnnxNetwork, list[float]] = {network: [], other: []}
    for number in range(NUM_TIMED + 2):
        for each in (network, other):
            began = time.perf_counter()
            each.run(images)
            if number > 1:  # The first ones fill caches.
                times[each].append(1000 * (time.perf_counter() - began))
    medians = statistics.median(times[network]), statistics.median(times[other])
    return medians, (model.ByteSize(), plain.ByteSize())


def _explain(
    dataset: Any, detector: Any, graph: QuantizedGraph, models: Mapping[str, Any]
) -> tuple[tuple[LayerDifference, ...], str]:
    """Return the layers that differ most on the same input, and what they say of the cause."""
    images = _some_images(dataset, exported_size(models))
    inputs: dict[str, list[torch.Tensor]] = {"": images}
    for batch in images:
        for part, given in inputs_of_heads(detector, graph, batch).items():
            inputs.setdefault(part, []).append(given)
    found: dict[bool, list[LayerDifference]] = {}
    for integers in (False, True):
        found[integers] = [
            difference
            for part, batches in inputs.items()
            for difference in layer_differences(
                graph.parts[part] if part else graph, models[part], batches, integers=integers
            )
        ]
    for integers, cause in (
        (False, "the exported graph itself differs, not only its integer arithmetic"),
        (True, "the exported graph agrees when computed in float; its integer arithmetic differs"),
    ):
        wrong = [d for d in found[integers] if d.excess > LARGE_DIFFERENCE]
        if wrong:
            return tuple(worst(wrong)), cause
    return (), "each layer agrees when both get the same input, so rounding ties add up"


def _some_images(dataset: Any, size: tuple[int, int]) -> list[torch.Tensor]:
    """Return the first `NUM_COMPARED` test images ``(1, 3, *size)``, padded to the size."""
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

"""A detector whose network, and RoI heads, run in ONNX Runtime inside mmdet's own test path."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmdet.core import bbox2result
from torch import Tensor, nn

from dq.detector.data.class_names import refuse_other_classes
from dq.detector.engines.exact_torch import run_exactly_
from dq.detector.export.decode_boxes import clips
from dq.detector.export.write import part_path
from dq.detector.model.graph import attach
from dq.quant.export.assemble import output_names
from dq.quant.export.onnx_graph import flatten, unflatten
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.verify.onnxruntime_session import OnnxNetwork, ending_at, load_model

# Name, among a detector's models, of the one that returns final detections.
DETECTIONS = "detections"


def load_models(path: Path, graph: QuantizedGraph, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the network's model under ``""`` and each RoI head's under its name.

    Of a model that decodes boxes that is the part before; one that returns final detections is
    there too, as `DETECTIONS`.

    Args:
        path: Of the detector's model.
        graph: Of the detector.
        classes: Of the data set.

    Raises:
        ValueError: A file is missing or damaged, or is of another detector or data set.
    """
    models = {"": load_model(path)}
    for part in graph.parts:
        models[part] = load_model(part_path(path, part))
    metadata = {entry.key: entry.value for entry in models[""].metadata_props}
    refuse_other_classes(path, metadata, classes)
    decode = metadata.get("decode", "none")
    if decode != "none":
        whole = models[""]
        with torch.no_grad():
            result = graph(_example(models))
        models[""] = ending_at(whole, output_names(result))
        if decode == "nms":
            models[DETECTIONS] = whole
    return models


class OnnxGraph:
    """Stands in for a quantized graph: its inputs -> what it returns, by ONNX Runtime.

    Args:
        network: The exported model.
        graph: The graph it was exported from, for the structure of its result.
        examples: Inputs of the model's sizes.

    Raises:
        ValueError: The model is not that graph's.
    """

    def __init__(self, network: OnnxNetwork, graph: Callable[..., Any], *examples: Tensor) -> None:
        self.network = network
        with torch.no_grad():
            result = graph(*examples)
        values, self.structure = flatten(result)
        # A head without a branch returns None for it.
        self.is_there = [value is not None for value in values]
        if output_names(result) != network.names[: sum(self.is_there)]:
            raise ValueError("the model's outputs are not this detector's; export it again")

    def __call__(self, x: Tensor, *others: Tensor) -> Any:
        """Return the network's outputs as the graph returns them."""
        found = iter(self.network.tensors(x, *others))
        values = [next(found) if is_there else None for is_there in self.is_there]
        return unflatten(values, self.structure)


class Padded:
    """Calls a graph with images padded by zeros, right and below, to one size.

    Boxes do not move, so nothing else need know.

    Args:
        graph: Images ``(N, C, *size)`` -> features.
        size: Height and width.
    """

    def __init__(self, graph: Callable[[Tensor], Any], size: tuple[int, int]) -> None:
        self.graph, self.size = graph, size

    def __call__(self, images: Tensor) -> Any:
        """Return the graph's result for the padded images.

        Raises:
            ValueError: An image is larger.
        """
        height, width = images.shape[-2:]
        if height > self.size[0] or width > self.size[1]:
            raise ValueError(
                f"a test image is {height}x{width} and the model was exported for"
                f" {self.size[0]}x{self.size[1]}; export it again with --size HEIGHT WIDTH"
            )
        return self.graph(F.pad(images, (0, self.size[1] - width, 0, self.size[0] - height)))


class OnnxDetections:
    """Stands in for a detector's ``simple_test``: images -> what mmdet returns, all by the model.

    Args:
        network: A model that returns final detections.
        size: Height and width of its images; smaller ones are padded.
        num_classes: Of the detector.
        clipped: Whether boxes end at the image's border, behind which padding lies.
    """

    def __init__(
        self, network: OnnxNetwork, size: tuple[int, int], num_classes: int, *, clipped: bool
    ) -> None:
        self.padded = Padded(network.tensors, size)
        self.num_classes, self.clipped = num_classes, clipped

    def __call__(
        self, img: Tensor, img_metas: Sequence[Mapping[str, Any]], rescale: bool = False
    ) -> list[Any]:
        """Return for each image an array ``(n, 5)`` a class: corners and score."""
        found = []
        for boxes, scores, labels, meta in zip(*self.padded(img), img_metas, strict=True):
            there = labels >= 0
            boxes, scores, labels = boxes[there], scores[there], labels[there]
            if self.clipped:
                height, width = meta["img_shape"][:2]
                boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
            if rescale:
                boxes = boxes / boxes.new_tensor(meta["scale_factor"])
            rows = torch.cat([boxes, scores[:, None]], 1)
            found.append(bbox2result(rows, labels, self.num_classes))
        return found


def exported_size(models: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the images that the models were exported for."""
    metadata = {entry.key: entry.value for entry in models[""].metadata_props}
    height, width = json.loads(metadata["preprocessing"])["size"]
    return int(height), int(width)


def _example(models: Mapping[str, Any]) -> Tensor:
    """Return an image of the size and the channels that the models were exported for."""
    shape = models[""].graph.input[0].type.tensor_type.shape
    return torch.zeros(1, shape.dim[1].dim_value, *exported_size(models))


def run_in_onnx_(
    detector: nn.Module,
    graph: QuantizedGraph,
    models: Mapping[str, Any],
    *,
    threads: int,
    integers: bool = True,
) -> OnnxNetwork:
    """Let the detector take network and RoI heads, or all, from the models; return the network.

    Args:
        detector: On the CPU, in evaluation mode.
        graph: Its fake-quantized graph.
        models: As `load_models` returns them.
        threads: Of ONNX Runtime.
        integers: As `dq.quant.verify.onnxruntime_session.OnnxNetwork` takes it.
    """
    size = exported_size(models)
    network = OnnxNetwork(models[""], threads=threads, integers=integers)
    attach(detector, Padded(OnnxGraph(network, graph, _example(models)), size))
    for part, fake in graph.parts.items():
        session = OnnxNetwork(models[part], threads=threads, integers=integers)
        shapes = [[s if isinstance(s, int) else 2 for s in size] for size in session.sizes]
        detector.get_submodule(part).__dict__["forward"] = OnnxGraph(
            session, fake, *(torch.zeros(shape) for shape in shapes)
        )
    if DETECTIONS in models:
        network = OnnxNetwork(models[DETECTIONS], threads=threads, integers=integers)
        head: Any = detector.bbox_head
        detector.__dict__["simple_test"] = OnnxDetections(
            network, size, head.num_classes, clipped=clips(head)
        )
    return network


def run_in_torch_(detector: nn.Module, graph: QuantizedGraph, models: Mapping[str, Any]) -> None:
    """Let the detector compute its own integers in torch, on images of the models' size."""
    size = exported_size(models)
    run_exactly_(detector, graph, lambda network: Padded(network, size))

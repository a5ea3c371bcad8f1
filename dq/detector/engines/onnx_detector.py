"""Run a detector's network and RoI heads in an engine, within mmdet's own test code."""

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
from dq.detector.instance_methods import replace_method, restore_method
from dq.detector.model.graph import attach, attach_all
from dq.quant.export.assemble import output_names
from dq.quant.export.onnx_graph import flatten, unflatten
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.verify.engine import Engine, Network
from dq.quant.verify.onnxruntime_session import ending_at, load_model, metadata_of

# Name of the model with final detections among a detector's models.
DETECTIONS = "detections"


def load_models(path: Path, graph: QuantizedGraph, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the network's model as ``""`` and the model of each RoI head by its name.

    For a model that decodes boxes, this is the part before decoding. A model that returns final
    detections is included as `DETECTIONS`.

    Args:
        path: The detector's model.
        graph: Graph of the detector.
        classes: Classes of the data set.

    Raises:
        ValueError: A file is missing, damaged, or belongs to another detector or data set.
    """
    models = {"": load_model(path)}
    for part in graph.parts:
        models[part] = load_model(part_path(path, part))
    whole = models[""]
    metadata = metadata_of(whole)
    refuse_other_classes(path, metadata, classes)
    decode = metadata.get("decode", "none")
    if decode != "none":
        channels = whole.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        with torch.no_grad():
            result = graph(torch.zeros(1, channels, *exported_size(metadata)))
        models[""] = ending_at(whole, output_names(result))
        if decode == "nms":
            models[DETECTIONS] = whole
    return models


def open_networks(models: Mapping[str, Any], engine: Engine, *, threads: int) -> dict[str, Network]:
    """Return a detector's models, opened by an engine, by the same names.

    Args:
        models: Result of `load_models`.
        engine: Runs them.
        threads: Number of threads of a call.

    Raises:
        ValueError: The engine cannot run one of them.
    """
    return {name: engine.open(model, threads=threads) for name, model in models.items()}


class OnnxGraph:
    """Replaces a quantized graph by an engine: the same inputs and the same structure of outputs.

    Args:
        network: The exported model.
        graph: The graph that was exported, for the structure of its result.
        examples: Example inputs with the model's sizes.

    Raises:
        ValueError: The model does not belong to the graph.
    """

    def __init__(self, network: Network, graph: Callable[..., Any], *examples: Tensor) -> None:
        self.network = network
        with torch.no_grad():
            try:
                result = graph(*examples)
            except TypeError as error:  # Another number of inputs than this detector's.
                names = ", ".join(network.inputs)
                raise ValueError(
                    f"the model's inputs ({names}) are not this detector's; export it again"
                ) from error
        values, self.structure = flatten(result)
        # A head returns None for a branch that it does not have.
        self.is_there = [value is not None for value in values]
        if output_names(result) != network.names[: sum(self.is_there)]:
            raise ValueError("the model's outputs are not this detector's; export it again")

    def __call__(self, x: Tensor, *others: Tensor) -> Any:
        """Return the network's outputs in the structure of the graph's result."""
        found = iter(self.network.tensors(x, *others))
        values = [next(found) if is_there else None for is_there in self.is_there]
        return unflatten(values, self.structure)


class Padded:
    """Calls a graph with images padded by zeros to one size, at the right and bottom.

    The coordinates of boxes do not change.

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
    """Replaces a detector's ``simple_test`` by a model that returns final detections.

    Args:
        network: The model.
        size: Height and width of its images; smaller images are padded.
        num_classes: Number of classes of the detector.
        clipped: Whether boxes are clipped at the border of the image without its padding.
    """

    def __init__(
        self, network: Network, size: tuple[int, int], num_classes: int, *, clipped: bool
    ) -> None:
        self.padded = Padded(network.tensors, size)
        self.num_classes, self.clipped = num_classes, clipped

    def __call__(
        self, img: Tensor, img_metas: Sequence[Mapping[str, Any]], rescale: bool = False
    ) -> list[Any]:
        """Return for each image an array ``(n, 5)`` per class: corners and score."""
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


def exported_size(metadata: Mapping[str, str]) -> tuple[int, int]:
    """Return the height and width in pixels for which a model was exported."""
    height, width = json.loads(metadata["preprocessing"])["size"]
    return int(height), int(width)


def run_in_engine_(
    detector: nn.Module, graph: QuantizedGraph, networks: Mapping[str, Network]
) -> None:
    """Make the detector run its network and RoI heads, or all of its test code, in an engine.

    Args:
        detector: On the CPU, in evaluation mode.
        graph: Its fake-quantized graph.
        networks: Result of `open_networks`.
    """
    network = networks[""]
    size = exported_size(network.metadata)
    attach(detector, Padded(OnnxGraph(network, graph, *_examples(network, 1)), size))
    for part, fake in graph.parts.items():
        head = OnnxGraph(networks[part], fake, *_examples(networks[part], 2))
        replace_method(detector.get_submodule(part), "forward", head)
    if DETECTIONS in networks:
        bbox_head: Any = detector.bbox_head
        found = OnnxDetections(
            networks[DETECTIONS], size, bbox_head.num_classes, clipped=clips(bbox_head)
        )
        replace_method(detector, "simple_test", found)


def _examples(network: Network, batch: int) -> list[Tensor]:
    """Return zeros for each input of a network; ``batch`` is used for every free dimension."""
    return [
        torch.zeros([s if isinstance(s, int) else batch for s in size]) for size in network.sizes
    ]


def run_in_torch_(
    detector: nn.Module,
    graph: QuantizedGraph,
    networks: Mapping[str, Network],
    *,
    exactly: bool = True,
) -> None:
    """Make the detector run in torch, on images of the networks' size.

    Args:
        detector: On the CPU, in evaluation mode.
        graph: Its fake-quantized graph.
        networks: Result of `open_networks`.
        exactly: Sum in integers. False fake-quantizes in float, as training does.
    """
    restore_method(detector, "simple_test")
    size = exported_size(networks[""].metadata)
    if exactly:
        run_exactly_(detector, graph, lambda network: Padded(network, size))
    else:
        attach_all(detector, {"": Padded(graph, size), **graph.parts})

"""Export a quantized detector's network for integer engines, as ONNX or as integers for torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, fx, nn

from dq.detector.config.config_text import config_text
from dq.detector.data.data_section import steps, test_pipeline
from dq.detector.export.decode_boxes import Boxes, decoder_of
from dq.detector.export.suppress_boxes import Detections, settings_of, write_suppressions_
from dq.detector.model.channels import input_channels
from dq.dist.files.checkpoint import save_checkpoint
from dq.formats import FORMATS
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.bias_overflow import network_for_engines
from dq.quant.integer.qparams import qparams
from dq.quant.integer.serialize import INTEGER, integer_content
from dq.quant.quantizers.restore import watching_inputs
from dq.quant.recipes.recipe import Recipe
from dq.whole_file import drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """How a network is written.

    Attributes:
        kind: A key of `dq.formats.FORMATS`.
        size: Height and width of the images.
        opset: Of ONNX; None for the lowest that has the recipe's integers.
        decode: What is computed after the network: ``none``, ``boxes`` and scores of all priors,
            or final detections, ``nms``. ONNX alone.
    """

    kind: str
    size: tuple[int, int]
    opset: int | None = None
    decode: str = "none"


def export_detector(
    detector: nn.Module,
    graph: QuantizedGraph,
    folder: Path,
    *,
    name: str,
    form: ExportFormat,
    metadata: Mapping[str, str],
) -> list[Path]:
    """Write the network, each RoI head of a two-stage detector, and a ``qparams.json``.

    Call it in one process. Either all files are written, or none.

    Args:
        detector: In evaluation mode.
        graph: Its graph with ranges, FROZEN.
        folder: Created if missing.
        name: Name of the files.
        form: Format of the files.
        metadata: Stored in every file.

    Returns:
        The files, with the network's first.

    Raises:
        ValueError: A part of the network cannot be exported; the message names it.
    """
    kind, opset, decode = form.kind, form.opset, form.decode
    network = network_for_engines(graph)
    heads = {part: network_for_engines(g) for part, g in graph.parts.items()}
    parameters = qparams(network)
    for head in heads.values():
        parameters.update(qparams(head))
    ending = FORMATS[kind].ending if decode == "none" else f".{decode}{FORMATS[kind].ending}"
    paths = [folder / f"{name}{ending}"]
    parameters_path = folder / f"{name}.qparams.json"
    files = {parameters_path: (json.dumps(parameters, indent=1) + "\n").encode()}
    folder.mkdir(parents=True, exist_ok=True)
    if FORMATS[kind].module is None:
        content = {"meta": dict(metadata), INTEGER: integer_content(network)}
        content["parts"] = {part: integer_content(head) for part, head in heads.items()}
        save_checkpoint(paths[0], content, beside=files)
    else:
        example = torch.zeros(1, input_channels(detector), *form.size)
        inputs = all_inputs_of_heads(detector, graph, example)
        decoding = decoding_of(detector, network, example, decode)
        models = {paths[0]: _onnx(network, [example], kind, opset, metadata, decoding)}
        for part, head in heads.items():
            if part not in inputs:
                raise ValueError(f"{part} runs on no boxes and cannot be exported")
            paths.append(part_path(paths[0], part))
            models[paths[-1]] = _onnx(head, inputs[part], kind, opset, metadata)
        write_whole({**models, **files})
    return [*paths, parameters_path]


def _compiled_operator(network: fx.GraphModule) -> str:
    """Return the name of a compiled mmcv operator that the network calls; empty for none."""
    for node in network.graph.nodes:
        if node.op == "call_module":
            for module in network.get_submodule(str(node.target)).modules():
                if type(module).__module__.startswith("mmcv.ops."):
                    return f"{node.target} is a {type(module).__name__}"
    return ""


def part_path(path: Path, part: str) -> Path:
    """Return the file of a RoI head, next to the file of its detector."""
    return path.with_name(f"{path.stem}.{part}.onnx")


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write all files, or change none."""
    with drafts(*files) as lent:
        for draft, content in zip(lent, files.values(), strict=True):
            draft.write_bytes(content)


def decoding_of(
    detector: nn.Module, network: nn.Module, example: Tensor, decode: str
) -> Boxes | Detections | None:
    """Return the module that computes boxes or detections from the network's result, or None.

    Raises:
        ValueError: The detector's boxes cannot be computed in this way.
    """
    if decode == "none":
        return None
    with torch.no_grad():
        size = example.shape[-2], example.shape[-1]
        decoder = decoder_of(detector, network(example), size)
    if decode == "boxes":
        return Boxes(decoder)
    return Detections(decoder, settings_of(detector.bbox_head))


def _onnx(
    network: Any,
    examples: Sequence[Tensor],
    kind: str,
    opset: int | None,
    metadata: Mapping[str, str],
    decoding: Boxes | Detections | None = None,
) -> bytes:
    # ONNX is slow to import, and few commands need it.
    from dq.quant.export.assemble import assembled
    from dq.quant.export.onnx_graph import checked

    try:
        model = assembled(
            network,
            examples,
            kind=kind,
            opset=opset,
            more_outputs=() if decoding is None else decoding.NAMES,
            after=None if decoding is None else _WithDecoding(decoding),
            rewrite_=write_suppressions_,
        )
    except ValueError as error:
        # torch says that it cannot trace a compiled operator, but not which.
        compiled = _compiled_operator(network)
        if not compiled or "data is not allocated" not in str(error):
            raise
        raise ValueError(
            f"{compiled}, an operator that mmcv compiles and ONNX does not have; export"
            " --format torch-int, or replace it in the config"
        ) from error
    if decoding is not None:
        # The network's results stay in the graph by name, so that evaluation finds them.
        del model.graph.outputs[: -len(decoding.NAMES)]
    model.metadata_props.update(metadata)
    content: bytes = checked(model).SerializeToString()
    return content


class _WithDecoding(nn.Module):
    """A network's result, together with boxes or detections computed from it."""

    def __init__(self, decoding: nn.Module) -> None:
        super().__init__()
        self.decoding = decoding

    def forward(self, result: Any) -> tuple[Any, Any]:
        return result, self.decoding(result)


def inputs_of_heads(
    detector: nn.Module, graph: QuantizedGraph, images: Tensor
) -> dict[str, Tensor]:
    """Return an example input of each RoI head with one input, by its name."""
    found = all_inputs_of_heads(detector, graph, images)
    return {part: inputs[0] for part, inputs in found.items() if len(inputs) == 1}


@torch.no_grad()
def all_inputs_of_heads(
    detector: nn.Module, graph: QuantizedGraph, images: Tensor
) -> dict[str, tuple[Tensor, ...]]:
    """Return examples of the one or two inputs of each RoI head, by its name."""
    if not graph.parts:
        return {}
    from dq.detector.model.graph import features_of
    from dq.detector.model.roi_heads import run_roi_heads

    seen: dict[str, tuple[Tensor, ...]] = {}
    names = {detector.get_submodule(part): part for part in graph.parts}

    def record(head: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[names[head]] = tuple(inputs)

    with watching_inputs(dict.fromkeys(names, record)):
        run_roi_heads(detector, features_of(graph(images)), images)
    return seen


def metadata_of(
    config: Config,
    classes: tuple[str, ...],
    form: ExportFormat,
    *,
    sha256: str,
    recipe: Recipe,
    checkpoint: str,
) -> dict[str, str]:
    """Return the metadata that users of the exported model need, as text.

    Args:
        config: Config of the detector.
        classes: In the order of the outputs' channels.
        form: Format of the export.
        sha256: Hash of the checkpoint.
        recipe: Bits and formats of each module.
        checkpoint: Its path, relative to the exported file's folder.
    """
    normalization: Mapping[str, Any] = next(steps(test_pipeline(config), "Normalize"), {})
    preprocessing = {
        "mean": [float(x) for x in normalization.get("mean", (0, 0, 0))],
        "std": [float(x) for x in normalization.get("std", (1, 1, 1))],
        "to_rgb": bool(normalization.get("to_rgb", False)),
        "size": list(form.size),
    }
    return {
        "format": form.kind,
        "decode": form.decode,
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(preprocessing),
        "checkpoint": checkpoint,
        "checkpoint_sha256": sha256,
        "recipe": json.dumps(asdict(recipe)),
        "results": recipe.engine.results.value,
        "config": config_text(config),
    }


def image_size(config: Config, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the images: as given, or from the test pipeline.

    Raises:
        ValueError: The pipeline has no single image size.
    """
    if given is not None:
        return given
    pipeline = test_pipeline(config)
    scale = next((s.get("img_scale") for s in steps(pipeline, "MultiScaleFlipAug")), None)
    padding: Mapping[str, Any] = next(steps(pipeline, "Pad"), {})
    if padding.get("size"):
        return int(padding["size"][0]), int(padding["size"][1])
    if not isinstance(scale, list | tuple) or not all(isinstance(x, int) for x in scale):
        raise ValueError("the test pipeline has no single img_scale; give --size HEIGHT WIDTH")
    width, height = int(scale[0]), int(scale[1])
    keeps = any(step.get("keep_ratio", True) for step in steps(pipeline, "Resize"))
    if keeps and width != height:
        # Either side may be the longer one.
        width = height = max(width, height)
    divisor = int(padding.get("size_divisor") or 1)
    height, width = (_rounded_up(side, divisor) for side in (height, width))
    own: Mapping[str, Any] = next(steps(pipeline, "RandomCenterCropPad"), {})
    if own.get("test_mode"):
        mode, value = own.get("test_pad_mode", ("logical_or", 127))
        added = int(own.get("test_pad_add_pix", 0))
        # As this step pads a test image (CornerNet, CenterNet).
        if mode == "logical_or":
            return (height | value) + added, (width | value) + added
        height, width = (_rounded_up(side, value) for side in (height, width))
    return height, width


def _rounded_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor

"""The files of one net: float, quantized by us, by ONNX Runtime's quantizer, by NNCF."""

from __future__ import annotations

import copy
import logging
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import nn

from benchmarks.engines.nets import build, images_of
from dq.detector.calibration.calibrate import calibrate
from dq.detector.export.write import ExportFormat, export_detector
from dq.detector.model.graph import quantize_detector
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule

FLOAT, OURS, ORT, NNCF = "float", "ours", "onnxruntime", "nncf"
INPUT = "images"
_NNCF_SCRIPT = Path(__file__).with_name("nncf_files.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A net's folder.

    Attributes:
        folder: Files in it are used again.
        target: Our preset.
        nncf_python: Python of an environment with NNCF; None for none.
    """

    folder: Path
    target: str
    nncf_python: Path | None

    def file(self, name: str) -> Path:
        """Return where a file lies."""
        return self.folder / (f"ours-{self.target}.onnx" if name == OURS else f"{name}.onnx")

    @property
    def nncf_openvino(self) -> Path:
        """What NNCF makes of the float model in OpenVINO's own format."""
        return self.folder / "nncf-openvino.xml"


def prepare(config: Path, size: tuple[int, int], place: Place) -> dict[str, Path]:
    """Write the files that are missing and return all that there are, by their maker."""
    place.folder.mkdir(parents=True, exist_ok=True)
    images = place.folder / "images.npy"
    if not (place.file(FLOAT).is_file() and place.file(OURS).is_file() and images.is_file()):
        batch = images_of(size)
        np.save(images, batch.numpy())
        detector = build(config, batch)
        if not place.file(FLOAT).is_file():
            _write_float(copy.deepcopy(detector), size, place.file(FLOAT))
        _write_ours(detector, preset(place.target), batch, place.file(OURS))
    if not place.file(ORT).is_file():
        _write_onnxruntime(place.file(FLOAT), images, place.file(ORT))
    if place.nncf_python is not None and not place.nncf_openvino.is_file():
        command = [place.nncf_python, _NNCF_SCRIPT, place.file(FLOAT), images, place.file(NNCF)]
        subprocess.run([*map(str, command), str(place.nncf_openvino)], check=True)
    return {
        name: place.file(name) for name in (FLOAT, OURS, ORT, NNCF) if place.file(name).is_file()
    }


def _write_ours(detector: nn.Module, recipe: Recipe, images: torch.Tensor, path: Path) -> None:
    graph = quantize_detector(detector, recipe)
    if graph.quantizers:
        calibrate(detector, graph, images.split(1), torch.device("cpu"))
        set_phase(graph.quantizers, Phase.FROZEN)
    form = ExportFormat(kind="onnx-qdq", size=(images.shape[2], images.shape[3]))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = export_detector(
            detector, graph, Path(folder), name="net", form=form, metadata={"recipe": ""}
        )
        written[0].replace(path)


def _write_float(detector: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Export the detector without quantizers, its norms folded into its convolutions."""
    recipe = replace(preset("int8"), rules=(Rule(quantize=False),))
    plain = path.with_name("unfolded.onnx")
    _write_ours(detector, recipe, images_of(size), plain)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    plain.unlink()


class _Images(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self.batches: Iterator[Mapping[str, np.ndarray]] = iter(
            [{INPUT: image[None]} for image in images]
        )

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self.batches, None)


def _write_onnxruntime(source: Path, images: Path, path: Path) -> None:
    """Quantize with ONNX Runtime's own tool: QDQ, per channel, min-max, symmetric weights."""
    logging.getLogger().setLevel(logging.ERROR)
    quantize_static(
        onnx.load(source),
        path,
        _Images(np.load(images)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"WeightSymmetric": True},
    )

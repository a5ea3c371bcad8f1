"""The files of one net: float, quantized by us, by ONNX Runtime's quantizer, by NNCF."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
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
    """The folder of a net; existing files in it are reused.

    Attributes:
        folder: Created if missing.
        targets: Our preset for each engine.
        nncf_python: Python of an environment with NNCF, or None.
    """

    folder: Path
    targets: Mapping[str, str]
    nncf_python: Path | None

    def file(self, maker: str, engine: str = "onnxruntime") -> Path:
        """Return the file of a maker for an engine."""
        if maker == OURS:
            return self.folder / f"ours-{self.targets[engine]}.onnx"
        if (maker, engine) == (NNCF, "openvino"):  # NNCF writes OpenVINO's own format.
            return self.folder / "nncf-openvino.xml"
        return self.folder / f"{maker}.onnx"

    @property
    def makers(self) -> list[str]:
        """The makers that have files for every engine."""
        return [
            maker
            for maker in (FLOAT, OURS, ORT, NNCF)
            if all(self.file(maker, engine).is_file() for engine in self.targets)
        ]


def prepare(config: Path, size: tuple[int, int], place: Place) -> None:
    """Write the missing files. If another tool fails, its file is left out, and it is said."""
    place.folder.mkdir(parents=True, exist_ok=True)
    images, plain = place.folder / "images.npy", place.file(FLOAT)
    ours = {place.file(OURS, engine): target for engine, target in place.targets.items()}
    missing = {path: target for path, target in ours.items() if not path.is_file()}
    if missing or not (plain.is_file() and images.is_file()):
        batch = images_of(size)
        np.save(images, batch.numpy())
        detector = build(config, batch)
        if not plain.is_file():
            _write_float(copy.deepcopy(detector), size, plain)
        for path, target in missing.items():
            _write_ours(copy.deepcopy(detector), preset(target), batch, path)
    if not place.file(ORT).is_file():
        try:
            _write_onnxruntime(plain, images, place.file(ORT))
        except Exception as error:  # Whatever the tool meets in this net.
            _say_failed("ONNX Runtime's quantizer", place, error)
    results = place.file(NNCF), place.file(NNCF, "openvino")
    if place.nncf_python is not None and not all(path.is_file() for path in results):
        words = [place.nncf_python, _NNCF_SCRIPT, plain, images, *results]
        try:
            subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            _say_failed("NNCF", place, error)


def _say_failed(tool: str, place: Place, error: Exception) -> None:
    print(f"{tool} fails on {place.folder.name}: {error}", file=sys.stderr)


def _write_ours(detector: nn.Module, recipe: Recipe, images: torch.Tensor, path: Path) -> None:
    graph = quantize_detector(detector, recipe)
    if graph.quantizers:
        calibrate(detector, graph, images.split(1), torch.device("cpu"))
        set_phase(graph.quantizers, Phase.FROZEN)
    form = ExportFormat(kind="onnx-qdq", size=(images.shape[2], images.shape[3]))
    metadata = {"recipe": json.dumps(asdict(recipe))}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = export_detector(
            detector,
            graph,
            Path(folder),
            name="net",
            form=form,
            metadata=metadata,
        )
        written[0].replace(path)


def _write_float(detector: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Export the detector without quantizers, with norms folded into convolutions."""
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


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Quieten a tool that logs on the root logger; the level is restored."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _write_onnxruntime(source: Path, images: Path, path: Path) -> None:
    """Quantize with ONNX Runtime's own tool: QDQ, per channel, min-max, symmetric weights."""
    draft = path.with_suffix(".draft")
    with _only_errors_logged():
        quantize_static(
            onnx.load(source),
            draft,
            _Images(np.load(images)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True},
        )
    draft.replace(path)

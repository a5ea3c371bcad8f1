"""The files of one net: float, quantized by us, by ONNX Runtime's quantizer, by NNCF.

Ours are with and without zero points.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.engines.nets import build, images_of
from benchmarks.quantizers import with_onnxruntime
from dq.detector.calibration.calibrate import calibrate
from dq.detector.export.write import ExportFormat, export_detector
from dq.detector.model.graph import quantize_detector
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule
from dq.whole_file import drafts

FLOAT, OURS, ORT, NNCF = "float", "ours", "onnxruntime", "nncf"
# Ours without zero points, for engines that these slow down.
PLAIN = "plain"
_NNCF_SCRIPT = Path(__file__).parents[1] / "quantizers" / "with_nncf.py"


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
        if maker == PLAIN:
            return self.folder / f"ours-{self.targets[engine]}-no-zero-points.onnx"
        if (maker, engine) == (NNCF, "openvino"):  # NNCF writes OpenVINO's own format.
            return self.folder / "nncf-openvino.xml"
        return self.folder / f"{maker}.onnx"

    @property
    def makers(self) -> list[str]:
        """The makers that have files for every engine."""
        return [
            maker
            for maker in (FLOAT, OURS, PLAIN, ORT, NNCF)
            if all(self.file(maker, engine).is_file() for engine in self.targets)
        ]


def prepare(config: Path, size: tuple[int, int], place: Place) -> None:
    """Write the missing files. If another tool fails, its file is left out, and a line says so."""
    place.folder.mkdir(parents=True, exist_ok=True)
    images, plain = place.folder / "images.npy", place.file(FLOAT)
    ours = {
        place.file(maker, engine): replace(preset(target), **settings)
        for engine, target in place.targets.items()
        for maker, settings in ((OURS, {}), (PLAIN, {"zero_points": False}))
    }
    missing = {path: recipe for path, recipe in ours.items() if not path.is_file()}
    if missing or not (plain.is_file() and images.is_file()):
        batch = images_of(size)
        with drafts(images) as (draft,), draft.open("wb") as file:
            np.save(file, batch.numpy())
        detector = build(config, batch)
        if not plain.is_file():
            write_float(copy.deepcopy(detector), size, plain)
        for path, recipe in missing.items():
            _write_ours(copy.deepcopy(detector), recipe, batch, path)
    if not place.file(ORT).is_file():
        try:
            with_onnxruntime.quantize(plain, images, place.file(ORT))
        except Exception as error:  # Whatever the tool meets in this net.
            _say_failed("ONNX Runtime's quantizer", place, error)
    results = place.file(NNCF), place.file(NNCF, "openvino")
    for path in results:
        if place.nncf_python is None or path.is_file():
            continue
        words = [place.nncf_python, _NNCF_SCRIPT, plain, images, path, "mixed"]
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


def float_recipe() -> Recipe:
    """Return the recipe of a graph without quantizers."""
    return replace(preset("int8"), rules=(Rule(quantize=False),))


def write_float(detector: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Export the detector without quantizers, with norms folded into convolutions."""
    recipe = float_recipe()
    plain = path.with_name("unfolded.onnx")
    _write_ours(detector, recipe, images_of(size), plain)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with drafts(path) as (draft,):
        options.optimized_model_filepath = str(draft)
        onnxruntime.InferenceSession(str(plain), options, providers=["CPUExecutionProvider"])
    plain.unlink()

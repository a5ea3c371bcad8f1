"""A disk that fills at any moment of an export leaves the files from before, and no other."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.export.write import ExportFormat, export_detector
from dq.detector.model.graph import quantize_detector
from dq.formats import FORMATS
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset

SIZE = (16, 16)


class Small(nn.Module):
    """A detector of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def extract_feat(self, img: Tensor) -> Any:
        return self.last(self.first(img).relu())


def frozen(detector: nn.Module, kind: str) -> QuantizedGraph:
    graph = quantize_detector(detector, preset("tidl" if "tidl" in kind else "int8"))
    calibrate(detector, graph, [torch.randn(2, 3, *SIZE)], torch.device("cpu"))
    set_phase(graph.quantizers, Phase.FROZEN)
    return graph


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Disk:
    """A disk that takes some writes more, and then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.space, self.flushed = 0, set[int]()
        write_bytes, fsync = Path.write_bytes, os.fsync

        def write(path: Path, data: bytes) -> int:
            self.take()
            return write_bytes(path, data)

        def flush(file: int) -> None:
            # What is on the disk already needs no space.
            if os.fstat(file).st_ino not in self.flushed:
                self.take()
                self.flushed.add(os.fstat(file).st_ino)
            fsync(file)

        monkeypatch.setattr(Path, "write_bytes", write)
        monkeypatch.setattr(os, "fsync", flush)

    def fill(self, space: int) -> None:
        self.space = space
        self.flushed.clear()

    def take(self) -> None:
        if self.space == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.space -= 1


# Exports of ONNX take seconds each.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k.startswith("onnx") else ()) for k in FORMATS],
)
@pytest.mark.parametrize("exists", [True, False])
def test_all_files_are_written_or_none(
    kind: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Small().eval()
    graph = frozen(detector, kind)
    form = ExportFormat(kind=kind, size=SIZE)

    def export(metadata: str) -> list[Path]:
        return export_detector(
            detector, graph, tmp_path, name="net", form=form, metadata={"note": metadata}
        )

    if exists:
        export("old")
    before = content(tmp_path)
    disk = Disk(monkeypatch)
    for space in count():
        disk.fill(space)
        error = None
        try:
            files = export("new")
        except (OSError, RuntimeError) as caught:
            error = caught
        if error is None:
            break
        assert "No space left" in str(error)
        assert content(tmp_path) == before
    assert space >= len(files)
    assert {path.name for path in files} <= set(content(tmp_path))

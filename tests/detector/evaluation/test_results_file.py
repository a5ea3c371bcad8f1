"""Drawings stay in their folder, whatever the annotations call the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.evaluation.results_file import Painter


class Draws(nn.Module):
    """A stand-in for a detector that writes a text where mmdet would write a drawing."""

    def show_result(self, image: Any, result: Any, *, show: bool, out_file: str) -> None:
        path = Path(out_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("drawing")


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "../photos/a.jpg", "{}/a.jpg"])
def test_a_drawing_never_replaces_its_image(name: str, tmp_path: Path) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "drawn"
    photos.mkdir()
    folder.mkdir()
    (photos / "a.jpg").write_text("photograph")
    meta = {
        "img_norm_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3, "to_rgb": False},
        "img_shape": (8, 8, 3),
        "ori_shape": (8, 8, 3),
        "ori_filename": name.format(photos),
    }
    painter = Painter(Draws(), None, folder, 0.3)
    painter({"img": [torch.zeros(1, 3, 8, 8)], "img_metas": [[meta]]}, [[]])
    assert not painter.fails
    assert (photos / "a.jpg").read_text() == "photograph"
    assert [path.read_text() for path in folder.rglob("*.jpg")] == ["drawing"]

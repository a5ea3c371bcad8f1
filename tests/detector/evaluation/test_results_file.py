"""Drawings stay in their folder, whatever the annotations call the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.evaluation.results_file import Painter, format_results


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


class Images:
    """A part of a data set: images of one folder."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.img_prefix = str(folder)
        self.data_infos = [{"filename": name} for name in names]

    def __len__(self) -> int:
        return len(self.data_infos)

    def format_results(self, results: list[Any], jsonfile_prefix: str) -> None:
        Path(f"{jsonfile_prefix}.json").write_text(str(len(results)))


class Joined:
    """Several parts that are evaluated together."""

    def __init__(self, *parts: Images) -> None:
        self.datasets = parts


def drawn(painter: Painter, part: Images) -> None:
    for info in part.data_infos:
        meta = {
            "img_norm_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3, "to_rgb": False},
            "img_shape": (8, 8, 3),
            "ori_shape": (8, 8, 3),
            "ori_filename": info["filename"],
            "filename": f"{part.img_prefix}/{info['filename']}",
        }
        painter({"img": [torch.zeros(1, 3, 8, 8)], "img_metas": [[meta]]}, [[]])


def test_images_of_one_name_in_two_folders_have_a_drawing_each(tmp_path: Path) -> None:
    names = ["a.jpg", "sub/b.jpg", "../c.jpg", f"{tmp_path}/c.jpg"]
    first, second = Images(tmp_path / "first", names[:2]), Images(tmp_path / "second", names)
    # Each rank draws its own images, and none may take the name of another's.
    for part in (second, first):
        drawn(Painter(Draws(), Joined(first, second), tmp_path / "drawn", 0.3), part)
    found = [path for path in (tmp_path / "drawn").rglob("*") if path.is_file()]
    assert len(found) == 6
    assert {"a.jpg", "a_2.jpg", "c.jpg"} <= {path.name for path in found}


@pytest.mark.parametrize("prefix", [False, True])
def test_parts_that_are_evaluated_together_have_files_of_their_own(
    tmp_path: Path, prefix: bool
) -> None:
    dataset = Joined(Images(tmp_path, ["a.jpg"]), Images(tmp_path, ["a.jpg", "b.jpg"]))
    settings = {"jsonfile_prefix": str(tmp_path / "out/mine")} if prefix else {}
    files = format_results(dataset, [[], [], []], tmp_path / "out", settings)
    name = "mine" if prefix else "results"
    assert {path.name: path.read_text() for path in files} == {
        f"{name}_0.json": "1",
        f"{name}_1.json": "2",
    }

"""Drawings stay in their folder; files of a format are those of this evaluation, where asked."""

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


class Writes:
    """A data set whose format is files beside the prefix, below it and in another folder."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def format_results(self, results: list[Any], txtfile_prefix: str | None = None) -> None:
        assert txtfile_prefix is not None
        names = (f"{txtfile_prefix}.json", f"{txtfile_prefix}/a.txt")
        for name in (*names, f"{Path(txtfile_prefix).parent}/panoptic/b.png"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(str(results))


def all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", [[], ["old.json", "results.json", "panoptic/b.png"]])
@pytest.mark.parametrize("prefix", [None, "results", "mine/run", "formatted/x"])
def test_the_files_of_a_format_are_those_that_were_written(
    prefix: str | None, before: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("formatted", "mine", "."):
        for name in before:
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("old")
    earlier = all_files(tmp_path)
    settings = {} if prefix is None else {"txtfile_prefix": prefix}
    found = format_results(Writes(2), [1, 2], tmp_path / "formatted", settings)
    asked = prefix or "formatted/results"
    wanted = {f"{asked}.json", str(Path(asked, "a.txt"))}
    wanted.add(str(Path(f"{asked}x").parent / "panoptic/b.png"))
    assert {str(Path(tmp_path, path).relative_to(tmp_path)) for path in found} == wanted
    assert all_files(tmp_path) == earlier | wanted
    assert {Path(path).read_text() for path in found} == {"[1, 2]"}


@pytest.mark.parametrize("prefix", [None, "mine/run"])
def test_parts_of_a_concatenation_keep_their_files(
    prefix: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "dq.detector.evaluation.results_file.leaves", lambda _: [Writes(1), Writes(2)]
    )
    settings = {} if prefix is None else {"txtfile_prefix": prefix}
    format_results(None, [1, 2, 3], tmp_path / "formatted", settings)
    asked = prefix or "formatted/results"
    assert Path(f"{asked}_0.json").read_text() == "[1]"
    assert Path(f"{asked}_1.json").read_text() == "[2, 3]"


@pytest.mark.parametrize("prefix", [3, True, ["a"]])
def test_a_prefix_that_is_no_text_is_refused(prefix: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"txtfile_prefix is .*; give DIR/NAME"):
        format_results(Writes(1), [1], tmp_path, {"txtfile_prefix": prefix})

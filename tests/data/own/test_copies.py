"""Photographs with the same bytes under two names: never on both sides of an evaluation."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dq.data.formats.labelled import Box, Findings, Labelled, Photo
from dq.data.formats.registry import read_folder
from dq.data.own.checked import checked
from dq.data.own.copies import identical, without_copies
from dq.data.own.splits import share_out, split
from tests.data.folders import LAYOUTS

BOX = Box(name="a", corners=(0.0, 0.0, 5.0, 5.0))
SPLITS = (None, "train", "trainval", "val", "test")


def photo(folder: Path, name: str, content: bytes, split: str | None = None) -> Photo:
    (folder / name).write_bytes(content)
    return Photo(file=folder / name, boxes=(BOX,), size=(9, 9), split=split)


def labelled(folder: Path, photos: list[Photo]) -> Labelled:
    findings = Findings()
    return Labelled(
        format="voc", folder=folder, photos=tuple(photos), classes=("a",), findings=findings
    )


@pytest.mark.parametrize(("one", "other"), itertools.product(SPLITS, SPLITS))
def test_what_is_evaluated_is_not_trained_on(
    tmp_path: Path, one: str | None, other: str | None
) -> None:
    photos = [photo(tmp_path, f"{s}{n}.jpg", b"%d" % n, s) for n, s in enumerate(SPLITS)]
    photos += [photo(tmp_path, "y.jpg", b"same", one), photo(tmp_path, "z.jpg", b"same", other)]
    given = labelled(tmp_path, photos)
    found = without_copies(given)
    shares = share_out(found).photos
    sides = [name for name, some in shares.items() for p in some if p.file.name in "y.jpg z.jpg"]
    assert len(set(sides)) == 1
    evaluated = {"val", "test"} & {one, other}
    assert sides[0] == ("test" if "test" in evaluated else "val" if evaluated else "train")
    crosses = one != other and evaluated
    assert len(sides) == (1 if crosses else 2)
    (line,) = given.findings.lines()
    how = "left out; delete it" if crosses else "kept in one split; delete it"
    assert line.startswith("1 image ")
    assert f"{how} (" in line
    assert {"y.jpg", "z.jpg"} == set(line[line.index("(") + 1 : -1].split(" = "))


@pytest.mark.parametrize("layout", [name for name, row in LAYOUTS.items() if row[2]])
def test_every_format_notices_them(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout][0](tmp_path)
    before = checked(read_folder(tmp_path))
    assert without_copies(before).photos == before.photos
    assert before.findings.lines() == []
    sides = {p.split: p.file for p in before.photos}
    sides["train"].write_bytes(sides["val"].read_bytes())
    after = without_copies(checked(read_folder(tmp_path)))
    assert len(after.photos) == len(before.photos) - 1
    assert sides["train"] not in {p.file for p in after.photos}
    assert after.findings.lines()[-1].startswith("1 image of train with the same bytes as one of")


def test_a_split_that_is_made_keeps_them_on_one_side(tmp_path: Path) -> None:
    """Also where a copy is one of Roboflow's changed copies: those of both stay together."""
    photos = [photo(tmp_path, f"{n}.jpg", b"%d" % (n // 2)) for n in range(40)]
    for n in range(10):
        photos.append(photo(tmp_path, f"{n}_jpg.rf.a.jpg", b"%d" % n))  # as 2n.jpg
        photos.append(photo(tmp_path, f"{n}_jpg.rf.b.jpg", b"other %d" % n))
    found = without_copies(labelled(tmp_path, photos))
    train, val = split(found.photos, tmp_path)
    assert len(train) + len(val) == len(photos)
    for left, right in itertools.product(train, val):
        assert left.file.read_bytes() != right.file.read_bytes()
        assert left.file.name.split(".rf.")[0] != right.file.name.split(".rf.")[0]
    moved = tmp_path / "moved"
    moved.mkdir()
    again = [photo(moved, p.file.name, p.file.read_bytes()) for p in reversed(photos)]
    other = split(without_copies(labelled(moved, again)).photos, moved)
    assert [[p.file.name for p in some] for some in other] == [
        [p.file.name for p in some] for some in (train, val)
    ]


def test_a_split_without_a_box_takes_nothing_away(tmp_path: Path) -> None:
    photos = [photo(tmp_path, f"{n}.jpg", b"%d" % n, "train") for n in range(5)]
    empty = photo(tmp_path, "x.jpg", b"1", "test")
    photos.append(Photo(file=empty.file, boxes=(), size=(9, 9), split="test"))
    shares = share_out(without_copies(labelled(tmp_path, photos)))
    assert sum(len(some) for some in shares.photos.values()) == 5


def test_files_of_different_sizes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [photo(tmp_path, f"{n}.jpg", b"x" * n) for n in range(1, 9)]
    same = [photo(tmp_path, f"same {n}.jpg", b"yy") for n in range(2)]
    opened = []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a: opened.append(p.name) or plain(p, *a))
    assert identical([*photos, *same]) == [same]
    assert sorted(opened) == ["2.jpg", "same 0.jpg", "same 1.jpg"]

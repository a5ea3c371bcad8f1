"""Splits: as the folder has them, else the same on every machine, with every class in both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dq.data.formats.labelled import Box, Findings, Labelled, Photo
from dq.data.own.splits import VAL_SHARE, share_out, split

BOX = (0.0, 0.0, 5.0, 5.0)


def photo(name: str, *classes: str, split: str | None = None) -> Photo:
    boxes = tuple(Box(name=c, corners=BOX) for c in classes)
    return Photo(file=Path("/data", name), boxes=boxes, size=(9, 9), split=split)


def labelled(photos: list[Photo]) -> Labelled:
    return Labelled(
        format="voc",
        folder=Path("/data"),
        photos=tuple(photos),
        classes=("a",),
        findings=Findings(),
    )


def names(photos: list[Photo]) -> list[str]:
    return [p.file.name for p in photos]


def many() -> list[Photo]:
    photos = [photo(f"{n}.jpg", "common", *(["often"] if n % 3 else [])) for n in range(100)]
    photos[17] = photo("17.jpg", "rare", "common")
    photos[18] = photo("18.jpg", "rare")
    photos[19] = photo("19.jpg", "single")
    photos[20] = photo("20.jpg")
    return photos


def test_every_class_is_in_both_where_possible() -> None:
    train, val = split(many(), Path("/data"))
    assert sorted(names(train) + names(val)) == sorted(names(many()))
    assert len(val) == pytest.approx(VAL_SHARE * 100, abs=2)
    classes = [{b.name for p in some for b in p.boxes} for some in (train, val)]
    assert classes[0] == {"common", "often", "rare", "single"}
    assert classes[1] == {"common", "often", "rare"}


def test_neither_order_nor_place_matters() -> None:
    _, val = split(many(), Path("/data"))
    shuffled = many()
    random.Random(1).shuffle(shuffled)
    assert names(split(shuffled, Path("/data"))[1]) == names(val)
    moved = [Photo(file=Path("/else", p.file.name), boxes=p.boxes) for p in many()]
    assert names(split(moved, Path("/else"))[1]) == names(val)
    assert names(val) != names(split([*many()[:-1], photo("new.jpg", "a")], Path("/data"))[0])


def test_copies_of_a_photo_stay_together() -> None:
    photos = [photo(f"p{n}_jpg.rf.{copy}.jpg", "a") for n in range(20) for copy in "abc"]
    train, val = split(photos, Path("/data"))
    origins = [{p.file.name.split(".rf.")[0] for p in some} for some in (train, val)]
    assert origins[0] & origins[1] == set()
    assert len(val) == 12


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_few_photos_are_shared_out(number: int) -> None:
    train, val = split([photo(f"{n}.jpg", str(n)) for n in range(number)], Path("/data"))
    assert len(val) == 1
    assert len(train) == number - 1


GIVEN = {
    ("train", "val", "test"): ({"train": 3, "val": 3, "test": 3}, "test", "as in the folder"),
    ("train", "val"): ({"train": 3, "val": 3}, "val", "as in the folder"),
    ("train", "test"): ({"train": 3, "val": 3}, "val", "it has no val"),
    ("train", "val", None): ({"train": 6, "val": 3}, "val", "as in the folder"),
    ("val", None): ({"train": 3, "val": 3}, "val", "as in the folder"),
    ("trainval", "test"): ({"train": 2, "val": 1, "test": 3}, "test", "made here"),
    ("train",): ({"train": 2, "val": 1}, "val", "made here"),
    ("trainval",): ({"train": 2, "val": 1}, "val", "made here"),
    ("test",): ({"train": 2, "val": 1}, "val", "made here"),
    ("val",): ({"train": 2, "val": 1}, "val", "made here"),
    (None,): ({"train": 2, "val": 1}, "val", "made here"),
}


@pytest.mark.parametrize("given", GIVEN)
def test_the_splits_of_the_folder_are_kept_and_completed(given: tuple[str | None, ...]) -> None:
    counts, tested, said = GIVEN[given]
    photos = [photo(f"{s}{n}.jpg", "a", split=s) for s in given for n in range(3)]
    found = share_out(labelled(photos))
    assert {name: len(some) for name, some in found.photos.items()} == counts
    assert found.tested == tested
    assert said in found.said
    assert all(p.split == name for name, some in found.photos.items() for p in some)


def test_one_photo_is_too_few() -> None:
    for photos in ([photo("a.jpg", "a")], [photo("a.jpg", "a"), photo("b.jpg")]):
        with pytest.raises(ValueError, match="each needs some with boxes; label more images"):
            share_out(labelled(photos))

"""Share photographs out into training, validation and test, the same way every time."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dq.counted import counted
from dq.data.formats.labelled import Labelled, Photo, has_boxes

# The share of photographs to validate on, where the folder does not say.
VAL_SHARE = 0.2
# Roboflow writes several changed copies of a photo; between name and digest it writes this.
_COPIES = ".rf."


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The photographs of each split.

    Attributes:
        photos: By ``train``, ``val`` and ``test``; a folder without a test split has none.
        said: One line about where they come from.
    """

    photos: Mapping[str, tuple[Photo, ...]]
    said: str

    @property
    def tested(self) -> str:
        """Return the split to test on: ``test``, or ``val`` if there is none."""
        return "test" if self.photos.get("test") else "val"


def share_out(labelled: Labelled) -> Splits:
    """Return the splits that the folder has, completed where one is missing.

    Raises:
        ValueError: There are too few photographs with boxes to train and to validate.
    """
    given: dict[str | None, list[Photo]] = defaultdict(list)
    for photo in labelled.photos:
        given[photo.split].append(photo)
    # Images that no split names, and those that are listed for training and validation together.
    loose = [*given.pop("trainval", []), *given.pop(None, [])]
    train, val, test = (given.get(name, []) for name in ("train", "val", "test"))
    pool, said = [*train, *loose], "as in the folder"
    # mmdet cannot evaluate on images without objects alone.
    without = [n for n, some in (("val", val), ("test", test)) if some and not has_boxes(some)]
    val, test = (some if has_boxes(some) else [] for some in (val, test))
    if pool and val:
        train = pool
    elif train and test:
        train, val, test = pool, test, []
        said = "as in the folder; it has no val, so its test is used for both"
    else:
        if not pool:  # Only a val, or only a test.
            pool, test = [*val, *test], []
        train, val = split(pool, labelled.folder)
        said = "made here by hashes of the names; every class is in both where possible"
    if without:
        said += f"; {' and '.join(without)} without a box left out"
    if not has_boxes(train) or not has_boxes(val):
        raise ValueError(
            f"{labelled.folder} has {counted(len(train), 'image[s]')} to train on and {len(val)} to"
            " validate on, and each needs some with boxes; label more images"
        )
    parts = {"train": train, "val": val, "test": test}
    named = {n: tuple(replace(p, split=n) for p in some) for n, some in parts.items() if some}
    return Splits(photos=named, said=said)


def split(photos: Sequence[Photo], root: Path) -> tuple[list[Photo], list[Photo]]:
    """Return photographs to train on and to validate on; each class is in both where possible.

    Copies of one photograph stay together, those with the same bytes too. The order of the
    photographs does not matter, nor does the place of their folder.

    Args:
        photos: All of them.
        root: Their folder.
    """
    groups: dict[str, list[Photo]] = defaultdict(list)
    heads = _heads(photos, root)
    for photo in sorted(photos, key=lambda p: p.file):
        groups[heads[_origin(photo.file, root)]].append(photo)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    classes = {n: {box.name for photo in groups[n] for box in photo.boxes} for n in order}
    left = Counter(name for n in order for name in classes[n])
    wanted = {name: max(1, round(VAL_SHARE * count)) for name, count in left.items()}
    chosen: list[str] = []

    def choose(candidates: Sequence[str], number: int) -> None:
        """Move groups to validation unless a class would have no other group left."""
        for name in candidates:
            if number <= 0:
                return
            if name in chosen or any(left[c] == 1 for c in classes[name]):
                continue
            chosen.append(name)
            left.subtract(classes[name])
            number -= 1

    for label in sorted(wanted, key=lambda c: (left[c], c)):  # The rarest first.
        there = sum(label in classes[name] for name in chosen)
        choose([name for name in order if label in classes[name]], wanted[label] - there)
    choose(order, max(1, round(VAL_SHARE * len(order))) - len(chosen))
    if not chosen and len(order) > 1:  # Every class occurs in one photograph alone.
        chosen = order[:1]
    val = [photo for name in order if name in chosen for photo in groups[name]]
    train = [photo for name in order if name not in chosen for photo in groups[name]]
    return sorted(train, key=lambda p: p.file), sorted(val, key=lambda p: p.file)


def _heads(photos: Sequence[Photo], root: Path) -> dict[str, str]:
    """Return for each origin the first of those that share a photograph with it."""
    heads = {_origin(photo.file, root): {_origin(photo.file, root)} for photo in photos}
    for photo in photos:
        if photo.twin is not None:
            joined = heads[_origin(photo.file, root)] | heads.get(_origin(photo.twin, root), set())
            heads.update(dict.fromkeys(joined, joined))
    return {name: min(joined) for name, joined in heads.items()}


def _origin(file: Path, root: Path) -> str:
    """Return the name of a photograph, without what tells changed copies of it apart."""
    name = (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
    return name.partition(_COPIES)[0] if _COPIES in name else name

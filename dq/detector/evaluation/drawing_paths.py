"""Where the drawing of each image of a data set goes, below the folder for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq.detector.data.leaves import files_of, infos_of, leaves
from dq.tracking.pictures.distinct_paths import distinct_paths


def drawing_paths(dataset: Any) -> Mapping[str, Path]:
    """Return the relative path of each image's drawing, by the path of the image.

    It is the image's own name in its annotations. Two sets that are evaluated together may have
    images of the same name in different folders; then the later ones get a number. All images are
    looked at, so that every rank gives the same names.
    """
    names: dict[str, Path] = {}
    for leaf in leaves(dataset):
        prefix = getattr(leaf, "img_prefix", None) or ""
        for info in infos_of(leaf) or ():
            inner = info.get("img_info")  # OpenImages' challenge has the file one level below.
            for name in files_of(inner if isinstance(inner, Mapping) else info)[:1]:
                names.setdefault(str(Path(prefix, name)), inside(name))
    return dict(zip(names, distinct_paths([*names.values()]), strict=True))


def inside(name: str) -> Path:
    """Return an image's name as a path that stays below the folder for the drawings.

    Annotations may have absolute paths, or paths with ``..``. These may lead to the image itself,
    which the drawing would overwrite.
    """
    path = Path(name)
    return Path(*(part for part in path.parts if part not in (path.anchor, "..")))

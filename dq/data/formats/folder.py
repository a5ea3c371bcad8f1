"""The files of a folder, listed once, and which image belongs to which annotation."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath

from dq.data.pictures import SUFFIXES

# Names of folders that hold labels alone.
LABELS = {
    *("annotations", "annotation", "anns", "ann", "labels", "label", "xml", "xmls", "json", "txt"),
}
# Names of folders that hold one kind of file, so that they do not tell one image from another.
KINDS = {
    *("images", "image", "img", "imgs", "jpegimages", "jpgimages", "photos", "pictures"),
    *LABELS,
}
# The folder with VOC's lists of images, in lower case.
LISTS = "imagesets"
# Files of a folder of pictures that `launcher show` has drawn; those are nobody's photographs.
OF_SHOW = {"index.html", "show.json"}
_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|trainval|test|testing)(?:20\d\d)?")
_MEANING = {"training": "train", "valid": "val", "validation": "val", "dev": "val",
            "testing": "test"}  # fmt: skip


class Folder:
    """The files below a folder; hidden ones are left out, links to folders are followed once.

    Args:
        root: The folder.

    Raises:
        ValueError: It does not exist, is not a folder, or cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve() if ".." in root.parts else root.absolute()
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; give the folder of your photographs")
        if not _is_text(str(self.root)):
            raise ValueError(f"{_shown(self.root)} is not a name in UTF-8; rename the folder")
        files = sorted(_walk(self.root))
        self.files = [path for path in files if _is_text(str(path))]
        # Neither COCO files nor decoders of images can name them.
        self.unreadable_names = [_shown(path) for path in files if not _is_text(str(path))]
        self.images = [path for path in self.files if path.suffix.lower() in SUFFIXES]
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            self._by_stem[comparable(path.stem)].append(path)
            self._by_name[comparable(path.name)].append(path)

    def ending(self, *suffixes: str) -> list[Path]:
        """Return the files with these suffixes, in any case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def relative(self, path: Path) -> str:
        """Return a short name of a path, for messages and hashes."""
        return (
            path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        )

    def image_of(self, annotation: Path, named: str = "") -> Path | None:
        """Return the image that belongs to an annotation file; None if there is none, or several.

        It has the annotation's stem, or else the name that the annotation gives. Of several the one
        in the same folder is taken, else the one whose path differs only in the `KINDS` of folders.

        Args:
            annotation: The file.
            named: File name of the image in the annotation, with or without folders.
        """
        found = self._nearest(annotation, self._by_stem.get(comparable(annotation.stem), []))
        if found is not None or not named:
            return found
        return self.image_named(annotation, named)

    def image_named(self, annotation: Path, named: str, split: str | None = None) -> Path | None:
        """Return the image that an annotation names; None if there is none, or several.

        Args:
            annotation: The file with the name.
            named: A path; absolute, or relative to the annotation, its parent or the root.
            split: The split of the annotation. Of several images with the name, those of this
                split are considered.
        """
        path = PurePath(PureWindowsPath(named).as_posix())
        for base in (annotation.parent, annotation.parent.parent, self.root):
            candidate = Path(os.path.normpath(base / path))
            if _is_file(candidate) and candidate.suffix.lower() in SUFFIXES:
                return candidate
        found = self._by_name.get(comparable(path.name), [])
        tail = [p for p in found if p.as_posix().endswith(f"/{path.as_posix()}")]
        found = tail or found
        if split is not None and len(found) > 1:
            found = [p for p in found if self.split_of(p) == split]
        return self._nearest(annotation, found)

    def images_below(self, folder: Path) -> list[Path]:
        """Return the images in a folder and below it."""
        return [path for path in self.images if path.is_relative_to(folder)]

    def split_of(self, path: Path) -> str | None:
        """Return the split that a folder in a path is named after, the innermost one."""
        parts = path.relative_to(self.root).parts[:-1] if path.is_relative_to(self.root) else ()
        return next((split for part in reversed(parts) if (split := split_named(part))), None)

    def _nearest(self, annotation: Path, found: list[Path]) -> Path | None:
        same = [path for path in found if path.parent == annotation.parent]
        alike = [path for path in found if self._place(path) == self._place(annotation)]
        # The same stem with two suffixes is two images, unless one is in the right folder.
        chosen = next((some for some in (same, alike, found) if some), [])
        return chosen[0] if len(chosen) == 1 else None

    def _place(self, path: Path) -> tuple[str, ...]:
        parts = path.relative_to(self.root).parts[:-1] if path.is_relative_to(self.root) else ()
        return tuple(part.lower() for part in parts if part.lower() not in KINDS)


def with_labels_above(root: Path) -> Path | None:
    """Return the nearest of the two folders above that has a folder of labels; None if none has."""
    for above in root.absolute().parents[:2]:
        try:
            if any(each.name.lower() in LABELS and each.is_dir() for each in above.iterdir()):
                return above
        except OSError:
            continue
    return None


def split_named(name: str) -> str | None:
    """Return the split that a name stands for: ``train2017`` is ``train``, ``valid`` is ``val``."""
    found = _SPLIT.fullmatch(name.lower())
    return _MEANING.get(found[1], found[1]) if found else None


def comparable(name: str) -> str:
    """Return a name as file systems compare it: any case, any Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_text(name: str) -> bool:
    """Return whether a name is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: Path) -> str:
    return path.name.encode(errors="backslashreplace").decode()


def _is_file(path: Path) -> bool:
    """Return whether there is such a file; names from annotations may be too long for a disk."""
    try:
        return path.is_file()
    except OSError:
        return False


def _walk(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()

    def fail(error: OSError) -> None:
        if Path(str(error.filename)) == root:
            raise ValueError(f"{root} cannot be read: {error.strerror}") from error

    for place, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if set(names) >= OF_SHOW:
            folders.clear()
            continue
        folders[:] = sorted(n for n in folders if not n.startswith((".", "__MACOSX")))
        for name in names:
            if not name.startswith("."):
                yield Path(place, name)

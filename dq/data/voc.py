"""Download Pascal VOC to the folder that mmdet's configs use.

The addresses and checksums are those of `torchvision.datasets.voc`.
"""

import logging
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dq.data.disk import explained, one_at_a_time, require_space
from dq.data.download import Archive, fetch_archive
from dq.data.layout import annotation_path, image_path, read_image_set

log = logging.getLogger(__name__)

ROOT = "VOCdevkit"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """An archive with the year and split that it contains."""

    key: str
    year: str
    split: str


_TRAINVAL_2007 = _Part(key="2007", year="VOC2007", split="trainval")
_TEST_2007 = _Part(key="2007-test", year="VOC2007", split="test")
_TRAINVAL_2012 = _Part(key="2012", year="VOC2012", split="trainval")
_PARTS = {
    "voc2007": (_TRAINVAL_2007, _TEST_2007),
    "voc2012": (_TRAINVAL_2012,),
    "voc0712": (_TRAINVAL_2007, _TEST_2007, _TRAINVAL_2012),
}
NAMES = tuple(_PARTS)


def fetch_voc(
    name: str,
    folder: Path,
    *,
    archives: Mapping[str, Archive] | None = None,
    num_attempts: int = 5,
    backoff_s: float = 1.0,
) -> Path:
    """Download and unpack a VOC edition, and return `<folder>/VOCdevkit`.

    Complete parts are not touched. The archives stay in the folder; an archive put there by hand is
    used without the network. Several processes may call it for one folder: one works, the others
    wait.

    Args:
        name: `voc2007` (trainval and test), `voc2012` (trainval) or `voc0712` (all three).
        folder: Folder for `VOCdevkit` and the archives, usually `data`.
        archives: Addresses of the archives `2007`, `2007-test` and `2012`; torchvision's by
            default.
        num_attempts: Maximum number of attempts per archive.
        backoff_s: Wait before the second attempt; it doubles for each further one.

    Raises:
        ValueError: There is no such edition, or the folder cannot be written.
        RuntimeError: An archive cannot be downloaded, is damaged or unsafe, or does not fit on the
            disk.
    """
    if name not in _PARTS:
        raise ValueError(f"{name} is not a VOC edition: name one of {', '.join(NAMES)}")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in _PARTS[name]:
            if _is_whole(folder, part):
                continue
            with one_at_a_time(folder):
                if _is_whole(folder, part):
                    continue
                archive = (_published() if archives is None else archives)[part.key]
                path = fetch_archive(
                    archive, folder, num_attempts=num_attempts, backoff_s=backoff_s
                )
                _unpack(path, folder)
            if not _is_whole(folder, part):
                raise RuntimeError(
                    f"{path} does not bring all of {part.year} {part.split}: delete it, and get "
                    f"{archive.url} again"
                )
    return folder / ROOT


def voc_folders(name: str, folder: Path) -> tuple[Path, ...]:
    """Return the VOC folders of an edition, one per year, in the folder given to `fetch_voc`."""
    years = dict.fromkeys(part.year for part in _PARTS[name])
    return tuple(folder / ROOT / year for year in years)


def _published() -> dict[str, Archive]:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    return {
        key: Archive(url=entry["url"], filename=entry["filename"], md5=entry["md5"])
        for key, entry in DATASET_YEAR_DICT.items()
    }


def _is_whole(folder: Path, part: _Part) -> bool:
    """Return whether each image in the split's list exists, with its annotation."""
    root = folder / ROOT / part.year
    ids = read_image_set(root, part.split)
    return bool(ids) and all(
        image_path(root, image_id).is_file() and annotation_path(root, image_id).is_file()
        for image_id in ids or ()
    )


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the archive into the folder; each existing file is complete.

    The files are unpacked next to their place and renamed, because two archives share VOC2007.

    Raises:
        RuntimeError: A member would leave the folder, the archive is damaged, or it does not fit.
    """
    require_space(folder, path.stat().st_size)
    log.info("unpacking %s", path)
    root = folder / ROOT
    root.mkdir(exist_ok=True)
    temporary = root / f".{path.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with tarfile.open(path, "r:") as tar:
            tar.extractall(temporary, filter="data")
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except tarfile.FilterError as error:
        raise RuntimeError(
            f"{path} is not safe to unpack ({error}): delete it, and get it from its publisher"
        ) from error
    except (tarfile.TarError, EOFError) as error:
        raise RuntimeError(
            f"{path} cannot be unpacked ({error}): delete it, and run this again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

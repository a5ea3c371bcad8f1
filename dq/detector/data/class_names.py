"""The class names by label: one list for training, evaluation, checkpoints, exports, images.

In mmdet, ``classes`` of a config selects the categories of a COCO file, but the labels follow the
order of the file. The detector still names its labels in the order of the config. Here the order of
the data set counts, and the config only selects names.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mmcv
from mmcv import Config
from mmdet.datasets import (
    DATASETS,
    CityscapesDataset,
    CocoDataset,
    CocoPanopticDataset,
    LVISDataset,
    LVISV1Dataset,
    build_dataset,
)
from mmdet.datasets.objects365 import Objects365V1Dataset, Objects365V2Dataset

from dq.counted import counted
from dq.detector.data.data_section import configured_classes, image_sections
from dq.detector.data.leaves import parts_of, set_name

log = logging.getLogger(__name__)
Names = tuple[str, ...]
# Maximum length of the categories in a COCO file, in bytes.
_LONGEST = 1 << 23
# All their categories are used, regardless of ``classes``.
_TAKE_ALL = (CocoPanopticDataset, LVISDataset, LVISV1Dataset)
_READ_AS_COCO = (CocoDataset, Objects365V1Dataset, Objects365V2Dataset, *_TAKE_ALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassList:
    """The class names of a config.

    Attributes:
        names: By label.
        is_certain: Whether the annotations were available.
        note: Message to the user if config and annotations disagree.
    """

    names: Names
    is_certain: bool
    note: str | None = None


def class_list(config: Config) -> ClassList:
    """Return the names by label, in the order of the first training set's annotations.

    There is one order for all data sets: labels in another order would mean other classes than
    those trained. If the training set is missing or has other classes, the order of the test set is
    used. If both are missing, the order of the config is used.

    Raises:
        ValueError: Neither the data sections nor the model give the classes or their number.
    """
    found = {split: image_sections(config, split) for split in ("test", "val", "train")}
    sections = {split: parts for split, parts in found.items() if parts}
    splits = list(sections)
    said = (
        names
        for split in splits
        for section in sections[split]
        if (names := configured_classes(section, f"data.{split}") or _built_order(section))
    )
    declared = next(said, None) or _numbered(config)
    first = {split: parts[0] for split, parts in sections.items()}
    own = _order(first[splits[0]]) if splits else None
    train = _order(first["train"]) if "train" in first else None
    names, source = own or declared, f"data.{splits[0]}" if splits else ""
    if train is not None and set(train) == set(names):
        names, source = train, "data.train"
    notes = []
    if names != declared and set(names) == set(declared):
        notes.append(
            f"the config lists the classes as {', '.join(declared)}, the annotations of {source} as"
            f" {', '.join(names)}; labels, checkpoints and exports follow the annotations"
        )
    if own is not None and own != names:
        notes.append(f"data.{splits[0]} lists them as {', '.join(own)} and is read in that order")
    return ClassList(
        names=names,
        is_certain=own is not None or source == "data.train",
        note="; ".join(notes) or None,
    )


def classes_of_checkpoint(found: ClassList, content: Mapping[str, Any]) -> Names:
    """Return the names for a checkpoint: its own if the annotations are missing.

    Args:
        found: Classes of the config.
        content: Content of the checkpoint.
    """
    own = tuple(content.get("meta", {}).get("CLASSES") or ())
    if not found.is_certain and set(own) == set(found.names):
        return own
    return found.names


def check_order(found: ClassList, content: Mapping[str, Any], source: str) -> None:
    """Refuse a checkpoint whose labels mean other classes than those of the annotations.

    A checkpoint of mmdet's own tools names the classes in the order of its config, even if its
    labels have another order. So a checkpoint of another program only leads to a warning.

    Args:
        found: Classes of the config.
        content: Content of the checkpoint.
        source: Its name, for the message.

    Raises:
        ValueError: The same classes have another order in the checkpoint.
    """
    meta = content.get("meta", {})
    own = tuple(meta.get("CLASSES") or ())
    if not found.is_certain or own == found.names or set(own) != set(found.names):
        return
    orders = (
        f"{source} has the classes in the order {', '.join(own)}, the annotations in the order"
        f" {', '.join(found.names)}"
    )
    mend = (
        "write the categories of the annotation files in the order of the checkpoint, as `launcher"
        f" data convert SRC DST --classes {shlex.join(own)}` does"
    )
    if "key" in meta:
        raise ValueError(f"{orders}, so each label would mean another class; {mend}")
    log.warning("%s; if its labels have that order, %s", orders, mend)


def set_classes_(dataset: Any, names: Names | None) -> None:
    """Make a data set use these class names, and label its boxes in this order.

    Args:
        dataset: Any mmdet data set, wrappers included; just built.
        names: By label; with None or other names, each data set keeps its own order.

    Raises:
        ValueError: A category occurs twice, or the order is not possible.
    """
    parts = parts_of(dataset)
    if not parts:
        _set_leaf_classes_(dataset, names)
        return
    for part in parts:
        set_classes_(part, names)
    dataset.CLASSES = parts[0].CLASSES


def refuse_other_classes(path: Path, metadata: Mapping[str, str], classes: Names) -> None:
    """Refuse an exported file that does not detect these classes.

    Args:
        path: The file, for messages.
        metadata: Result of `dq.detector.export.write.metadata_of`.
        classes: Classes of the data set.

    Raises:
        ValueError: It detects other classes, or does not name its classes.
    """
    if "classes" not in metadata:
        raise ValueError(f"{path} was not written by `launcher export`; export the checkpoint")
    own = tuple(json.loads(metadata["classes"]))
    if own == classes:
        return
    if set(own) == set(classes):
        raise ValueError(
            f"{path} has the classes in another order than the data set: {_few(own)}, not"
            f" {_few(classes)}; export the checkpoint again"
        )
    raise ValueError(
        f"{path} detects {_few(own)} and data.test has {_few(classes)}; use the config it was"
        " exported with"
    )


def _numbered(config: Config) -> Names:
    """Return numbers as names, as in mmdet's tables for a data set without class names."""
    number = next(_find(config.get("model"), "num_classes"), None)
    if not isinstance(number, int):
        raise ValueError("data.test has no classes; add classes=('first', 'second', ...)")
    return tuple(str(label) for label in range(number))


def _find(section: Any, key: str) -> Iterator[Any]:
    if isinstance(section, Mapping):
        if section.get(key) is not None:
            yield section[key]
        for item in section.values():
            yield from _find(item, key)
    elif isinstance(section, list | tuple):
        for item in section:
            yield from _find(item, key)


def _order(section: Mapping[str, Any]) -> Names | None:
    """Return the names by label of a data set; None if its annotations are missing."""
    kind = DATASETS.get(section["type"])
    if not isinstance(kind, type) or not issubclass(kind, CocoDataset):
        return configured_classes(section, "data") or _built_order(section)
    reader = cast(Any, kind).load_annotations
    if not any(reader is known.load_annotations for known in _READ_AS_COCO):
        return _built_order(section)
    file = os.path.join(section.get("data_root") or "", str(section.get("ann_file")))
    try:
        client = mmcv.FileClient(**section.get("file_client_args", {"backend": "disk"}))
        with client.get_local_path(file) as local:
            categories = read_categories(Path(local))
    except Exception:  # of any storage; using the data set will report it
        return None
    if issubclass(kind, Objects365V1Dataset):
        categories = sorted(categories, key=lambda category: category["id"])
    chosen = None if issubclass(kind, _TAKE_ALL) else configured_classes(section, "data")
    return tuple(c["name"] for c in categories if chosen is None or c["name"] in chosen)


def _built_order(section: Mapping[str, Any]) -> Names | None:
    """Return the order of a data set that reads its names from a file in its own format."""
    try:
        return names_by_label(build_dataset(dict(section)))
    except Exception:  # custom code may raise anything; using the data set will report it
        return None


def read_categories(path: Path) -> list[dict[str, Any]]:
    """Return the categories of a COCO file, in its order; usually without parsing the rest.

    Raises:
        ValueError: It has none.
    """
    mark = b'"categories"'
    with path.open("rb") as file:
        size = file.seek(0, 2)
        found = None
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                place = content.rfind(mark)
                found = (
                    _list_after(content[place + len(mark) : place + _LONGEST])
                    if place >= 0
                    else None
                )
    if not _are_categories(found):
        whole = json.loads(path.read_text())
        found = whole.get("categories") if isinstance(whole, dict) else None
    if not _are_categories(found):
        raise ValueError(f"{path} has no categories")
    assert isinstance(found, list)
    return found


def _list_after(content: bytes) -> Any:
    text = content.decode(errors="ignore").lstrip().removeprefix(":").lstrip()
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def _are_categories(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(item, dict) and {"id", "name"} <= set(item) for item in found
    )


def names_by_label(leaf: Any) -> Names | None:
    """Return the class names of a built data set by label; None if it has no names."""
    api, labels = getattr(leaf, "coco", None), getattr(leaf, "cat2label", None)
    if api is not None and isinstance(labels, Mapping):
        ordered = sorted(labels.items(), key=lambda item: item[1])
        return tuple(api.cats[category]["name"] for category, _ in ordered)
    return tuple(leaf.CLASSES) if getattr(leaf, "CLASSES", None) else None


def _set_leaf_classes_(leaf: Any, names: Names | None) -> None:
    own = names_by_label(leaf)
    if own is None:
        leaf.CLASSES = names
        return
    twice = next((name for number, name in enumerate(own) if name in own[:number]), None)
    if twice is not None:
        raise ValueError(f"{set_name(leaf)} has the category {twice!r} twice; give each its name")
    takes_all = isinstance(leaf, _TAKE_ALL)
    if not takes_all and set(own) != set(leaf.CLASSES):
        return  # The checks report which class is missing.
    wanted = names if names is not None and set(names) == set(own) else own
    if getattr(leaf, "coco", None) is None:
        if wanted != own:
            _rename_labels_(leaf, wanted)
    elif wanted != own or _read_again(leaf) != wanted:
        _reorder_categories_(leaf, wanted)
    leaf.CLASSES = wanted
    if isinstance(leaf, CocoPanopticDataset):
        isthing = {c["name"]: bool(c.get("isthing")) for c in leaf.coco.cats.values()}
        leaf.THING_CLASSES = [name for name in wanted if isthing[name]]


def _read_again(leaf: Any) -> Names:
    """Return the order that mmdet's metrics use: they read the categories again."""
    if isinstance(leaf, _TAKE_ALL):
        found = leaf.coco.get_cat_ids()
    else:
        found = leaf.coco.get_cat_ids(cat_names=list(leaf.CLASSES))
    return tuple(leaf.coco.cats[category]["name"] for category in found)


def _reorder_categories_(leaf: Any, names: Names) -> None:
    """Reorder the categories in memory, from which mmdet takes its labels every time.

    mmdet's Objects365 data set does the same.
    """
    if isinstance(leaf, CityscapesDataset):
        raise ValueError(
            f"{set_name(leaf)} has the classes in another order than data.train, and mmdet reads it"
            " again for evaluation; use the same order of categories in both files"
        )
    log.info("%s is read with its classes in the order %s", set_name(leaf), _few(names))
    ids = {category["name"]: number for number, category in leaf.coco.cats.items()}
    order = [ids[name] for name in names]
    order += [number for number in leaf.coco.cats if number not in order]
    leaf.coco.cats = {number: leaf.coco.cats[number] for number in order}
    leaf.coco.dataset["categories"] = list(leaf.coco.cats.values())
    leaf.cat_ids = order[: len(names)]
    leaf.cat2label = {number: label for label, number in enumerate(leaf.cat_ids)}
    if isinstance(leaf, CocoPanopticDataset):
        leaf.categories = leaf.coco.cats


def _rename_labels_(leaf: Any, names: Names) -> None:
    if not isinstance(getattr(leaf, "cat2label", None), Mapping) or hasattr(leaf, "index_dict"):
        raise ValueError(
            f"{set_name(leaf)} has the classes in another order than data.train:"
            f" {_few(tuple(leaf.CLASSES))}, not {_few(names)}; use the same order in both"
        )
    leaf.cat2label = {name: label for label, name in enumerate(names)}


def _few(classes: Names) -> str:
    return (
        f"{counted(len(classes), 'class[es]')}"
        f" ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
    )

"""Compare the classes of a data set with those of its annotation files."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset, XMLDataset

from dq.counted import counted
from dq.detector.data.leaves import set_name
from dq.names import did_you_mean

# Maximum number of unused classes to name in a message.
NAMED = 4


def check_classes(leaf: Any, split: str, say: Callable[[str], None]) -> None:
    """Compare a data set's classes with the boxes of its files.

    mmdet drops boxes of other classes; they are counted.

    Args:
        leaf: A data set that reads images.
        split: Its name in the config, for messages.
        say: Called with each line to log.

    Raises:
        ValueError: A class is not a COCO category of the file, or no Pascal VOC class occurs.
    """
    try:
        if isinstance(leaf, XMLDataset):
            _check_xml(leaf, split, say)
        elif getattr(type(leaf), "load_annotations", None) is CocoDataset.load_annotations:
            # Data sets that read COCO files in another way may use other class names.
            _check_coco(leaf, split, say)
    except (OSError, ET.ParseError, KeyError, AttributeError, TypeError) as error:
        say(
            f"data.{split}: classes of {set_name(leaf)} are not compared with its annotations,"
            f" which have a format of their own ({type(error).__name__})"
        )


def _check_xml(leaf: Any, split: str, say: Callable[[str], None]) -> None:
    found: Counter[str] = Counter()
    for info in leaf.data_infos:
        path = Path(leaf.img_prefix, leaf.ann_subdir, f"{info['id']}.xml")
        for element in ET.parse(path).getroot().findall("object"):
            found[str(element.findtext("name"))] += 1
    absent = [name for name in leaf.CLASSES if name not in found]
    others = Counter({name: count for name, count in found.items() if name not in leaf.CLASSES})
    if len(absent) == len(leaf.CLASSES) and found:
        raise ValueError(
            f"data.{split}: none of the classes {tuple(leaf.CLASSES)} occurs in {leaf.ann_file},"
            f" which has {_named(others)}; set classes and num_classes"
        )
    if others:
        say(_left_out(split, leaf, others))
    if absent:
        near = did_you_mean(absent[0], others) if others else ""
        say(f"data.{split}: no box of class {', '.join(absent)}{near}")


def _check_coco(leaf: Any, split: str, say: Callable[[str], None]) -> None:
    known = {category["id"]: category["name"] for category in leaf.coco.dataset["categories"]}
    for name in leaf.CLASSES:
        if name not in known.values():
            raise ValueError(
                f"data.{split}: class {name!r} is not a category of {leaf.ann_file}"
                f"{did_you_mean(name, known.values())}"
            )
    found = Counter(known.get(a["category_id"], "?") for a in leaf.coco.dataset["annotations"])
    others = Counter({name: count for name, count in found.items() if name not in leaf.CLASSES})
    if others:
        say(_left_out(split, leaf, others))


def _left_out(split: str, leaf: Any, others: Counter[str]) -> str:
    return (
        f"data.{split}: {counted(others.total(), 'box[es]')} of"
        f" {counted(len(others), 'other class[es]')} in {set_name(leaf)}, left out"
        f" ({_named(others)})"
    )


def _named(others: Counter[str]) -> str:
    few = [f"{name} {count}" for name, count in others.most_common(NAMED)]
    return ", ".join([*few, "..."] if len(others) > NAMED else few)

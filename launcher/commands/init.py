"""``launcher init``: look at a folder of photographs, and write a config that trains on them."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dq.counted import counted
from dq.shipped import checked_detector, detectors

if TYPE_CHECKING:
    from dq.data.formats.labelled import Labelled

HELP = "look at a folder of labelled photographs and write a config for `launcher run`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser, "DATA_DIR")
    parser.add_argument(
        "--detector",
        default="ssd_mobilenet",
        metavar="NAME",
        help=f"{', '.join(detectors())} (default ssd_mobilenet)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="width and height of the network's input, a multiple of 32 (default: by the boxes)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="CONFIG.py",
        help="the config (default: <folder>_<detector>.py here); its lists of images and boxes are"
        " written beside it",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE.pth",
        help="weights to start the backbone from (default: none, from scratch)",
    )


def add_source(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Add a folder of photographs and how to read it."""
    parser.add_argument(
        "source",
        type=Path,
        metavar=metavar,
        help="a folder with photographs and labels: Pascal VOC, COCO, YOLO or LabelMe",
    )
    parser.add_argument(
        "--format", metavar="NAME", help="voc, coco, yolo or labelme (default: what is there)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")


def run(arguments: argparse.Namespace) -> int:
    """Print what the folder contains, write the config and its COCO files, and return 0.

    Raises:
        ValueError: The folder has nothing to train on, an argument is wrong, or the config exists.
    """
    from dq.dist.rendezvous.environment import read_environment

    out = _out(arguments)
    if not read_environment().is_main:
        return 0
    from dq.data.own.coco_json import refuse_existing, write_files
    from dq.data.own.splits import share_out
    from dq.data.own.statistics import checked_size, images_text
    from dq.detector.new_config.draft import Wish, drafted

    wish = Wish(
        detector=checked_detector(arguments.detector),
        size=None if arguments.size is None else checked_size(arguments.size),
        backbone=arguments.backbone,
        config=out,
        command=f"launcher {shlex.join(arguments.command_line)}",
    )
    if not arguments.force:
        refuse_existing([out])
    labelled = read_source(arguments)
    splits = share_out(labelled)
    draft = drafted(wish, labelled, splits)
    if not arguments.force:
        refuse_existing(draft.texts)
    print(f"splits: {images_text(splits.photos)} ({splits.said})")
    print("\n".join(draft.report))
    write_files(draft.texts)
    print(f"wrote {out}; next: launcher run {shlex.quote(str(out))}")
    return 0


def read_source(arguments: argparse.Namespace) -> Labelled:
    """Return the sound photographs of the folder, and print what it contains and what is wrong.

    Raises:
        ValueError: There is no such folder or format, or no image with a box.
    """
    from dq.data.formats.labelled import has_boxes
    from dq.data.formats.registry import read_folder, title
    from dq.data.own.checked import checked
    from dq.data.own.copies import without_copies

    labelled = without_copies(checked(read_folder(arguments.source, arguments.format)))
    boxes = sum(len(photo.boxes) for photo in labelled.photos)
    print(
        f"{arguments.source}: {title(labelled.format)},"
        f" {counted(len(labelled.photos), 'image[s]')}, {counted(boxes, 'box[es]')} of"
        f" {counted(len(labelled.classes), 'class[es]')}"
    )
    lines = labelled.findings.lines()
    for line in lines:
        print(f"  {line}")
    if not has_boxes(labelled.photos):
        reasons = "; ".join(lines[:2]) or "all are difficult or crowds"
        raise ValueError(
            f"{arguments.source} has no box to train on: {reasons}; correct the images or labels"
        )
    return labelled


def _out(arguments: argparse.Namespace) -> Path:
    """Return the path of the config to write."""
    if arguments.out is None:
        name = re.sub(r"\W+", "_", arguments.source.resolve().name).strip("_") or "photos"
        return Path(f"{name}_{arguments.detector}.py")
    out: Path = arguments.out
    if out.suffix != ".py" or out.is_dir():
        raise ValueError(f"--out {out} is not the name of a config; give a name like cells.py")
    return out

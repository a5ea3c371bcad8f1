"""``launcher data``: make, download or convert a data set, and print what it contains."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.commands.init import add_source, read_source

HELP = "get a data set (digits, Pascal VOC), or convert your own to COCO files"

# Packages are imported only when the command runs: a login node has neither numpy nor Pillow.
_DIGITS_NUMBERS = {
    "num_train": (600, "images to train on"),
    "num_val": (100, "images to validate on"),
    "num_test": (200, "images to test on"),
    "image_size": (192, "width and height in pixels"),
    "seed": (0, "another seed draws other images"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command per data set, with its own options."""
    from dq.data.voc import NAMES, voc_folders

    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    digits = datasets.add_parser("digits", help="handwritten digits on photographs; no download")
    _add_folder(digits, Path("data/digits"), "folder of the data set")
    for name, (default, meaning) in _DIGITS_NUMBERS.items():
        digits.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )
    for name in NAMES:
        years = " and ".join(path.name for path in voc_folders(name, Path()))
        voc = datasets.add_parser(name, help=f"Pascal {years}, downloaded or from a tar file")
        _add_folder(voc, Path("data"), "folder for VOCdevkit, which may contain the tar file")
    convert = datasets.add_parser("convert", help="write the labels of a folder as COCO files")
    add_source(convert, "SRC")
    convert.add_argument(
        "destination", type=Path, metavar="DST", help="folder for a COCO file of each split"
    )
    convert.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="order of the categories, such as that of a trained detector (default: that of the"
        " folder's own list of classes, or by name)",
    )
    convert.add_argument("--to", choices=("coco",), default="coco", help="format (default coco)")


def run(arguments: argparse.Namespace) -> int:
    """Generate or download the data set, and print its path and contents.

    Returns:
        0, or 1 if something in the data set is missing, unreadable or of zero size.

    Raises:
        ValueError: An argument is wrong; the line says how to correct it.
        RuntimeError: The network or the disk has failed; the line says what to do by hand.
    """
    if arguments.dataset == "convert":
        return _convert(arguments)
    from dq.data.describe import describe_voc, summary_text
    from dq.data.digits import write_digits
    from dq.data.voc import fetch_voc, voc_folders

    folders: tuple[Path, ...]
    if arguments.dataset == "digits":
        numbers = {name: getattr(arguments, name) for name in _DIGITS_NUMBERS}
        folders = (write_digits(arguments.folder, **numbers),)
    else:
        fetch_voc(arguments.dataset, arguments.folder)
        folders = voc_folders(arguments.dataset, arguments.folder)
    summaries = [describe_voc(folder) for folder in folders]
    print("\n".join(summary_text(summary) for summary in summaries))
    return 0 if all(summary.is_sound for summary in summaries) else 1


def _convert(arguments: argparse.Namespace) -> int:
    """Write ``instances_<split>.json`` for each split of a folder; images are not copied."""
    from dq.data.own.class_order import in_order
    from dq.data.own.coco_json import by_split, refuse_existing, write_files

    labelled = read_source(arguments)
    if arguments.classes is not None:
        labelled = in_order(labelled, arguments.classes)
    texts = {
        arguments.destination / f"instances_{name}.json": text
        for name, text in by_split(labelled).items()
    }
    if not arguments.force:
        refuse_existing(texts)
    write_files(texts)
    for path in texts:
        print(f"wrote {path}")
    return 0


def _add_folder(parser: argparse.ArgumentParser, default: Path, meaning: str) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"{meaning} (default: {default})",
    )

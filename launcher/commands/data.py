"""The command `data`: have a data set on the disk, and say what it holds."""

import argparse
import inspect
from pathlib import Path

from dq.data.describe import describe_voc, summary_text
from dq.data.digits import write_digits
from dq.data.voc import NAMES, fetch_voc, voc_folders

HELP = "have a data set on the disk: digits (made here in seconds) or Pascal VOC (downloaded)"

_DIGITS_NUMBERS = {
    "num_train": "images to train on",
    "num_val": "images to validate on",
    "num_test": "images to test on",
    "image_size": "width and height in pixels",
    "seed": "another seed draws other images",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one sub-command a data set, with its own options."""
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    digits = datasets.add_parser("digits", help="handwritten digits over photographs, embedded")
    _add_folder(digits, Path("data/digits"), "where the data set goes")
    parameters = inspect.signature(write_digits).parameters
    for name, meaning in _DIGITS_NUMBERS.items():
        default = parameters[name].default
        digits.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=default,
            metavar="N",
            help=f"{meaning} (default: {default})",
        )
    for name in NAMES:
        years = " and ".join(path.name for path in voc_folders(name, Path()))
        voc = datasets.add_parser(name, help=f"Pascal {years}, by the network or from a tar")
        _add_folder(voc, Path("data"), "where VOCdevkit goes, and where a tar may lie")


def run(arguments: argparse.Namespace) -> int:
    """Write or fetch the data set, and print where it lies and what it holds.

    Returns:
        0, or 1 when something in the data set is missing, unreadable or of zero size.

    Raises:
        ValueError: An argument cannot be followed; the line names the mend.
        RuntimeError: The network or the disk fails; the line says what to do by hand.
    """
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


def _add_folder(parser: argparse.ArgumentParser, default: Path, meaning: str) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"{meaning} (default: {default})",
    )

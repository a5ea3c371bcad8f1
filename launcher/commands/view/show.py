"""``launcher show``: a split of a config in pictures, with the boxes of one or two checkpoints."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from dq.counted import counted
from launcher.command_line.arguments import add_place, add_trust

HELP = "draw labelled images, boxes of one or two checkpoints, anchors against boxes, as a page"
PAGE, NUMBERS = "index.html", "show.json"
# What an earlier call has written, to be replaced.
OWN = re.compile(r"(image|input)_\d+\.png|anchors_\d+\.png|index\.html|show\.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("config", metavar="CONFIG", help="an mmdet 2.x config file")
    parser.add_argument(
        "--split",
        default="train",
        choices=("train", "val", "test"),
        help="which images (default train)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE.pth",
        nargs="+",
        default=[],
        help="draw the boxes of one checkpoint beside the labels; of two, such as float and int8,"
        " also what differs",
    )
    parser.add_argument(
        "--number", type=int, default=16, metavar="N", help="images to draw (default 16)"
    )
    parser.add_argument(
        "--score",
        type=float,
        default=0.3,
        metavar="S",
        help="smallest score of a box of a checkpoint (default 0.3)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the page (default: show/SPLIT in the work dir)",
    )
    add_place(parser)
    parser.add_argument(
        "--seed", type=int, help="of the training pipeline's random changes (default 0)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="where detectors run"
    )
    add_trust(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print its path, and return 0.

    Raises:
        ValueError: An option, the config, the split or a checkpoint does not fit, or the folder
            has other files.
    """
    from dq.dist.rendezvous.environment import read_environment

    _check(arguments)
    environment = read_environment()
    if not environment.is_main:
        return 0
    from dq.one_writer.lock import hold
    from dq.tracking.record.json_file import write_json
    from dq.tracking.reports.show_page import show_page
    from dq.whole_file import write_whole
    from launcher.plan import begin_plan, surroundings
    from launcher.session import choose_device
    from launcher.stages.showing import Wish, parents_of, shown
    from launcher.work_dir import WRITTEN

    asked = surroundings(arguments)
    device = choose_device(asked.device, environment)
    plan = begin_plan(arguments)
    given = [Path(name) for name in arguments.checkpoint]
    parents = parents_of(given, trusted=arguments.trust_checkpoint)
    folder = arguments.out or asked.experiment / WRITTEN["show"] / arguments.split
    _refuse_others(folder)
    lock = hold(folder)
    try:
        _remove_own(folder)
        wish = Wish(
            split=arguments.split,
            number=arguments.number,
            lowest=arguments.score,
            folder=folder,
            command=f"launcher {shlex.join(arguments.command_line)}",
            title=Path(arguments.config).stem,
        )
        found = shown(plan, wish, parents, device)
        write_json(folder / NUMBERS, found.numbers)
        # The page comes last: where it is, its pictures are.
        write_whole(folder / PAGE, show_page(found.page))
    finally:
        lock.release()
    for line in found.page.summary:
        print(line)
    for part in found.page.anchors:
        print(f"{part.head}: {' '.join(part.lines[1:])}")
    print(folder / PAGE)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if len(arguments.checkpoint) > 2:
        raise ValueError(
            f"--checkpoint has {counted(len(arguments.checkpoint), 'file[s]')}; give one, or two"
            " to compare"
        )
    if arguments.number < 1:
        raise ValueError(f"--number {arguments.number} draws nothing; give a number from 1 up")
    if not 0.0 <= arguments.score <= 1.0:
        raise ValueError(f"--score {arguments.score:g} is not a score; give a number from 0 to 1")


def _refuse_others(folder: Path) -> None:
    """Raise ValueError if the folder has files that are not an earlier page's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder")
    if not folder.is_dir():
        return
    others = sorted(p.name for p in folder.iterdir() if not _is_own(p.name))
    if others:
        raise ValueError(
            f"{folder} has other files in it ({', '.join(others[:3])}); give a new folder with"
            " --out"
        )


def _is_own(name: str) -> bool:
    return OWN.fullmatch(name) is not None or name.startswith(".")


def _remove_own(folder: Path) -> None:
    for path in folder.iterdir():
        if OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)

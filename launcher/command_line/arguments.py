"""Add the arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the config and the options of every stage."""
    parser.add_argument("config", metavar="CONFIG", help="an mmdet 2.x config file")
    parser.add_argument(
        "--seed", type=int, help="seed of all random numbers (default: the config's seed, else 0)"
    )
    add_shared(parser)


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the options of every stage, without the config and the seed: a sweep has several."""
    add_place(parser)
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|cuda:N",
        help="auto uses the GPU of the local rank if there is one (default: the config's device,"
        " else auto); with cuda:N all ranks of a node share GPU N",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads of each rank (default: $OMP_NUM_THREADS, else the machine's cores shared"
        " by its ranks)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="how long a collective may take before the job ends (default 1800)",
    )
    parser.add_argument(
        "--arrival-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long ranks wait for each other at the start (default 300)",
    )
    parser.add_argument(
        "--wandb",
        metavar="online|offline|disabled",
        help="mode of W&B, in addition to metrics.jsonl (default: $WANDB_MODE, else offline;"
        " `launcher sync` sends offline runs later)",
    )
    parser.add_argument(
        "--calibration-rank",
        type=int,
        default=0,
        metavar="RANK",
        help="which rank calibrates for all (default 0)",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="print only results, warnings and errors; the log file has everything",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the summary of each finished stage as one JSON object on stdout, and everything"
        " else on stderr",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir`` and ``--cfg-options``, which every command with a config has."""
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="folder of the experiment, a subfolder for each stage (default: the config's work_dir,"
        " else runs/<config's name>)",
    )
    parser.add_argument(
        "--cfg-options",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="override config entries, in mmdet's syntax: optimizer.lr=0.01 data.samples_per_gpu=4",
    )


def add_checkpoint(parser: argparse.ArgumentParser, *, what: str, required: bool) -> None:
    """Add ``--checkpoint``."""
    parser.add_argument("--checkpoint", metavar="FILE.pth", required=required, help=what)
    add_trust(parser)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add ``--images``."""
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="calibrate and train on the images of this folder, without annotations, not on"
        " data.train; the boxes that the float detector finds take the place of annotations",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle a checkpoint that needs more than plain data; it may run any code",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the options of training stages."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE.pth",
        help="continue this stage from a checkpoint (default: its newest undamaged one)",
    )
    parser.add_argument(
        "--resume-with",
        action="append",
        default=[],
        metavar="KEY[,KEY]",
        help="settings, such as optimizer.lr, to take from the config although the checkpoint was"
        " made with others",
    )
    parser.add_argument(
        "--resume-from", metavar="FILE.pth", dest="resume", help="mmdet's name for --resume FILE"
    )
    parser.add_argument(
        "--auto-resume",
        action="store_const",
        const="auto",
        dest="resume",
        help="mmdet's name for --resume without a file",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="use only cuDNN's deterministic algorithms"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the images per step over auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        "--sync-bn",
        choices=("auto", "on", "node", "off"),
        default="auto",
        help="synchronize batch norms over all ranks (on), over the ranks of a node, or not; auto"
        " is on in QAT and follows the config in float training",
    )
    parser.add_argument(
        "--no-validate", action="store_true", help="do not evaluate on data.val while training"
    )


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add ``--control``."""
    parser.add_argument(
        "--control",
        action="store_true",
        help="also train the float detector further, by the same steps and rates, to tell the gain"
        " of QAT from the gain of longer training",
    )


def add_reuse(parser: argparse.ArgumentParser) -> None:
    """Add ``--reuse``, for chains that run each stage as a separate command."""
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="do nothing if the work dir has this stage's result for the same config and seed",
    )


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-bench``, for commands that time an exported model at the end."""
    parser.add_argument(
        "--no-bench",
        action="store_false",
        dest="bench",
        help="do not time the exported model and the same model in float, which takes one or two"
        " seconds",
    )

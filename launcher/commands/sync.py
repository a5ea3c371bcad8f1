"""``launcher sync``: send offline runs to W&B."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.command_line.missing import need

HELP = "send offline runs to W&B; runs that were sent before are skipped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders",
        metavar="RUN_DIR",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="work dirs, or folders that contain some (default runs)",
    )
    parser.add_argument(
        "--limit", type=float, default=600.0, metavar="SECONDS", help="for each run (default 600)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Send the runs one after another, and return 1 if one could not be sent."""
    from dq.tracking.wandb_copy.send_offline import pending_runs, send

    failed = 0
    runs = pending_runs(arguments.folders)
    if not runs:
        print("nothing to send")
        return 0
    need("wandb", "`launcher sync`")
    for folder in runs:
        reason = send(folder, limit_s=arguments.limit)
        print(f"{folder}: {reason or 'sent'}")
        failed += reason is not None
    return int(failed > 0)

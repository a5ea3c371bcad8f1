"""``launcher doctor``: one line for each part that a training needs, with how to mend it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

HELP = "check this machine: one line for each part that a training needs, with how to mend it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print the lines as one JSON list")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each check; return 1 if one fails, else 0."""
    from dq.detector.doctor.examine import CHECKS, examine
    from dq.detector.doctor.finding import FAIL

    found = []
    for name, finding in examine(CHECKS):
        found.append({"name": name, **asdict(finding)})
        if not arguments.json:
            print(finding.line(name), flush=True)
    if arguments.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return int(any(each["status"] == FAIL for each in found))

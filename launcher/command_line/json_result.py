"""``--json``: the results of a command as one JSON object on stdout, for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from dq.tracking.record.json_file import json_text
from dq.tracking.record.stage_summary import FILE_NAME


@contextmanager
def json_result(experiment: Path, *, wanted: bool, prints: bool) -> Iterator[dict[str, Any]]:
    """Send the body's text to stderr, then print the experiment's results on stdout.

    Nothing is printed after an error, whose line and exit code say everything. The body gets a dict
    for results of the command itself, which join those of the stages.

    Args:
        experiment: Its folder.
        wanted: If False, this does nothing.
        prints: Whether this rank prints; the other ranks' text goes to stderr too.
    """
    own: dict[str, Any] = {}
    if not wanted:
        yield own
        return
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield own
    if prints:
        print(json_text(results_of(experiment) | own), end="", file=stdout, flush=True)


def results_of(experiment: Path) -> dict[str, Any]:
    """Return the folder and the summary of each finished stage, in the order of their names.

    Metrics are 0 to 1; `dq.tracking.record.stage_summary.StageSummary` explains the fields.
    """
    found = {}
    for path in sorted(experiment.glob(f"*/{FILE_NAME}")):
        try:
            found[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # Another command is writing it.
    return {"experiment": str(experiment), "stages": found}

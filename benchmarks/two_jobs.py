"""Start two jobs in one work dir together, repeatedly: one runs, one is refused, files are whole.

    python -m benchmarks.two_jobs CONFIG [--times 20] [--command train] [--work-dir runs/two_jobs]

Prints a line per round, and returns 1 if a round ended otherwise, a file is damaged or something is
left over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dq.dist.files.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
REFUSED = "is being written by process"
# Starts a launcher with these words and its output in a file, and returns a function that waits.
Start = Callable[[Sequence[str], Path], Callable[[], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How two jobs ended.

    Attributes:
        codes: Their exit codes.
        outputs: What each of them printed.
        faults: Everything that is wrong; empty if nothing is.
    """

    codes: tuple[int, int]
    outputs: tuple[str, str]
    faults: tuple[str, ...]


def two_at_once(words: Sequence[str], work_dir: Path, start: Start, gap_s: float = 0.0) -> Round:
    """Run the same command twice at once in one work dir, and check the outcome.

    Args:
        words: The launcher's command line without the work dir.
        work_dir: A new folder.
        start: Starts a launcher.
        gap_s: Seconds between the two starts.
    """
    outputs = [work_dir.with_name(f"{work_dir.name}_{number}.txt") for number in range(2)]
    line = [*words, "--work-dir", str(work_dir)]
    first = start(line, outputs[0])
    time.sleep(gap_s)
    second = start(line, outputs[1])
    codes = first(), second()
    said = tuple(path.read_text(errors="replace") for path in outputs)
    faults = damaged(work_dir)
    if sorted(codes) != [0, 2]:
        faults.append(f"exit codes {codes}")
    refusals = [text for text in said if REFUSED in text]
    lines = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
    if len(refusals) != 1 or len(lines) != 1:
        faults.append(f"{len(refusals)} were refused, in {len(lines)} lines")
    return Round(codes=codes, outputs=(said[0], said[1]), faults=tuple(faults))


def damaged(work_dir: Path) -> list[str]:
    """Return the damaged or left-over files of a work dir whose command has ended."""
    faults = []
    files = [path for path in work_dir.rglob("*") if path.is_file() or path.is_symlink()]
    for path in files:
        if path.name.startswith("."):
            faults.append(f"{path} is left")
        try:
            if path.suffix == ".pth":
                load_checkpoint(path)
            elif path.suffix in (".json", ".jsonl"):
                # mmcv's own log is called .log.json and also has a row per line.
                in_rows = path.suffix == ".jsonl" or ".log" in path.suffixes
                texts = path.read_text().splitlines() if in_rows else [path.read_text()]
                for text in texts:
                    json.loads(text)
        except (ValueError, OSError) as error:
            faults.append(f"{path}: {error}")
    if not any(path.suffix == ".pth" for path in files):
        faults.append("no checkpoint was written")
    return faults


def start_launcher(words: Sequence[str], output: Path) -> Callable[[], int]:
    """Start a launcher in a separate process."""
    with output.open("wb") as file:
        command = [sys.executable, "-m", "launcher", *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    return process.wait


def main() -> int:
    """Run all rounds and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--command", default="train")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/two_jobs"))
    parser.add_argument("--cfg-options", nargs="+", default=[])
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    words = [given.command, given.config]
    words += ["--cfg-options", *given.cfg_options] if given.cfg_options else []
    failed = 0
    for number in range(given.times):
        folder = given.work_dir.absolute() / f"round_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        # From 0 to 1 second apart.
        found = two_at_once(words, folder, start_launcher, gap_s=number / max(1, given.times))
        failed += bool(found.faults)
        print(f"{number}: {found.codes} {'; '.join(found.faults) or 'well'}", flush=True)
        if not found.faults:
            shutil.rmtree(folder)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""Change the source at random places, one at a time, and check whether a test fails.

    python -m benchmarks.mutants [--number 100] [--seed 0] [--parts numerics dist ...]
        [--out FILE.jsonl] [--again] [--limit 400] [--write FILE.md]

Cosmic-ray lists the changes (mutants); install it with ``pip install -e .[mutation]``. The parts
of `benchmarks.mutants.parts` get equal shares. A mutant is put into a temporary copy of the tree,
never into the tree itself. Then the tests of its module run up to the first failure, the fast ones
first. A mutant is killed if a test fails that passes without it, or if the tests do not end within
the limit. With ``--out`` each result is kept, and a repeated command continues from there;
``--again`` repeats the mutants that were not killed.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.mutants.choice import Mutant, in_turn, mutants_of, mutated
from benchmarks.mutants.parts import PARTS, stages_for
from benchmarks.mutants.trial import KILLED, SURVIVED, TIMED_OUT, UNCLEAR, Tree, preload

ROOT = Path(__file__).resolve().parents[2]
STATES = (KILLED, TIMED_OUT, SURVIVED, UNCLEAR)
Rows = dict[tuple[str, ...], dict[str, Any]]


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files of a checkout that git tracks or would track."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=source, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def difference(before: str, after: str) -> str:
    """Return the changed lines of a source, without context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def chosen(number: int, seed: int, parts: Sequence[str]) -> Iterator[tuple[Mutant, str]]:
    """Yield mutants with their changed sources, up to a number."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        listed = {part: mutants_of(ROOT, part, Path(scratch)) for part in parts}
    print({part: len(mutants) for part, mutants in listed.items()}, flush=True)
    for mutant in in_turn(listed, random.Random(seed)):
        if number and (text := mutated(ROOT, mutant)) is not None:
            number -= 1
            yield mutant, text


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a key that is unique for a mutant and the version of the source."""
    return row["module"], row["operator"], str(row["occurrence"]), row["diff"]


def read(out: Path | None, *, again: bool) -> Rows:
    """Return the rows of an earlier command that are not tried again."""
    if out is None or not out.exists():
        return {}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {key_of(row): row for row in rows if not (again and row["state"] != KILLED)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the numbers of each part, and the survivors, as Markdown."""
    lines = [f"| part | mutants | {' | '.join(STATES)} |", "| --- | --- | --- | --- | --- | --- |"]
    for part in [*dict.fromkeys(row["part"] for row in rows), "all"]:
        counts = Counter(row["state"] for row in rows if part in (row["part"], "all"))
        each = " | ".join(str(counts[state]) for state in STATES)
        lines.append(f"| {part} | {counts.total()} | {each} |")
    for row in rows:
        if row["state"] in (SURVIVED, UNCLEAR):
            place = f"{row['module']}:{row['span'][0][0]}"
            lines += ["", f"{place} {row['state']} {row['by']}", "", "```diff", row["diff"], "```"]
    return "\n".join(lines) + "\n"


def results(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Try the mutants of the command; yield a row for each, known or new."""
    known = read(given.out, again=given.again)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Tree(root=Path(folder).resolve(), limit_s=given.limit)
        copy_tree(ROOT, tree.root)
        for mutant, text in chosen(given.number, given.seed, given.parts):
            diff = difference((ROOT / mutant.module).read_text(), text)
            row = {**asdict(mutant), "diff": diff}
            if key_of(row) not in known:
                verdict = tree.try_out(mutant.module, text, stages_for(ROOT, mutant.module))
                known[key_of(row)] = {**row, **asdict(verdict)}
                if given.out:
                    kept = "".join(f"{json.dumps(found)}\n" for found in known.values())
                    given.out.write_text(kept)
            yield known[key_of(row)]


def main(argv: Sequence[str] | None = None) -> int:
    """Try the mutants and print a table; return 1 if fewer than 90 % are killed."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.mutants", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--number", type=int, default=100, help="number of mutants (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice (default 0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=400.0, help="seconds for a run of tests")
    parser.add_argument("--out", type=Path, help="file of the results, one JSON object per line")
    parser.add_argument("--again", action="store_true", help="repeat mutants that were not killed")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args(argv)
    if given.out and given.out == given.write:
        parser.error(f"--out and --write are both {given.out}; give two files")
    if importlib.util.find_spec("cosmic_ray") is None:
        parser.error("cosmic-ray lists the mutants; install it: pip install -e '.[mutation]'")
    # The copy is in another place; the data next to the checkout are not copied.
    os.environ.setdefault("DQ_SHARED", str(ROOT.parent / "shared"))
    preload()
    rows = []
    for number, row in enumerate(results(given), 1):
        rows.append(row)
        place = f"{row['module']}:{row['span'][0][0]}"
        print(f"{number} {row['state']} in {row['seconds']:.0f} s: {place} {row['by']}")
        print(row["diff"], flush=True)
    made = table(rows)
    print(made)
    if given.write:
        line = "python -m benchmarks.mutants " + " ".join(argv or sys.argv[1:])
        given.write.write_text(f"Made by `{line}`.\n\n{made}")
    found = sum(row["state"] in (KILLED, TIMED_OUT) for row in rows)
    return 0 if found >= 0.9 * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())

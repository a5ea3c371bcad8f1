"""Which differences between the rows may be chance: a paired bootstrap over the evaluated images.

    python -m benchmarks.ptq_peers.chance OUT [OUT ...] --checkpoint FLOAT.pth [--write PAGE.md]

OUT is a folder of `python -m benchmarks.ptq_peers`. Several, with other images each, are also taken
together, as one evaluation of all their images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.ptq_peers.detector import Detector
from benchmarks.results import between_markers
from dq.tracking.record.matches import FILE_NAME, Matches, read_matches, write_matches
from dq.tracking.reports.bootstrap import difference

REFERENCE = "ours"
BEGIN = "<!-- made by benchmarks.ptq_peers.chance -->"


def titles_of(out: Path) -> dict[str, str]:
    """Return the titles of a folder's evaluated rows by name, in the order of their metric."""
    rows = {path.stem: json.loads(path.read_text()) for path in (out / "rows").glob("*.json")}
    evaluated = {name: row for name, row in rows.items() if "value" in row}
    best_first = sorted(evaluated, key=lambda name: -evaluated[name]["value"])
    return {name: str(evaluated[name]["title"]) for name in best_first}


def matches_in(out: Path, names: Sequence[str], checkpoint: Path) -> dict[str, Matches]:
    """Return the matches of rows, which are kept in the folder."""
    found, detector = {}, None
    for name in names:
        folder, file = out / "matches" / name, out / "files" / f"{name}.onnx"
        kept = folder / FILE_NAME
        newer = kept.is_file() and kept.stat().st_mtime_ns >= file.stat().st_mtime_ns
        matches = read_matches(folder) if newer else None
        if matches is None:
            detector = detector or Detector(out / "config.py", checkpoint, threads=1)
            matches = detector.matches(file)
            folder.mkdir(parents=True, exist_ok=True)
            write_matches(folder, matches)
        found[name] = matches
    return found


def together(parts: Sequence[Matches]) -> Matches:
    """Return evaluations of different images as one of them all."""
    counts = [len(part.names) for part in parts]
    first = np.cumsum([0, *counts[:-1]])
    image = np.concatenate([p.image + n for p, n in zip(parts, first, strict=True)])
    label, score = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("label", "score")
    )
    order = np.lexsort((-score, label))
    return Matches(
        image=image[order].astype(np.int32),
        label=label[order],
        score=score[order],
        hit=np.concatenate([p.hit for p in parts])[order],
        counted=np.concatenate([p.counted for p in parts])[order],
        annotations=np.concatenate([p.annotations for p in parts]),
        names=np.concatenate([p.names for p in parts]),
    )


def table(titles: Mapping[str, str], columns: Mapping[str, Mapping[str, Matches]]) -> str:
    """Return each row's difference to ours, in points, with the interval of 95 %.

    Args:
        titles: Of the rows.
        columns: The matches by row, under the column's head.
    """
    lines = [[f"minus {titles[REFERENCE]}", *columns], ["---"] * (len(columns) + 1)]
    for name in (n for n in titles if n != REFERENCE):
        found = [difference(column[REFERENCE], column[name]) for column in columns.values()]
        lines.append([titles[name], *(str(f) if f else "-" for f in found)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="to compare (default: all; seconds for each)")
    parser.add_argument("--write", type=Path, help="Markdown file to put the table into")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    each = [titles_of(out) for out in given.outs]
    titles = {n: title for n, title in each[0].items() if all(n in other for other in each)}
    if given.rows:
        titles = {n: title for n, title in titles.items() if n in (REFERENCE, *given.rows)}
    if REFERENCE not in titles:
        print(f"no row {REFERENCE!r} is evaluated in each of these folders", file=sys.stderr)
        return 1
    parts = [matches_in(out, list(titles), given.checkpoint) for out in given.outs]
    columns = {o.name: part for o, part in zip(given.outs, parts, strict=True)}
    if len(parts) > 1:
        columns["together"] = {n: together([part[n] for part in parts]) for n in titles}
    made = table(titles, columns)
    print(made, flush=True)
    if given.write:
        text = given.write.read_text() if given.write.is_file() else ""
        given.write.write_text(between_markers(text, made, BEGIN))
    return 0


if __name__ == "__main__":
    sys.exit(main())

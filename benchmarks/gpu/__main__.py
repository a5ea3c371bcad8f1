"""Test, run and measure the project on a GPU, offline, within a time limit.

    python -m benchmarks.gpu --out DIR [--minutes 8] [--only NAME ...] [--skip NAME ...]
        [--build-mmcv] [--device cpu]

It needs torch, mmdet and mmcv-full, which ``--build-mmcv`` compiles with CUDA first. Each part is a
process with its own time limit, and results are written after each part: ``DIR/gpu.json``,
``DIR/gpu.md`` (the source of the figures in docs/gpu.md) and one log per part. ``--device cpu``
tries every part with very little work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.environment import describe
from benchmarks.gpu.parts import FULL, REHEARSAL, Part, build_mmcv, parts
from dq.names import hint

LEAST_S = 10.0


def run_part(part: Part, out: Path, left_s: float) -> dict[str, Any]:
    """Run one part and return how it ended: "passed", "failed", "out of time" or "no time left"."""
    if left_s < LEAST_S:
        return {"name": part.name, "ended": "no time left"}
    log = out / f"{part.name.replace(' ', '_')}.log"
    began = time.monotonic()
    environ = {**os.environ, "OMP_NUM_THREADS": "4", "WANDB_MODE": "disabled", **part.environ}
    with log.open("w") as sink:
        sink.write(" ".join(part.command()) + "\n")
        sink.flush()
        process = subprocess.Popen(
            part.command(), stdout=sink, stderr=subprocess.STDOUT, env=environ
        )
        try:
            code = process.wait(min(part.limit_s, left_s))
            ended = "passed" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            ended = "out of time"
    found: dict[str, Any] = {"name": part.name, "ended": ended}
    found["seconds"] = round(time.monotonic() - began, 1)
    found["last_lines"] = log.read_text(errors="replace").splitlines()[-12:]
    return found


def counted_tests(path: Path) -> str:
    """Return one line for a JUnit file: how many tests passed, failed and were skipped."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {
        key: sum(int(suite.get(key, 0)) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    }
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return f"{passed} passed, {failed} failed, {count['skipped']} skipped"


def page(environment: dict[str, str], found: Sequence[dict[str, Any]], out: Path) -> str:
    """Return the results as Markdown."""
    lines = [f"| {name} | {value} |" for name, value in environment.items()]
    text = "\n".join(["| machine | |", "|---|---|", *lines, ""])
    rows = [f"| {one['name']} | {one['ended']} | {one.get('seconds', '')} |" for one in found]
    text += "\n".join(["", "| part | ended | s |", "|---|---|---|", *rows, ""])
    for one in found:
        for file in one.get("files", ()):
            path = out / file
            if path.suffix == ".md" and path.exists():
                text += f"\n## {one['name']}\n{path.read_text()}"
            elif path.suffix == ".xml" and path.exists():
                text += f"\n## {one['name']}\n{counted_tests(path)}\n"
        tables = [line for line in one.get("last_lines", ()) if re.match(r"\s*\|", line)]
        if tables and not one.get("files"):
            text += f"\n## {one['name']}\n" + "\n".join(tables) + "\n"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts that fit; return 1 when one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="prefixes of the parts to run")
    parser.add_argument(
        "--skip",
        nargs="+",
        metavar="NAME",
        default=[],
        help="prefixes of the parts to leave out",
    )
    parser.add_argument(
        "--build-mmcv",
        action="store_true",
        help="compile mmcv-full with CUDA first, and install it",
    )
    given = parser.parse_args(argv)
    end = time.monotonic() + 60 * given.minutes
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment = describe()
    if given.device == "cuda" and environment["gpu"] == "-":
        print("error: torch finds no GPU here; use --device cpu to try the parts", file=sys.stderr)
        return 2
    print(json.dumps(environment), flush=True)
    found: list[dict[str, Any]] = []
    rehearses = given.device == "cpu"
    chosen = [build_mmcv()] if given.build_mmcv else []
    chosen += parts(out, given.device, REHEARSAL if rehearses else FULL)
    names = [part.name for part in chosen]
    for prefix in [*(given.only or ()), *given.skip]:
        if not any(name.startswith(prefix) for name in names):
            print(f"error: no part begins with {prefix}; {hint(prefix, names)}", file=sys.stderr)
            return 2
    for part in chosen:
        if given.only and not part.name.startswith(tuple(given.only)):
            continue
        if part.name.startswith(tuple(given.skip)):
            continue
        # On a busy CPU even very little work takes long.
        left_s = 3600.0 if rehearses else end - time.monotonic()
        one = dataclasses.replace(part, limit_s=left_s) if rehearses else part
        found.append({**run_part(one, out, left_s), "files": list(part.files)})
        print(found[-1]["name"], found[-1]["ended"], found[-1].get("seconds", ""), flush=True)
        results = {"environment": environment, "parts": found}
        (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / "gpu.md").write_text(page(environment, found, out))
    return int(any(one["ended"] != "passed" for one in found))


if __name__ == "__main__":
    sys.exit(main())

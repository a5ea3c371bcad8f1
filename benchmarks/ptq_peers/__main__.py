"""Compare post-training quantization with other tools: same float model, images and evaluation.

    python -m benchmarks.ptq_peers --config CONFIG --checkpoint FLOAT.pth \
        --calibrate ANNOTATIONS.json --evaluate ANNOTATIONS.json --images DIR --out DIR \
        [--peers ours nncf-mixed ...] [--python nncf=ENV/bin/python] [--write docs/ptq_peers.md]

Each tool runs in an environment that is made for it below --out. A row is kept after each of its
parts, so a second call continues. A tool that cannot be installed or fails is a row that says why,
and --retry tries it again. Tools that are guided by a metric get the metric on the calibration
images.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks.ptq_peers import ours
from benchmarks.ptq_peers.detector import Detector, write_config
from benchmarks.ptq_peers.environments import python_of
from benchmarks.ptq_peers.ours import OURS
from benchmarks.ptq_peers.table import FLOAT, table
from benchmarks.ptq_peers.tools import PEERS, SCRIPTS, TOOLS, timed_run
from benchmarks.results import between_markers
from dq.engines import ENGINES, is_installed
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.paired import interleaved, ratio
from dq.quant.latency.terms import example_inputs
from dq.whole_file import write_whole

ROUNDS, LIMIT_S = 15, 20.0


class Comparison:
    """The rows below a folder.

    Args:
        given: The command's arguments.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        for name in ("rows", "files", "logs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        config, self.short, num_images = write_config(
            given.config,
            self.out,
            calibrate=given.calibrate,
            evaluate=given.evaluate,
            images=given.images,
            num_images=given.num_images,
        )
        self.detector = Detector(config, given.checkpoint, threads=given.threads)
        self.engines = {n: str(timed_engine(n)) for n in ENGINES if is_installed(n)}
        self.images = self.out / f"images{num_images}.npy"
        if not self.images.is_file():
            self.detector.write_images(self.images, num_images)

    def file(self, name: str) -> Path:
        """Return the model of a row."""
        return self.out / "files" / f"{name}.onnx"

    def row(self, name: str) -> dict[str, Any]:
        """Return what is known of a row."""
        path = self.out / "rows" / f"{name}.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
        if name in OURS:
            return {"title": self.own(name).title}
        return {"title": PEERS[name].title if name in PEERS else "float"}

    def keep(self, name: str, row: dict[str, Any]) -> None:
        """Write a row."""
        write_whole(self.out / "rows" / f"{name}.json", json.dumps(row, indent=1) + "\n")

    def make(self, name: str) -> None:
        """Make the missing parts of a row: its file, its metric, its speed."""
        row = self.row(name)
        if "failed" in row and not self.given.retry:
            return
        row.pop("failed", None)
        try:
            if not (self.file(name).is_file() and "seconds" in row):
                row["seconds"] = self.quantized(name)
                self.keep(name, row)
            if "value" not in row:
                row["metric"], row["value"] = self.detector.metric(self.file(name))
                self.keep(name, row)
            if "speed" not in row and name != FLOAT:
                row["speed"] = {engine: self.speed(name, engine) for engine in self.engines}
        except Exception as error:  # Whatever a tool or its file meets.
            row["failed"] = str(error).strip() or type(error).__name__
        self.keep(name, row)

    def quantized(self, name: str) -> float:
        """Write the file of a row and return the seconds that its tool took, start-up included."""
        limit_s, path = self.given.limit, self.file(name)
        if name == FLOAT:
            self.detector.write_float(path)
            return 0.0
        if name in OURS:
            return ours.quantize(
                self.own(name),
                copy.deepcopy(self.short),
                self.out / "ours" / name,
                path,
                checkpoint=self.given.checkpoint,
                threads=self.given.threads,
                limit_s=limit_s,
            )
        peer = PEERS[name]
        tool = TOOLS[peer.tool]
        own = self.given.python.get(peer.tool)
        place = self.out / "environments" / peer.tool
        python = own or python_of(place, tool.requirements, tool.alone)
        words = [python, SCRIPTS / tool.script, self.file(FLOAT), self.images, path, peer.method]
        log = self.out / "logs" / f"{name}.txt"
        return timed_run(words, log, answer=self.answer, limit_s=limit_s)

    def own(self, name: str) -> ours.Own:
        """Return a row of ours, with the command's budget for a search."""
        own = OURS[name]
        if own.command != "quantize" or self.given.budget is None:
            return own
        words = (*own.words, "--budget", self.given.budget)
        return replace(own, title=f"{own.title}, {self.given.budget}", words=words)

    def answer(self, path: Path) -> float:
        """Return the metric that a tool asks for, on the calibration images."""
        return self.detector.metric(path, "val")[1]

    def speed(self, name: str, engine: str) -> float | str:
        """Return float's time divided by the file's, or why the engine cannot run the file."""
        try:
            networks = [
                timed_engine(engine).open(onnx.load(self.file(n)), threads=self.given.threads)
                for n in (FLOAT, name)
            ]
            inputs = example_inputs(onnx.load(self.file(FLOAT)))
            runs = [lambda network=network: network.compute(inputs) for network in networks]
            plain, own = interleaved(runs, rounds=ROUNDS, limit_s=LIMIT_S)
        except ValueError as error:
            return str(error)
        return ratio(plain, own).median


def _python(text: str) -> tuple[str, Path]:
    tool, equals, path = text.partition("=")
    if not equals or tool not in TOOLS:
        raise argparse.ArgumentTypeError(f"give TOOL=PYTHON with one of {', '.join(TOOLS)}")
    return tool, Path(path)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--config", "--checkpoint", "--calibrate", "--evaluate", "--images", "--out"):
        parser.add_argument(name, type=Path, required=True)
    names = [*OURS, *PEERS]
    parser.add_argument("--peers", nargs="*", choices=names, default=names, help="default: all")
    parser.add_argument("--python", type=_python, nargs="*", default=[], help="TOOL=its Python")
    parser.add_argument("--num-images", type=int, default=128, help="maximum for calibration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for each tool")
    parser.add_argument("--budget", help="of launcher quantize, such as 20m (default: none)")
    parser.add_argument("--retry", action="store_true", help="try failed rows again")
    parser.add_argument("--write", type=Path, help="Markdown file to put the table into")
    parser.add_argument("--block", help="name of the table in it (default: the config's)")
    given = parser.parse_args(argv)
    given.python = dict(given.python)
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing rows, print the table after each, and write it."""
    given = parsed(argv)
    torch.set_num_threads(given.threads)
    comparison = Comparison(given)
    comparison.make(FLOAT)
    if failed := comparison.row(FLOAT).get("failed"):
        print(f"the float model cannot be evaluated: {failed}", file=sys.stderr)
        return 1
    for name in given.peers:
        comparison.make(name)
        wanted = [n for n in (FLOAT, *OURS, *PEERS) if (given.out / f"rows/{n}.json").is_file()]
        made = table({n: comparison.row(n) for n in wanted}, comparison.engines)
        print(made, flush=True)
        if given.write:
            block = given.block or given.config.stem
            begin = f"<!-- made by benchmarks.ptq_peers: {block} -->"
            text = given.write.read_text() if given.write.is_file() else ""
            given.write.write_text(between_markers(text, made, begin))
    return 0


if __name__ == "__main__":
    # A tool runs in a session of its own, and must not go on when this process is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

"""Run all steps of one family; each step is a command that reads the files of earlier steps.

The steps: float training of two iterations, calibration, QAT that is stopped after one iteration
and resumed. Then each checkpoint is evaluated and loaded into mmdet. The QAT checkpoint is exported
with every decoding, and each export is run in ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from launcher.coverage.processes import LAUNCHER, Ended, Limits, run
from launcher.coverage.row import CRASHED, DIFFERS, HAS_NOT, LOADS, REFUSED, TIES, YES, Row
from launcher.failure import STOPPED, USER_ERROR

STAGES = ("float", "calibrated", "qat")
DECODINGS = {"export": "none", "boxes": "boxes", "nms": "nms"}
# Part of the evaluation's message if it found every layer to agree.
_TIES = "each layer agrees when both get the same input"
_NO_DECODING = "cannot be decoded in ONNX"


class _End(Exception):  # noqa: N818  (no error of ours)
    """The chain ends here."""


class Chain:
    """The commands of one family.

    Args:
        config: The config's file.
        folder: For all their files.
        limits: Of time and memory for each command.
    """

    def __init__(self, config: Path, folder: Path, limits: Limits) -> None:
        self.config, self.folder, self.limits = config, folder, limits
        self.work = folder / "work"
        self.steps: dict[str, str] = {}
        self.what = ""

    def row(self) -> Row:
        """Run the steps until one fails, and return the family's row of the table."""
        began = time.monotonic()
        with contextlib.suppress(_End):
            self._run()
        row = Row(config=self.config.stem, steps=self.steps, what=self.what)
        return replace(
            row,
            quantizers=int(_summary(self.work / "calibrated").get("num_quantizers", 0)),
            left_float=_left_float(self.folder / "calibrate.out"),
            seconds=round(time.monotonic() - began, 1),
        )

    def checkpoint(self, stage: str) -> Path:
        """Return the path of a stage's checkpoint."""
        return self.work / stage / f"{stage}.pth"

    def _run(self) -> None:
        qat = ["qat", "--checkpoint", str(self.checkpoint("calibrated")), "--no-validate"]
        self._step("float", ["train", "--no-validate"])
        self._step("calibrate", ["calibrate", "--checkpoint", str(self.checkpoint("float"))])
        # A hook in the config sends the stop signal in the first iteration.
        self._step("qat", qat, code=STOPPED)
        self._step("resume", [*qat, "--resume"])
        for stage in STAGES:
            self._evaluate(stage)
        for stage in STAGES:
            self._load_into_mmdet(stage)
        models = [self._export(step, decoding) for step, decoding in DECODINGS.items()]
        for model in models:
            if model is not None:
                self._run_in_onnxruntime(model)

    # -- steps

    def _step(self, step: str, words: list[str], *, code: int = 0, name: str = "") -> Ended:
        """Run a command of the launcher on the config; end the chain if it fails."""
        command, *more = words
        own = [str(self.config), "--work-dir", str(self.work), "--threads", "1"]
        own += ["--device", "cpu", "--wandb", "disabled"]
        ended = self._command([command, *own, *more], name or step)
        return self._judge(step, ended, code)

    def _command(self, words: list[str], name: str, target: str = LAUNCHER) -> Ended:
        return run(words, self.folder / f"{name}.out", self.limits, target=target)

    def _judge(self, step: str, ended: Ended, code: int) -> Ended:
        if ended.code != code or ended.killed or ended.has_traceback:
            self._fail(step, ended)
        self.steps.setdefault(step, YES)
        return ended

    def _fail(self, step: str, ended: Ended) -> NoReturn:
        if ended.has_traceback:
            self._end(step, CRASHED, ended.output.strip().splitlines()[-1])
        if ended.code == USER_ERROR and ended.error:
            self._end(step, REFUSED, ended.error)
        self._end(step, CRASHED, ended.killed or ended.error or f"exit code {ended.code}")

    def _end(self, step: str, verdict: str, what: str) -> NoReturn:
        self.steps[step] = verdict
        # The table should not contain the folder's path.
        self.what = f"{step}: {' '.join(what.split())}".replace(f"{self.folder}/", "")
        raise _End

    def _evaluate(self, stage: str) -> None:
        """Evaluate a checkpoint in a new process; its metrics must equal those of its stage."""
        words = ["eval", "--checkpoint", str(self.checkpoint(stage))]
        words += ["--out", str(self.folder / f"{stage}.pkl")]
        self._step("eval", words, name=f"eval_{stage}")
        wanted, found = (_summary(self.work / name).get("metrics") for name in (stage, "eval"))
        if wanted != found:
            self._end("eval", DIFFERS, f"{stage} had {wanted}, its file has {found}")

    def _load_into_mmdet(self, stage: str) -> None:
        """Load a checkpoint into plain mmdet; a float one must find the same boxes there."""
        out = self.folder / "mmdet_float.pkl"
        words = [str(self.config), str(self.checkpoint(stage)), str(out)]
        target, last = "dq.detector.survey.plain_mmdet:main", 3 if stage == "float" else 2
        self._judge("mmdet", self._command(words[:last], f"mmdet_{stage}", target), 0)
        if stage == "float":
            own, theirs = (pickle.loads(p.read_bytes()) for p in (self.folder / "float.pkl", out))
            if isinstance(theirs, str):
                self.steps["mmdet"] = LOADS
            elif not _alike(own, theirs):
                self._end("mmdet", DIFFERS, "mmdet finds other boxes with the float checkpoint")

    def _export(self, step: str, decoding: str) -> Path | None:
        words = ["export", "--checkpoint", str(self.checkpoint("qat")), "--decode", decoding]
        words += ["--no-bench"]
        try:
            ended = self._step(step, words, name=f"export_{decoding}")
        except _End:
            if decoding == "none" or _NO_DECODING not in self.what:
                raise
            self.steps[step], self.what = HAS_NOT, ""
            return None
        found = re.search(r"^export: (\S+\.onnx) \(", ended.output, re.M)
        assert found is not None, ended.output
        return Path(found[1])

    def _run_in_onnxruntime(self, model: Path) -> None:
        """Evaluate an exported model in ONNX Runtime; its metric must equal torch's."""
        words = ["eval", str(model), "--backend", "onnxruntime", "--wandb", "disabled"]
        words += ["--threads", "1", "--device", "cpu", "--work-dir", str(self.work), "--no-bench"]
        ended = self._command(words, f"onnxruntime_{model.stem}")
        if ended.code == 1 and "differs from the fake-quantized one" in ended.error:
            if _TIES not in ended.error:
                self._end("onnxruntime", DIFFERS, ended.error)
            self.steps["onnxruntime"] = TIES
            return
        self._judge("onnxruntime", ended, 0)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except OSError:
        return {}
    return found


def _left_float(output: Path) -> str:
    """Return the parts that a calibration leaves in float, as its output names them."""
    if not output.is_file():
        return ""
    found = re.search(r"left in float: (.*)", output.read_text(errors="replace"))
    return found[1] if found else ""


def _alike(one: Any, other: Any) -> bool:
    """Whether two results of mmdet have the same numbers up to float32's last digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_alike(a, b) for a, b in pairs)
    if hasattr(one, "shape") and hasattr(other, "shape"):
        import numpy as np

        return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-3))
    return bool(one == other)

"""The tools, what they need, and a run of one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "quantizers"
EVALUATE = "EVALUATE "


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A quantizer of ONNX models.

    Attributes:
        script: In `SCRIPTS`.
        requirements: Of its environment; none for this project's own.
        alone: Further packages there, installed without what they require.
    """

    script: str
    requirements: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A row: a tool with one of its methods.

    Attributes:
        title: In the table.
        tool: A key of `TOOLS`.
        method: As the script takes it.
    """

    title: str
    tool: str
    method: str


TOOLS = {
    "onnxruntime": Tool(script="with_onnxruntime.py"),
    "nncf": Tool(
        script="with_nncf.py", requirements=("nncf==3.4.0", "onnx", "onnxruntime", "openvino")
    ),
    "aimet": Tool(script="with_aimet.py", requirements=("aimet-onnx",)),
    # It does not name its last two requirements.
    "neural_compressor": Tool(
        script="with_neural_compressor.py",
        requirements=("onnx-neural-compressor", "prettytable", "scipy"),
    ),
    # It requires ONNX Runtime for GPUs, CuPy and more that calibration on a CPU does not need.
    "model_optimizer": Tool(
        script="with_model_optimizer.py",
        requirements=(
            "torch",
            "onnx~=1.21.0",
            "onnxruntime~=1.24.2",
            "onnxscript",
            "onnx-graphsurgeon",
            "onnxslim",
            "lief",
            "nvidia-ml-py",
            "omegaconf",
            "pydantic",
            "rich",
            "scipy",
            "tqdm",
        ),
        alone=("nvidia-modelopt==0.47.0",),
    ),
}
PEERS = {
    "ort-min-max": Peer(title="ONNX Runtime, min-max", tool="onnxruntime", method="min_max"),
    "ort-entropy": Peer(title="ONNX Runtime, entropy", tool="onnxruntime", method="entropy"),
    "ort-percentile": Peer(
        title="ONNX Runtime, percentile", tool="onnxruntime", method="percentile"
    ),
    "nncf": Peer(title="NNCF, default", tool="nncf", method="default"),
    "nncf-mixed": Peer(title="NNCF, mixed preset", tool="nncf", method="mixed"),
    "nncf-accuracy": Peer(
        title="NNCF, accuracy control, 0.5 points", tool="nncf", method="accuracy_control"
    ),
    "aimet": Peer(title="AIMET, min-max", tool="aimet", method="min_max"),
    "neural-compressor": Peer(title="Neural Compressor", tool="neural_compressor", method="static"),
    "model-optimizer": Peer(
        title="Model-Optimizer, entropy", tool="model_optimizer", method="entropy"
    ),
}


def timed_run(
    words: Sequence[object],
    log: Path,
    *,
    answer: Callable[[Path], float] | None = None,
    limit_s: float,
    accepted: Sequence[int] = (0,),
) -> float:
    """Run a command, answer its requests for a metric, and return its time in seconds.

    Args:
        words: The command.
        log: File for what it says on standard error; what it prints goes into a file beside it,
            so that the last line here is why it failed.
        answer: Returns the metric of a model that the command asks for.
        limit_s: Seconds after which the command and its children are killed.
        accepted: Exit codes of success.

    Raises:
        RuntimeError: It failed or took too long; the message has its last line.
    """
    late = threading.Event()
    began = time.monotonic()
    with log.open("w") as errors, printed(log).open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

        def kill() -> None:
            if _ended(process):
                late.set()

        timer = threading.Timer(limit_s, kill)
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if line.startswith(EVALUATE) and answer is not None:
                    value = answer(Path(line.removeprefix(EVALUATE).strip()))
                    process.stdin.write(f"{value}\n")
                    process.stdin.flush()
            code = process.wait()
        finally:
            timer.cancel()
            timer.join()
            if process.poll() is None:
                _ended(process)
                process.wait()
    if late.is_set():
        raise RuntimeError(f"not finished after {limit_s:.0f} s")
    if code not in accepted:
        raise RuntimeError(f"exit code {code}: {last_line(log)}")
    return time.monotonic() - began


def _ended(process: subprocess.Popen[str]) -> bool:
    """Kill a process and its children; return False if it has just ended by itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def printed(log: Path) -> Path:
    """Return the file for what a tool prints."""
    return log.with_suffix(".out")


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, shortened; else of what the tool printed."""
    for path in (log, printed(log)):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
        if said := [line for line in lines if line]:
            return said[-1][:200]
    return "it printed nothing"

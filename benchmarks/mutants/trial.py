"""Try one mutant: put it into a copy of the tree and run the tests of its module."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.mutants.parts import Stage

KILLED, SURVIVED, TIMED_OUT, UNCLEAR = "killed", "survived", "timed out", "unclear"
PRELOADED = ("torch", "torch._dynamo", "torch.distributed", "hypothesis", "onnx", "onnxruntime")
PROJECT = {"dq", "launcher", "slurm", "tests", "benchmarks"}
PASSED, NO_TESTS = 0, 5  # pytest's exit codes
FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a mutant.

    Attributes:
        state: `KILLED`, `SURVIVED`, `TIMED_OUT`, or `UNCLEAR`: without the mutant the tests fail
            or exceed the limit too.
        by: The test that failed first, or how pytest ended.
        seconds: Duration of the trial.
    """

    state: str
    by: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A copy of the project's tree that may be changed.

    Attributes:
        root: Its folder.
        limit_s: Seconds for one run of pytest.
        sound: Tests that were run without a mutant, and whether they passed.
    """

    root: Path
    limit_s: float
    sound: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def try_out(self, module: str, text: str, stages: Iterable[Stage]) -> Verdict:
        """Run the tests of each stage with another text of a module, until one fails.

        Args:
            module: Path below the root.
            text: Its source with the mutant.
            stages: As `benchmarks.mutants.parts.stages_for` returns them.
        """
        began, state, by = time.monotonic(), SURVIVED, ""
        for marker, files in stages:
            words = ("-m", marker, *files)
            with self._changed(module, text):
                code, output = self._pytest(words)
            if code in (PASSED, NO_TESTS):
                continue
            # A failed test is repeated without the mutant; if pytest itself failed, all tests are.
            failed = FAILURE.findall(output)[:1]
            state, by = KILLED, (failed or [f"pytest ended with {code}"])[0]
            if code is None:
                state, by = TIMED_OUT, f"more than {self.limit_s:g} s"
            if not self._is_sound(tuple(failed) or words):
                state = UNCLEAR
            break
        return Verdict(state=state, by=by, seconds=time.monotonic() - began)

    @contextlib.contextmanager
    def _changed(self, module: str, text: str) -> Iterator[None]:
        path = self.root / module
        before = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(before)

    def _is_sound(self, words: tuple[str, ...]) -> bool:
        """Whether tests pass on the unchanged tree."""
        if words not in self.sound:
            self.sound[words] = self._pytest(words)[0] == PASSED
        return self.sound[words]

    def _pytest(self, words: Sequence[str]) -> tuple[int | None, str]:
        """Run tests up to the first failure; return the exit code (None: too long) and output."""
        command = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *words]
        with tempfile.TemporaryFile() as output:
            pid = os.fork()
            if not pid:
                _be_pytest(self.root, command, output.fileno())
            code = _exit_code(pid, self.limit_s)
            output.seek(0)
            return code, output.read().decode(errors="replace")


def preload() -> None:
    """Import the packages that most tests need, but nothing of the project, to save time."""
    for name in PRELOADED:
        importlib.import_module(name)


def _be_pytest(root: Path, command: list[str], output: int) -> None:
    """Run pytest in the tree, in a new process; never return."""
    code = 3
    try:
        os.setsid()
        os.chdir(root)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
        os.environ |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
        # Old bytecode would be used if a change is within the resolution of file times.
        sys.dont_write_bytecode = True
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, but tests need it.
        sys.path.insert(0, str(root))
        sys.argv = ["pytest", *command]
        # A process that a test spawns imports the main module again.
        sys.modules["__main__"] = ModuleType("__main__")
        for name in list(sys.modules):
            if name.partition(".")[0] in PROJECT:
                del sys.modules[name]
        code = int(pytest.main(command))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(pid: int, limit_s: float) -> int | None:
    """Wait for a process and end its children; return None if it exceeds the limit."""
    end = time.monotonic() + limit_s
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # The ranks of a test may still run.
    if ended[0]:
        return os.waitstatus_to_exitcode(ended[1])
    os.waitpid(pid, 0)
    return None

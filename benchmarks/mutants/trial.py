"""Try one mutant: put it into a copy of the tree and run the tests of its module."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.mutants.parts import Stage

KILLED, SURVIVED, TIMED_OUT, UNCLEAR = "killed", "survived", "timed out", "unclear"
PASSED, NO_TESTS = 0, 5  # pytest's exit codes
FAILURE = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant.

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
            # One failed test is repeated without the mutant; if pytest itself ended, all of them.
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
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
        environ = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "PYTHONPATH": str(self.root),
            # A change within the resolution of file times must not meet old bytecode.
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "1000",
        }
        process = subprocess.Popen(
            [*command, *words],
            cwd=self.root,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.limit_s)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            # Ranks of a test may be left, and hold the pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

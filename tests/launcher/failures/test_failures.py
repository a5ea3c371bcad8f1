"""No traceback is printed: an unexpected error is one line, in every command and on every rank."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launcher.cli import COMMANDS
from launcher.failure import quiet_interpreter, report
from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.failures.injected import PLACES, fail

LINE = re.compile(
    r"error: ZeroDivisionError: injected fault, raised at tests/launcher/failures/injected\.py:\d+;"
    r" the traceback is in (\S+) \(--debug prints it\)"
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def words(config: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Return the arguments of a command."""

    def of(command: str) -> list[str]:
        given = [str(config) if word == "CONFIG" else word for word in PLACES[command][1]]
        if str(config) in given and command != "submit":
            given += ["--work-dir", str(tmp_path / "work")]
        return [command, *given]

    return of


def only_line(errors: str) -> str:
    """Return the only line of standard error; there must be no traceback."""
    (line,) = [text for text in errors.splitlines() if text.strip()]
    return line


def test_every_command_is_tried() -> None:
    assert set(PLACES) == set(COMMANDS)


@pytest.mark.parametrize("command", PLACES)
def test_error_that_nobody_foresaw_is_one_line(
    launch: Launch,
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(PLACES[command][0].replace(":", "."), fail)
    code, out, err = launch(*words(command))
    assert code == 1
    found = LINE.fullmatch(only_line(err))
    assert found, err
    assert "Traceback" not in out
    log = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in log
    assert "in fail" in log


@pytest.mark.parametrize("command", ["train", "jobs"])
def test_debug_prints_the_traceback(
    launch: Launch,
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(PLACES[command][0].replace(":", "."), fail)
    for given in ([*words(command), "--debug"], ["--debug", *words(command)]):
        code, _, err = launch(*given)
        assert code == 1
        assert LINE.fullmatch(err.splitlines()[0])
        assert "Traceback (most recent call last)" in err


class Panic(BaseException):
    """What code in another language raises: not an Exception."""


@pytest.mark.parametrize("command", ["train", "jobs"])
@pytest.mark.parametrize("error", [Panic("an index"), SystemExit(0), SystemExit("bye")])
def test_code_of_a_user_neither_ends_a_command_in_silence_nor_with_a_traceback(
    launch: Launch,
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    error: BaseException,
) -> None:
    def end(*_: object, **__: object) -> None:
        raise type(error)(*error.args)  # A new one: what is reported is noted on it.

    monkeypatch.setattr(PLACES[command][0].replace(":", "."), end)
    code, _, err = launch(*words(command))
    assert code == 1
    place = "tests/launcher/failures/test_failures.py"
    named = f"error: {type(error).__name__}: {error}, raised at {place}:"
    assert only_line(err).startswith(named)


@pytest.mark.parametrize("command", ["calibrate", "compare"])
def test_interrupted_command_says_nothing(
    launch: Launch,
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PLACES[command][0].replace(":", "."), interrupt)
    code, _, err = launch(*words(command))
    assert code == 130
    assert err == ""


def library_error(*_: object, **__: object) -> None:
    np.zeros((2, 3)) @ np.zeros((2, 3))


@pytest.mark.parametrize("command", ["train", "jobs"])
def test_value_error_of_a_library_is_not_the_users_mistake(
    launch: Launch,
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(PLACES[command][0].replace(":", "."), library_error)
    code, _, err = launch(*words(command))
    assert code == 1
    assert re.match(
        r"error: ValueError: matmul: .* raised at tests/launcher/failures/test_fail", err
    )
    only_line(err)


@pytest.mark.slow
@pytest.mark.parametrize("command", PLACES)
def test_two_ranks_say_it_once(
    words: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setenv("DQ_INJECT", PLACES[command][0])
    done = on_ranks(2, *words(command))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert LINE.fullmatch(line.replace("error: rank 1: ", "error: ")), done.stderr
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_rank_that_fails_when_the_main_rank_has_ended_does_not_say_it_again(
    words: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DQ_INJECT", PLACES["eval"][0])
    monkeypatch.setenv("DQ_INJECT_LATE", "6")  # The main rank keeps the store for two seconds.
    done = on_ranks(2, *words("eval"))
    assert done.returncode == 1
    assert LINE.fullmatch(only_line(done.stderr))


@pytest.mark.slow
def test_error_of_the_second_rank_alone_is_told_by_it(
    words: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DQ_INJECT", PLACES["train"][0])
    monkeypatch.setenv("DQ_INJECT_RANK", "1")
    done = on_ranks(2, *words("train"))
    assert done.returncode == 1
    assert only_line(done.stderr).startswith("error: rank 1: ZeroDivisionError: injected fault")


PLUGIN = """
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import PIPELINES

@PIPELINES.register_module(force=True)
class BrokenStep:
    def __call__(self, results):
        return results["what is not there"]

@HOOKS.register_module(force=True)
class FailingHook(Hook):
    def after_train_iter(self, runner):
        1 // 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_transform_of_the_users_own(
    launch: Launch,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changed.py"
    path.write_text(
        f"_base_ = [{str(config)!r}]\ncustom_imports = dict(imports=['broken_plugin'])\n"
        f"data = dict(workers_per_gpu={workers}, train=dict(dataset=dict(pipeline=["
        "dict(type='LoadImageFromFile'), dict(type='BrokenStep')])))\n"
    )
    code, out, err = launch("train", path, "--work-dir", tmp_path / "work")
    assert code == 1
    line = only_line(err)
    assert line.startswith("error: KeyError: 'what is not there', raised at ")
    assert "broken_plugin.py:8" in line
    assert ("in a loader process" in line) is (workers == 1)
    assert "Traceback" not in out


@pytest.mark.slow
def test_error_of_a_hook_of_the_users_own(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changed.py"
    path.write_text(
        f"_base_ = [{str(config)!r}]\ncustom_imports = dict(imports=['broken_plugin'])\n"
        "custom_hooks = [dict(type='FailingHook')]\n"
    )
    code, out, err = launch("train", path, "--work-dir", tmp_path / "work")
    assert code == 1
    line = only_line(err)
    assert "ZeroDivisionError" in line
    assert "broken_plugin.py:13" in line
    assert "Traceback" not in out


def test_a_user_without_a_home_gets_the_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert report(ZeroDivisionError("of a test")) == 1
    assert "ZeroDivisionError: of a test" in only_line(capsys.readouterr().err)


def test_threads_and_warnings_stay_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ZeroDivisionError("in a thread")

    with quiet_interpreter(debug=False):
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join()
        warnings.warn("something is old", DeprecationWarning, stacklevel=1)
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: thread worker ended: ZeroDivisionError: in a thread, raised at"
        r" tests/launcher/failures/test_failures\.py:\d+\n",
        err,
    )

"""The bar of a terminal stays below all other text, leaves nothing, and is nowhere else."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dq.progress
from dq.progress import BARS, Piece, has_bar, progress, show
from launcher.cli import main
from launcher.command_line.bar import progress_bar
from launcher.logs import logging_to
from tests.launcher.conftest import Launch
from tests.processes.terminal import Terminal, drawn, seen


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dq.progress, "DRAWN_EVERY_S", 0.0)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Terminal]]:
    """Make a terminal of so many columns standard output and standard error."""

    def make(columns: int = 100) -> Terminal:
        terminal = Terminal(columns)
        monkeypatch.setattr(sys, "stdout", terminal.stream)
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        return terminal

    yield make
    assert not has_bar()
    assert BARS.handlers == []


def test_lines_stay_and_the_bar_goes(on_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = on_terminal()
    log = logging.getLogger("mmcv.runner")
    with progress_bar(wanted=True), logging_to(tmp_path, rank=0) as file:
        for number in progress(range(4), "calibration", "batch[es]"):
            log.warning("a line of the log %d", number)
            print("printed", number)
            print("to stderr", number, file=sys.stderr)
            print("half a ", end="")
            show(Piece(what="in between", done=1, total=2, unit="step[s]"))
            print("line", number)
    written = terminal.close()
    lines = [line.partition(" W ")[2] or line for line in seen(written)]
    kinds = ("a line of the log", "printed", "to stderr", "half a line")
    assert lines == [f"{kind} {number}" for number in range(4) for kind in kinds] + [""]
    pictures = drawn(written)
    assert any("calibration" in p and "3 of 4 batches" in p and "s to go" in p for p in pictures)
    assert not any("in between" in picture for picture in pictures)
    assert "\x1b" not in file.read_text()
    assert "batches" not in file.read_text()


@pytest.mark.parametrize("columns", [20, 41, 100, 300])
def test_it_fits_into_the_terminal(on_terminal: Callable[..., Terminal], columns: int) -> None:
    terminal = on_terminal(columns)
    piece = Piece(
        what="epoch 2 of 12", done=3, total=90, unit="step[s]", left_s=99.0, note="loss 0.25"
    )
    with progress_bar(wanted=True):
        show(piece)
    (picture,) = drawn(terminal.close())
    assert len(picture) < columns
    assert columns < 100 or all(
        word in picture for word in ("epoch 2 of 12", "3 of 90 steps", "loss 0.25", "2 min to go")
    )


@pytest.mark.parametrize("why", ["not wanted", "no terminal", "dumb", "no rich"])
def test_elsewhere_progress_is_a_line_now_and_then(
    on_terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str
) -> None:
    terminal = on_terminal()
    monkeypatch.setattr(dq.progress, "EVERY_S", 0.0)
    out = io.StringIO()
    if why == "no terminal":
        monkeypatch.setattr(sys, "stdout", out)
    elif why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    elif why == "no rich":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with progress_bar(wanted=why != "not wanted"), logging_to(tmp_path, rank=0):
        assert not has_bar()
        list(progress(range(2), "calibration", "batch[es]"))
    written = terminal.close() + out.getvalue()
    assert "\x1b" not in written
    assert "I calibration: 1 of 2 batches, 0 s to go" in written


def test_an_error_ends_it(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()

    def work() -> None:
        with progress_bar(wanted=True):
            show(Piece(what="evaluation", done=1, total=None, unit="image[s]"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    written = terminal.close()
    assert "evaluation" in drawn(written)[0]
    assert "1 image" in drawn(written)[0]
    assert seen(written) == [""]


@pytest.mark.slow
def test_a_training_shows_epoch_loss_and_time_left(
    on_terminal: Callable[..., Terminal], config: Path, tmp_path: Path
) -> None:
    terminal = on_terminal()
    assert main(["train", str(config), "--work-dir", str(tmp_path), "--device", "cpu"]) == 0
    written = terminal.close()
    pictures = drawn(written)
    trained = [p for p in pictures if p.startswith("epoch 1 of 1") and "loss " in p]
    assert any("to go" in p and " steps" in p for p in trained)
    assert any(p.startswith("evaluation") and " images" in p for p in pictures)
    lines = seen(written)
    assert not any("━" in line for line in lines)
    assert any("Epoch [1][2/" in line for line in lines)  # mmcv's lines are whole.
    assert "━" not in (tmp_path / "logs/rank_0.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_scripts_get_none(
    on_terminal: Callable[..., Terminal], launch: Launch, config: Path, tmp_path: Path, option: str
) -> None:
    terminal = on_terminal()
    words = ["train", str(config), "--work-dir", str(tmp_path), "--device", "cpu", option]
    assert main(words) == 0
    written = terminal.close()
    assert "\x1b" not in written
    assert "━" not in written
    if option == "--json":
        assert json.loads(written[written.index("\n{") :])["stages"]

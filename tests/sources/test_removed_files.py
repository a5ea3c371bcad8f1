"""Files that others remove between a look into a folder and a look into the file.

Runs are removed, moved and cleaned up while `launcher watch` and `launcher compare` look at them,
and editors remove their files at any time.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dq.data import digits
from dq.data.formats.labelled import Photo
from dq.data.own.copies import identical
from dq.tracking.live.state import WAITING, reader_of
from dq.tracking.record.latency import read_times_as_fast
from dq.tracking.reports import experiments, html_report
from dq.tracking.reports.plots import read_log
from dq.tracking.wandb_copy import send_offline
from launcher.command_line.json_result import results_of
from launcher.commands.view import show
from launcher.stages import unlabelled
from slurm import measured
from slurm.copies import snapshot

ROOT = Path(__file__).resolve().parents[2]
LISTS = {"glob", "rglob", "iterdir", "scandir", "listdir", "walk"}
USES = {"stat", "lstat", "open", "read_text", "read_bytes", "unlink"}
# It lists a folder that it has just made, with a name of its own.
ALONE = {"dq/data/voc.py:_unpack"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one file of each kind that is listed."""
    for name in (
        "eval_onnxruntime/summary.json", "export/latency.json", "qat/1.log.json", "qat/run.json",
        "qat/metrics.jsonl", "qat/samples/a.jpg", "run-1.wandb", "image_001.png", "code/a.py",
        "code/b.py",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


def removed_when_listed(monkeypatch: pytest.MonkeyPatch, ending: str) -> list[Path]:
    """Remove each file with this ending as soon as a folder that has it was listed."""
    gone: list[Path] = []

    def wrap(name: str) -> None:
        real = getattr(Path, name)

        def listed(self: Path, *given: Any) -> Iterator[Path]:
            found = list(real(self, *given))
            for path in found:
                if path.name.endswith(ending) and path.is_file():
                    gone.append(path)
                    path.unlink()
            return iter(found)

        monkeypatch.setattr(Path, name, listed)

    for name in ("glob", "rglob", "iterdir"):
        wrap(name)
    return gone


LOOKS: dict[str, tuple[str, Callable[[Path], Any], Any]] = {
    "speed of the export": (".json", read_times_as_fast, None),
    "log of mmcv": (".json", lambda folder: read_log(folder / "qat"), []),
    "size of W&B's files": (".wandb", send_offline._size, 0),
    "results as JSON": (".json", lambda folder: results_of(folder)["stages"], {}),
    "earlier pictures": (".png", show._remove_own, None),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_file_that_is_removed_after_the_listing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    ending, look, wanted = LOOKS[name]
    gone = removed_when_listed(monkeypatch, ending)
    assert look(folder) == wanted
    assert gone


def test_a_sample_that_is_removed_is_left_out_of_the_report(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name in ("layer_noise", "ranges", "class_bars"):
        monkeypatch.setattr(html_report.report_plots, name, lambda *given: None)
    gone = removed_when_listed(monkeypatch, ".jpg")
    experiment: Any = SimpleNamespace(folder=folder, stages={"qat": None}, name="run")
    assert "<img" not in html_report._of_experiment(experiment)
    assert gone


def test_files_that_are_removed_after_they_were_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    photos: list[Any] = [Photo(file=gone / str(n), boxes=()) for n in range(2)]
    assert identical(photos) == []
    assert measured._logged(gone) == ""
    run: Any = SimpleNamespace(status="running", process={})
    assert isinstance(experiments._status(gone, run), str)
    with pytest.raises(ValueError, match=r"--images .*gone.* changes: .*a.png has been removed"):
        unlabelled._sizes(gone, ["a.png"])
    (tmp_path / "logs").mkdir()
    (tmp_path / "submissions").mkdir()
    (tmp_path / "logs/rank_0.log").symlink_to(gone)
    assert reader_of(tmp_path).read().state == WAITING


def test_digits_that_are_removed_are_a_changed_folder(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    whole = digits._digest(folder)
    real = Path.is_file

    def is_file(self: Path) -> bool:
        found = real(self)
        if self.name == "a.py":
            self.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", is_file)
    assert digits._digest(folder) != whole


@pytest.mark.parametrize("moment", ["listed", "measured"])
def test_code_that_an_editor_removes_is_left_out_of_the_snapshot(
    monkeypatch: pytest.MonkeyPatch, folder: Path, moment: str
) -> None:
    def files(top: Path) -> Iterator[Path]:
        for path in (top / "a.py", top / "b.py"):
            if moment == "listed":
                (top / "a.py").unlink(missing_ok=True)
            yield path
        (top / "a.py").unlink(missing_ok=True)

    monkeypatch.setattr(snapshot, "_files", files)
    (folder / "empty").mkdir()
    snapshot.copy_code(folder / "copy", source=folder / "empty", more=(folder / "code",))
    assert [path.name for path in (folder / "copy").rglob("*.py")] == ["b.py"]


def is_called(node: ast.AST, names: set[str]) -> bool:
    """Return whether a node is a call of a method or function with one of these names."""
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return name in names and not any(k.arg == "missing_ok" for k in node.keywords)


def guarded(node: ast.AST) -> bool:
    """Return whether a node is a ``try`` or ``with suppress`` that takes errors of the system."""
    if isinstance(node, ast.Try):
        taken = {n.id for handler in node.handlers if handler.type is not None
                 for n in ast.walk(handler.type) if isinstance(n, ast.Name)}  # fmt: skip
    elif isinstance(node, ast.With):
        taken = {n.id for item in node.items for n in ast.walk(item.context_expr)
                 if isinstance(n, ast.Name)}  # fmt: skip
    else:
        return False
    return bool(taken & {"OSError", "FileNotFoundError", "Exception"})


def unguarded(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the uses of files in a node for which nothing takes the error that one is gone."""
    for child in ast.iter_child_nodes(node):
        if not guarded(child):
            if is_called(child, USES):
                yield child
            yield from unguarded(child)


@pytest.mark.parametrize("package", ["dq", "launcher", "slurm"])
def test_whoever_lists_a_folder_and_looks_into_its_files_expects_that_one_is_gone(
    package: str,
) -> None:
    wrong = []
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            if any(is_called(inner, LISTS) for inner in ast.walk(node)) and [*unguarded(node)]:
                wrong.append(f"{path.relative_to(ROOT).as_posix()}:{node.name}")
    assert set(wrong) <= ALONE

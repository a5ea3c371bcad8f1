"""A rank that cannot start is reported once, by itself or by the main rank."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dq.dist.group import early_failure
from launcher.cli import main
from tests.launcher.conftest import rank_environments, torchrun
from tests.processes.warm import WarmProcess

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How ranks ended: their exit codes and error lines."""

    codes: list[int]
    errors: list[str]
    seconds: float


def run(
    folder: Path,
    *ranks: tuple[int, int, Sequence[object], Mapping[str, str]],
    limit_s: float = 90.0,
) -> Ended:
    """Run ranks, each with its own arguments and environment variables.

    Args:
        folder: For their output.
        ranks: Of each its number, the number of ranks it is told of, its arguments and variables.
        limit_s: Time limit for all ranks, in seconds.
    """
    places = rank_environments(max(size for _, size, _, _ in ranks))
    began = time.monotonic()
    processes = []
    for rank, size, words, more in ranks:
        own = {**places[rank], "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        environ = {**os.environ, **own, **more}
        for name in [name for name, value in more.items() if not value]:
            del environ[name]
        with (folder / f"out_{rank}.txt").open("wb") as file:
            arguments = [str(word) for word in words]
            processes.append(WarmProcess(arguments, environ=environ, output=file))
    try:
        codes = [process.wait(limit_s) for process in processes]
    finally:
        for process in processes:
            process.end()
    output = "".join((folder / f"out_{rank}.txt").read_text() for rank, *_ in ranks)
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    return Ended(codes=codes, errors=errors, seconds=time.monotonic() - began)


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A work dir that cannot be created."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "work"


@pytest.mark.parametrize("words", [("train", "CONFIG"), ("train", "CONFIG", "--bogus")])
def test_a_lone_process_that_is_told_to_be_rank_1(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
) -> None:  # fmt: skip
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    try:
        code = main([str(config) if word == "CONFIG" else word for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("error: rank 1: ")


@pytest.mark.parametrize("number", [0, 1])
def test_a_work_dir_that_one_node_cannot_write(
    config: Path, tmp_path: Path, blocked: Path, number: int
) -> None:
    dirs = [tmp_path / "w", tmp_path / "w"]
    dirs[number] = blocked
    ranks = [(r, 2, ("train", config, "--work-dir", dirs[r]), {}) for r in range(2)]
    ended = run(tmp_path, *ranks)
    assert ended.codes == [2, 2]
    (line,) = ended.errors
    named = "" if number == 0 else "rank 1 of 2 could not begin: "
    assert line.startswith(f"error: {named}work dir {blocked}/logs cannot be written")
    assert ended.seconds < 60.0, "nobody waits for the arrival time-out"


def test_a_device_that_one_node_has_not(config: Path, tmp_path: Path) -> None:
    words = ["train", config, "--work-dir", tmp_path / "w"]
    ended = run(tmp_path, (0, 2, words, {}), (1, 2, [*words, "--device", "cuda:7"], {}))
    assert ended.codes == [2, 2]
    (line,) = ended.errors
    assert re.match(r"error: rank 1 of 2 could not begin: --device cuda:7: this machine has", line)


def test_what_nobody_foresaw_on_a_later_rank_of_a_node(config: Path, tmp_path: Path) -> None:
    words = ["train", config, "--work-dir", tmp_path / "w"]
    more = {"DQ_INJECT": "launcher.session:choose_device", "XDG_CACHE_HOME": str(tmp_path)}
    ended = run(tmp_path, (0, 3, words, {}), (1, 3, words, {}), (2, 3, words, more))
    assert ended.codes == [1, 1, 1]
    (line,) = ended.errors
    assert "rank 2 of 3 could not begin: ZeroDivisionError: injected fault, raised at" in line


def test_without_a_main_rank_the_rank_itself_says_it(
    config: Path, tmp_path: Path, blocked: Path
) -> None:
    words = ["train", config, "--work-dir", blocked]
    ended = run(tmp_path, (1, 2, words, {}))
    assert ended.codes == [2]
    (line,) = ended.errors
    assert line.startswith("error: rank 1: work dir")
    nowhere = run(tmp_path, (1, 2, words, {"MASTER_ADDR": ""}))
    assert nowhere.errors == ended.errors
    assert nowhere.seconds < early_failure.REACH_S, "there is nobody to be asked"


def test_without_a_main_rank_nothing_begins(config: Path, tmp_path: Path) -> None:
    words = ["train", config, "--work-dir", tmp_path / "w", "--arrival-timeout", "3"]
    ended = run(tmp_path, (1, 2, words, {}))
    assert ended.codes == [1]
    (line,) = ended.errors
    assert "rank 1 of 2 found no process group" in line


@pytest.mark.parametrize("words", [("--device", "gpu"), ("--bogus",)])
def test_a_mistake_of_all_ranks_is_said_by_the_main_one(
    config: Path, tmp_path: Path, words: Sequence[str]
) -> None:
    line = ["train", config, "--work-dir", tmp_path / "w", *words]
    ended = run(tmp_path, (0, 2, line, {}), (1, 2, line, {}))
    assert ended.codes == [2, 2]
    assert len(ended.errors) == 1
    assert not ended.errors[0].startswith("error: rank")


def test_under_torchrun_it_is_said_once(config: Path, tmp_path: Path) -> None:
    done = torchrun(2, "train", config, "--work-dir", tmp_path / "w", "--device", "gpu")
    assert done.returncode
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "--device gpu is not known" in lines[0]


def test_a_config_that_one_node_has_not(config: Path, tmp_path: Path) -> None:
    where = ("--work-dir", tmp_path / "w")
    missing = config.with_name("missing.py")
    ended = run(
        tmp_path, (0, 2, ("train", config, *where), {}), (1, 2, ("train", missing, *where), {})
    )
    assert ended.codes[1] == 2
    assert ended.codes[0] != 0
    (line,) = ended.errors
    assert line.startswith("error: rank 1: ")
    assert "missing.py" in line

"""A command never replaces a file that it has written or read itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from launcher.cli import build_parsers
from launcher.command_line.written import check_outputs
from launcher.commands.compare import WRITTEN
from tests.launcher.conftest import Launch


@pytest.mark.parametrize(("one", "other"), itertools.permutations(WRITTEN, 2))
def test_two_formats_of_a_comparison_need_two_files(
    one: str, other: str, launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    words = (f"--{one}", tmp_path / "x", f"--{other}", tmp_path / "link/x")
    code, _, err = launch("compare", tmp_path, *words)
    assert code == 2
    assert "is the file of --" in err
    assert "give another file" in err
    assert len(err.strip().splitlines()) == 1


def test_the_numbers_of_a_bench_do_not_replace_a_model(launch: Launch, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    code, _, err = launch("bench", model, "--json", model)
    assert code == 2
    assert f"--json {model} is the file that the command reads; give another file" in err
    assert model.read_bytes() == b"weights"


def test_a_stream_may_be_given_twice() -> None:
    check_outputs({"--csv": Path("/dev/stdout"), "--json": Path("/dev/stdout"), "--html": None})


def test_no_other_command_writes_several_files_to_given_places() -> None:
    """A command with two options for files that it writes must check them with `check_outputs`."""
    found = {}
    for name, parser in build_parsers()[1].items():
        options = {
            action.option_strings[-1]
            for action in parser._actions
            if action.type is Path
            and action.option_strings
            and str(action.metavar).startswith("FILE")
        }
        if len(options) > 1:
            found[name] = options
    assert found == {"compare": {f"--{name}" for name in WRITTEN}}

"""docs/library.md: its examples run unchanged, in one process and on two ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dq.dist
import dq.quant
from tests.conftest import ROOT

PAGE = ROOT / "docs/library.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(folder: Path, code: str, *command: str) -> str:
    (folder / "train.py").write_text(code)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, "train.py"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_alone(tmp_path: Path) -> None:
    run(tmp_path, examples()[0])
    assert (tmp_path / "model.onnx").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_on_ranks(ranks: int, tmp_path: Path) -> None:
    out = run(
        tmp_path,
        examples()[1],
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)),
    )
    digests = re.findall(r"rank \d of (\d): (\w{8})", out)
    assert len(digests) == ranks
    assert set(digests) == {(str(ranks), digests[0][1])}
    assert (tmp_path / "last.pth").is_file()


def test_the_public_names_are_there() -> None:
    for face in (dq.quant, dq.dist):
        assert sorted(face.__all__) == list(face.__all__)
        for name in face.__all__:
            assert getattr(face, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dq.dist.nothing

"""A config that cannot be read leaves no file open, which would print a traceback much later."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from dq.detector.config.config_file import load_config_file

BROKEN = {
    "raises.py": "raise RuntimeError('no')",
    "syntax.py": "model = dict(",
    "base.py": "_base_ = ['raises.py']",
    "broken.json": "{",
    "broken.yaml": "a: [",
    "ends.py": "import sys\nsys.exit('no')",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_leaves_no_open_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, text in BROKEN.items():
        (tmp_path / file).write_text(text)
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    path = list(sys.path)
    with pytest.raises(BaseException):  # noqa: B017, PT011 (each file breaks in its own way)
        load_config_file(tmp_path / name)
    gc.collect()
    assert not complaints
    assert sys.path == path

"""The config inside a file is read as data: no code in it is run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dq.detector.config.config_text import config_text, read_config_text, refuse_code
from dq.detector.config.read import CarriedConfig, read_config
from tests.detector.minimal import minimal

SOURCE = Path("model.onnx")
WORDS = ["it's", 'a "b"', "back\\slash\\new", "two\nlines", "'both\"", "ü", "a' + 'b", "{{x}}"]


def test_text_reads_back_as_the_same() -> None:
    numbers = [1, -2.5, float("inf"), -float("inf"), 10**20, range(3), {1, 2}, (1,), None, True]
    config = minimal(paths=WORDS, nested={"a": [{"b": numbers}], 3: "key"})
    again = read_config_text(config_text(config), SOURCE)
    assert again._cfg_dict.to_dict() == config._cfg_dict.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.ran = 1",
        "a = __import__('sys').__setattr__('ran', 1)",
        "a = [setattr(__import__('sys'), 'ran', 1) for _ in (1,)]",
        "a = (lambda: 1)()",
        "a = b = 1",
        "a: int = 1",
        "a += 1",
        "if True: a = 1",
        "def a(x=__import__('sys').exit()): pass",
        "a = f'{__import__(\"sys\").exit()}'",
        "a = range(__import__('sys').exit())",
        "a = range('x')",
        "a = open('/etc/passwd').read()",
        "a = {**open}",
        "a.b = 1",
        "a, b = 1, 2",
        "_base_ = ['/tmp/other.py']",
        "__builtins__ = x",
        "a = (",
        "a = " + "(" * 300 + ")" * 300,
        "a = " + "-" * 100_000 + "1",
        "a = 1\x00",
    ],
)
def test_anything_but_plain_values_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"config in model.onnx is not made of plain values"):
        read_config_text(text, SOURCE)
    assert not hasattr(sys, "ran")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"custom_imports": {"imports": ["this_runs"]}}, "this_runs"),
        ({"custom_imports": {"imports": "this_runs"}}, "this_runs"),
        ({"custom_imports": {"imports": ("mmdet.core", "this_runs")}}, "imports this_runs,"),
        ({"data": {"test": {"ann_file": "http://host/a.pkl?x=1"}}}, r"data\.test\.ann_file"),
        ({"data": {"test": {"dataset": [{"proposal_file": "P.PICKLE"}]}}}, r"dataset\[0\]"),
    ],
)
def test_a_config_in_a_file_runs_code_only_if_trusted(
    change: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "this_runs.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "this_runs", raising=False)
    text = config_text(minimal(**change))
    with pytest.raises(ValueError, match=rf"{named}.*--trust-checkpoint"):
        read_config("model.onnx", carried=CarriedConfig(text=text))
    assert "this_runs" not in sys.modules
    assert read_config("model.onnx", carried=CarriedConfig(text=text, trusted=True)).model
    refuse_code(minimal(), SOURCE)


def test_what_every_process_imports_anyway_is_no_danger() -> None:
    imports = {"imports": ["dq.detector.survey.stop_hook", "mmdet.core", "mmcv"]}
    refuse_code(minimal(custom_imports=imports), SOURCE)

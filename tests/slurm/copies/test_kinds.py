"""Configs in Python, JSON and YAML are copied for a job, and the copy reads as the original."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.detector.config.config_file import load_config_file
from slurm.copies.config_files import check_config, copy_config, literal_setting

BASES = {
    "a.py": "name = 'a'\nsize = (1, 2)\n",
    "b.yaml": "other: b\nnested:\n  deep: 3\n",
    "c.json": '{\n\t"third": "c"\n}',
}
CONFIGS = {
    "list.yaml": "_base_:\n  - a.py\n  - b.yaml\nmore: 1\n",
    "first column.yaml": "_base_:\n- a.py\n- c.json\nmore: 1\n",
    "last.yml": "more: 1\n_base_: [a.py, ./b.yaml]",
    "one.yaml": "# a comment\n_base_: a.py   # another\nmore: 1\n",
    "quoted.yaml": "_base_: 'b.yaml'\nmore: [{{ _base_.other }}, 2]\n",
    "of_base.yaml": "_base_: b.yaml\nmore: {{_base_.nested.deep}}\n",
    "here.yaml": "_base_: {{ fileDirname }}/b.yaml\nwhere: {{ fileDirname }}\n",
    "none.yaml": "more: 1\n",
    "tabs.json": '{\n\t"_base_": ["b.yaml", "a.py"],\n\t"more": 1\n}\n',
    "one.json": '{"more": {{ _base_.third }}, "_base_": "c.json"}',
    "of_yaml.py": "_base_ = ['b.yaml', './c.json']\nmore = {{_base_.other}}\n",
    "here.py": "_base_ = '{{ fileDirname }}/a.py'\nmore = 1\n",
    "one_line.py": "_base_ = 'a.py'; more = 1\n",
    "wide.py": "größe = 'ü'; _base_ = (\n    'b.yaml'  # why\n); more = 'ü'\n",
    "form_feed.py": "before = 1\n\f\n_base_ = ['a.py',\n          'c.json']\nmore = 1\n",
}


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    for name, text in BASES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_the_copy_reads_as_the_original(bases: Path, name: str) -> None:
    path = bases / name
    path.write_text(CONFIGS[name], encoding="utf-8")
    check_config(path)
    copy = copy_config(path, bases / "copy")
    wanted = dict(load_config_file(path)._cfg_dict)
    for base in BASES:  # The copy must not read them any more.
        (bases / base).unlink()
    assert dict(load_config_file(copy)._cfg_dict) == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.yaml", "_base_: b.yaml\nwork_dir: /mine\n"),
        ("m.json", '{"work_dir": "/mine"}'),
        ("m.py", "work_dir = '/mine'\n"),
        ("m.yml", "_base_: [a.py, w.yaml]\n"),
        ("m.py", "_base_ = ['w.yaml']\nwork_dir: str = '/mine'\n"),
    ],
)
def test_a_setting_is_found(bases: Path, name: str, text: str) -> None:
    (bases / "w.yaml").write_text("work_dir: /mine\n")
    (bases / name).write_text(text)
    assert literal_setting(bases / name, "work_dir") == "/mine"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.yaml", "a: [1\nb: 2\n", r"cannot be read: line \d: expected"),
        ("m.json", '{"a": 1,\n}', "cannot be read: line 2: "),
        ("m.json", "[1]", "has no settings"),
        ("m.yaml", "", "has no settings"),
        ("m.yaml", "a: 1\n? [b, c]\n: 2\n", "cannot be read: line 2: a key is no text"),
        ("m.py", "a = \n", "cannot be read: line 1: invalid syntax"),
        ("m.toml", "a = 1\n", r"is none of .py, .json, .yaml, .yml; "),
        ("m.yaml", "_base_: 5\n", "_base_ has 5, which is no path"),
        ("m.yaml", "_base_: {a: 1}\n", "_base_ has {}, which is no path"),
        ("m.yaml", "_base_: nowhere.yaml\n", "No such file"),
        ("m.json", '{"_base_": ["a.py", null]}', "_base_ has None, which is no path"),
        ("m.json", '{"_base_": "m.json"}', "is its own base"),
    ],
)
def test_a_config_that_is_wrong_is_named(bases: Path, name: str, text: str, said: str) -> None:
    (bases / name).write_text(text)
    with pytest.raises(ValueError, match=rf"config {bases}/\S+.*{said}"):
        check_config(bases / name)

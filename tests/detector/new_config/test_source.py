"""The source of a config: it gives the settings back, and people can read it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from mmcv import Config

from dq.detector.config.read import read_config
from dq.detector.new_config.source import WIDTH, source

SETTINGS: dict[str, Any] = {
    "classes": ("red thing", "grün", 'a "b" \\ c', "it's"),
    "image_size": (96, 96),
    "data_root": "/my data",
    "annotations": "/here",
    "model": {"backbone": {"depth": 18}, "type": "RetinaNet", "one": (1,), "range": (-1, 1e8)},
    "train_pipeline": [{"type": "Resize", "img_scale": "${image_size}", "keep_ratio": False}],
    "test_pipeline": [{"type": "Pad", "val": {"img": (114.0, 114.0)}, "empty": [], "none": None}],
    "data": {
        "train": {
            "pipeline": [{"type": "Resize", "img_scale": "${image_size}", "keep_ratio": False}],
            "ann_file": "${annotations}/train.json",
            "classes": "${classes}",
        }
    },
    "quant": {"training": {"optimizer.lr": 1e-4, "runner.max_epochs": 1}},
    "not for readers": 1,
}


def test_the_file_gives_the_settings_back(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(source(SETTINGS, ["First.", "", "Last."]), encoding="utf-8")
    found = read_config(path)
    assert Config.fromfile(str(path)).data.train.ann_file == "/here/train.json"
    for name in ("classes", "image_size", "data_root", "model", "test_pipeline", "quant"):
        assert found[name] == SETTINGS[name], name
    assert found.data.train.pipeline == found.train_pipeline
    assert tuple(found.train_pipeline[0].img_scale) == (96, 96)
    assert found.data.train.ann_file == "/here/train.json"
    assert found.data.train.classes == SETTINGS["classes"]


def test_it_is_made_for_readers() -> None:
    text = source(SETTINGS, ["First.", "", "Last."])
    assert text.startswith("# First.\n#\n# Last.\n\n# The data.")
    assert 'pipeline=train_pipeline, ann_file=annotations + "/train.json"' in text
    assert "not for readers" not in text
    assert 'model = dict(type="RetinaNet", backbone=' in text
    ast.parse(text)


@pytest.mark.parametrize("length", range(60, 110))
def test_no_line_is_too_long(length: int) -> None:
    numbers = list(range(length))
    text = source({"model": {"type": "x", "a": {"b": numbers}}, "quant": {"k.l": numbers}}, [])
    assert max(map(len, text.splitlines())) <= WIDTH
    content: dict[str, Any] = {}
    exec(text, content)
    assert content["model"]["a"]["b"] == content["quant"]["k.l"] == numbers

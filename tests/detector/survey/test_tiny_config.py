"""One config of each family, and its small version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dq.data.tiny_coco import CLASSES
from dq.detector.config.config_file import load_config_file
from dq.detector.survey.families import representatives
from dq.detector.survey.tiny_config import tiny_config


def test_every_family_has_a_config() -> None:
    configs = representatives()
    assert len(configs) > 80
    assert all(path.is_file() and path.parent.name == name for name, path in configs.items())


def test_unknown_family_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean retinanet"):
        representatives(["retinanett"])


def values(section: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(section, dict):
        for name, value in section.items():
            yield from values(value, name)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from values(value, key)
    else:
        yield key, section


@pytest.mark.slow
def test_every_family_has_a_small_config_without_downloads(tmp_path: Path) -> None:
    for name, path in representatives().items():
        text = tiny_config(path, tmp_path)
        file = tmp_path / "small.py"
        file.write_text(text)
        config = load_config_file(file)
        for key, value in values(config._cfg_dict.to_dict()):
            assert "://" not in str(value), f"{name}: {key} is {value}"
            if key in ("ann_file", "img_prefix", "seg_prefix", "proposal_file"):
                assert str(value).startswith(str(tmp_path)), f"{name}: {key} is {value}"
        assert config.data.test.classes == CLASSES
        original = load_config_file(path)
        assert config.model.type == original.model.type

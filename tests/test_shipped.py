"""Configs that ship: found by name. The wheel is tested in tests/setup/test_distribution.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq import shipped
from dq.detector.config.read import read_config
from dq.version import version

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "configs/digits/ssd_resnet_fpn_160.py"


@pytest.mark.parametrize(
    "name",
    [
        "digits/ssd_resnet_fpn_160",
        "digits/ssd_resnet_fpn_160.py",
        "configs/digits/ssd_resnet_fpn_160.py",
        "./configs/digits/ssd_resnet_fpn_160",
    ],
)
def test_a_name_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.located(name) == str(OWN)


def test_the_last_part_is_enough_if_it_is_the_only_one() -> None:
    assert shipped.located("ssd_mobilenet_fpn") == str(ROOT / "configs/ssd/ssd_mobilenet_fpn.py")
    with pytest.raises(ValueError, match="several configs are called ssd_mobilenet_fpn_256: aqua"):
        shipped.located("ssd_mobilenet_fpn_256")


def test_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ssd_mobilenet_fpn.py", "yolox_160"):
        Path(name).touch()
        assert shipped.located(name) == name
    assert shipped.located("nowhere.py") == "nowhere.py"


def test_the_nearest_name_is_said() -> None:
    for name, near in (
        ("digits/ssd_resnet_fpn_16", "digits/ssd_resnet_fpn_160"),
        ("yolox_nano_416", "yolox_nano_416_ptq"),
    ):
        with pytest.raises(ValueError, match=f"did you mean {near}\\?"):
            shipped.located(name)


@pytest.mark.parametrize("name", shipped.shipped())
def test_every_config_has_a_first_line_and_is_read(name: str) -> None:
    path = shipped.shipped()[name]
    assert len(shipped.first_line(path)) > 20
    assert read_config(path).model


def test_parts_are_not_listed() -> None:
    assert not [n for n in shipped.shipped() if n.startswith(("_base_", "detectors"))]
    assert {"ssd_mobilenet", "yolox_nano", "retinanet_r18"} <= set(shipped.detectors())


def test_the_version_is_that_of_the_project() -> None:
    assert f'version = "{version()}"' in (ROOT / "pyproject.toml").read_text()

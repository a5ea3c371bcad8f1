from __future__ import annotations

from pathlib import Path

import pytest

from dq.detector.config import finish, parse_options, read_config
from dq.detector.data import test_classes as classes_of

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("[!_]*/*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_is_read_and_builds(path: Path) -> None:
    from dq.detector.build import build_model

    config = finish(read_config(path))
    assert build_model(config, classes_of(config), initialise=False) is not None


def test_options_follow_mmdet_syntax() -> None:
    options = parse_options(["optimizer.lr=0.01", "size=(3,4)", "a.b=[1,x]", "c=None"])
    assert options["optimizer.lr"] == 0.01
    assert options["a.b"] == [1, "x"]


def test_data_root_given_later_reaches_every_path() -> None:
    path = next(p for p in CONFIGS if p.parent.name == "bccd")
    config = read_config(path, ["data_root=/somewhere"])
    assert config.data.test.ann_file == "/somewhere/ImageSets/Main/test.txt"
    assert config.data.train.dataset.img_prefix == "/somewhere/"
    assert config.data.train.dataset.classes == ("RBC", "WBC", "Platelets")

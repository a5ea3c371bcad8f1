from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dq.detector.config.options import parse_options
from dq.detector.config.read import finish, read_config, training_config
from dq.detector.data.datasets import test_classes as classes_of
from tests.detector.minimal import minimal

CONFIGS = sorted((Path(__file__).resolve().parents[3] / "configs").glob("[!_]*/*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_is_read_and_builds(path: Path) -> None:
    from dq.detector.model.build import build_model

    config = finish(read_config(path))
    assert build_model(config, classes_of(config), initialise=False) is not None


def test_options_follow_mmdet_syntax() -> None:
    options = parse_options(["optimizer.lr=0.01", "size=(3,4)", "a.b=[1,x]", "c=None"])
    assert options["optimizer.lr"] == 0.01
    assert options["a.b"] == [1, "x"]


def test_data_root_given_later_changes_every_path() -> None:
    path = next(p for p in CONFIGS if p.parent.name == "bccd")
    config = read_config(path, ["data_root=/somewhere"])
    assert config.data.test.ann_file == "/somewhere/ImageSets/Main/test.txt"
    assert config.data.train.dataset.img_prefix == "/somewhere/"
    assert config.data.train.dataset.classes == ("RBC", "WBC", "Platelets")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.py"
    path.write_text(f"model = dict(type='RetinaNet')\ndata = dict(train=dict())\n{text}\n")
    return path


def test_options_are_applied_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registers_it.py").write_text("import sys\nsys.registered_it = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "registered_it", False, raising=False)
    path = write(tmp_path, "name = 'a'\nwork_dir = 'runs/${name}'\n")
    config = read_config(path, ["name=b", "custom_imports.imports=registers_it"])
    assert config.work_dir == "runs/b"
    assert sys.registered_it  # type: ignore[attr-defined]


def test_data_root_is_changed_by_environment_and_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "data_root = 'data/coco/'\n"
        "data = dict(train=[dict(ann_file=[data_root + 'a.json', '/other/data/coco/b.json'])],"
        " test=dict(img_prefix=data_root + 'images', ann_file='${data_root}c.json'))"
    )
    path = write(tmp_path, text)
    monkeypatch.setenv("MMDET_DATASETS", "/env")
    for options, root in (([], "/env/"), (["data_root=/option"], "/option/")):
        config = read_config(path, options)
        assert config.data.train[0].ann_file == [f"{root}a.json", "/other/data/coco/b.json"]
        assert config.data.test.img_prefix == f"{root}images"
        assert config.data.test.ann_file == f"{root}c.json"
    monkeypatch.delenv("MMDET_DATASETS")
    assert read_config(path).data.test.img_prefix == "data/coco/images"


@pytest.mark.parametrize("root", ["data/coco", "data/coco/", "/data/coco", "/data/coco/"])
@pytest.mark.parametrize(
    ("inside", "moves"),
    [("", True), ("/", True), ("/a.json", True), ("/b/c", True)]
    + [(end, False) for end in ("_extra/x.json", "2017/x.json", ".json", "-old", "s/")],
)
@pytest.mark.parametrize("goal", ["/new", "/new/"])
def test_data_root_is_a_folder_not_a_beginning(
    root: str, inside: str, moves: bool, goal: str, tmp_path: Path
) -> None:
    given = root.rstrip("/") + inside
    path = write(tmp_path, f"data_root = {root!r}\ndata = dict(val=dict(ann_file={given!r}))\n")
    found = read_config(path, [f"data_root={goal}"]).data.val.ann_file
    if moves:
        assert Path(found) == Path(f"/new{inside}")
    else:
        assert found == given


@pytest.mark.parametrize(
    ("module", "allowed", "message"),
    [
        (None, False, "module its_name cannot be imported: ModuleNotFoundError.*PYTHONPATH"),
        ("import nothing_there", False, "No module named 'nothing_there'; install nothing_there"),
        ("1 / 0", False, r"ZeroDivisionError: division by zero \(raised at .*its_name.py:1\)"),
        ("1 / 0", True, "ZeroDivisionError"),
        ("import sys; sys.exit(3)", False, "SystemExit: 3"),
        ("def", False, "SyntaxError"),
        ("raise ImportError('not today')", True, None),
    ],
)
def test_custom_import_that_fails_names_module_and_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str | None,
    allowed: bool,
    message: str | None,
) -> None:
    if module is not None:
        (tmp_path / "its_name.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "its_name", raising=False)
    section = f"dict(imports=['its_name'], allow_failed_imports={allowed})"
    path = write(tmp_path, f"custom_imports = {section}")
    if message is None:
        assert read_config(path) is not None
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert "module its_name cannot be imported" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise RuntimeError('mine')", "RuntimeError: mine"),
        ("timer_config = dict(type='X')", "nothing reads timer_config"),
        ("path = '${nothing}/x'", "cannot be resolved"),
        ("custom_imports = dict(import_=['x'])", "custom_imports is"),
        ("custom_imports = dict(imports=3)", "imports is 3"),
    ],
)
def test_config_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"total_epochs": 3}, "total_epochs is 3 but runner has max_epochs=2"),
        ({"runner": {"max_epochs": 3}}, "runner is"),
        ({"workflow": [("val", 1)]}, "workflow is"),
        ({"workflow": [("train", 1), ("val", 1), ("val", 1)]}, "workflow is"),
        ({"workflow": [("train", True)]}, "workflow is"),
        ({"evaluation": [1]}, "evaluation must be a dict"),
        ({"data": {"train": {}, "samples_per_gpu": 2, "train_dataloader": {"samples_per_gpu": 3}}},
         "contradicts itself"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finish(minimal(**more))


def test_old_names_are_accepted() -> None:
    config = finish(minimal(runner=None, total_epochs=7, data={"train": {}, "imgs_per_gpu": 5}))
    assert config.runner == {"type": "EpochBasedRunner", "max_epochs": 7}
    assert config.data.train_dataloader.samples_per_gpu == 5
    assert "val" not in config.data
    assert finish(config)._cfg_dict == config._cfg_dict


def test_training_may_replace_a_section_and_does_so_each_time() -> None:
    overrides = {
        "optimizer": {"_delete_": True, "type": "AdamW", "lr": 1e-4},
        "data.samples_per_gpu": 3,
        "total_epochs": 1,
    }
    config = finish(minimal())
    for _ in range(2):
        changed = training_config(config, overrides)
        assert changed.optimizer == {"type": "AdamW", "lr": 1e-4}
        assert changed.data.train_dataloader.samples_per_gpu == 3
        assert changed.runner.max_epochs == 1
    assert config.optimizer.type == "SGD"


@pytest.mark.parametrize("key", ["model.backbone.depth", "seed", "data.test.type", "guards"])
def test_training_refuses_keys_that_it_does_not_read(key: str) -> None:
    with pytest.raises(ValueError, match=f"quant.training: {key} is not read"):
        training_config(finish(minimal()), {key: 1})


def test_a_config_that_ends_the_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read: SystemExit: not today"):
        read_config(write(tmp_path, "import sys; sys.exit('not today')"))

"""Each setting that differs in a resumed training is applied, refused, or needs consent."""

from __future__ import annotations

from dataclasses import fields

import pytest

from dq.detector.config.mmdet_keys import KEYS, OWN_KEYS, TOP_LEVEL_KEYS
from dq.quant.recipes.recipe import Recipe
from launcher.config import quant_settings
from launcher.settings import (
    IMAGES,
    NOT_SET,
    Applied,
    Change,
    applied,
    changes_of,
    described,
    described_quantization,
    names_of,
    shown,
)
from tests.detector.minimal import minimal


def change(name: str) -> Change:
    return Change(name=name, before="1", now="2")


# Each top-level key, and what happens if a training resumes with another value of it.
FREE = {
    *("log_config", "log_level", "checkpoint_config", "tracking", "guards", "evaluation"),
    *("data_root", "custom_imports", "quantize", "gpu_ids", "dist_params", "mp_start_method"),
    *("opencv_num_threads", "cudnn_benchmark", "deterministic", "find_unused_parameters"),
    *("compile", "channels_last", "allow_tf32", "device", "test_cfg", "total_epochs"),
}
ASKED = {
    *("model", "train_cfg", "data", "optimizer", "optimizer_config", "fp16", "lr_config"),
    *("momentum_config", "runner", "workflow", "custom_hooks", "seed", "auto_scale_lr"),
    *("accumulate", "model_wrapper"),
}
NO_SETTING = {"work_dir", "load_from", "resume_from", "auto_resume", "quant"}


def test_every_key_of_a_config_is_in_one_class() -> None:
    assert set(TOP_LEVEL_KEYS) == FREE | ASKED | NO_SETTING
    assert set(OWN_KEYS) < FREE | ASKED | NO_SETTING


@pytest.mark.parametrize("name", sorted(FREE))
def test_what_decides_nothing_of_what_is_learned_is_applied(name: str) -> None:
    for below in (name, f"{name}.anything"):
        assert applied([change(below)], (), "f.pth", {}) == Applied()


@pytest.mark.parametrize("name", sorted(ASKED))
def test_what_decides_is_refused_with_the_mend_unless_it_is_asked_for(name: str) -> None:
    below = f"{name}.anything"
    with pytest.raises(ValueError, match=r"f\.pth was made with other settings") as caught:
        applied([change(below)], (), "f.pth", {})
    line = str(caught.value)
    assert f"{below} 1 -> 2" in line
    assert f"--resume-with {below}" in line
    assert "\n" not in line
    for consent in (name, below):
        found = applied([change(below)], names_of([consent]), "f.pth", {})
        assert found.optimizer is (name in ("optimizer", "auto_scale_lr"))
        assert found.micro_batches is (name == "accumulate")
    with pytest.raises(ValueError, match="other settings"):
        applied([change(below)], (f"{below}.deeper", f"{name}x"), "f.pth", {})


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("data.val.ann_file", True),
        ("data.test.pipeline.1.scale", True),
        ("data.workers_per_gpu", True),
        ("data.train_dataloader.workers_per_gpu", True),
        ("data.train_dataloader.samples_per_gpu", False),
        ("data.train.pipeline.0.type", False),
        ("data.train.ann_file", False),
        (IMAGES, False),
        ("model.backbone.init_cfg.checkpoint", True),
        ("model.init_cfg", True),
        ("model.pretrained", True),
        ("model.test_cfg.score_thr", True),
        ("model.train_cfg.assigner.pos_iou_thr", False),
        ("runner.max_epochs", True),
        ("runner.max_iters", True),
        ("sync_bn", False),
        ("torch", True),
        ("checkpoint", True),
        ("quant.schedule.calibration_batches", True),
        ("quant.schedule.freeze_norm_after", False),
        ("quant.repair.steps", True),
        ("quant.ema.momentum", False),
        ("quant.learned_lr", False),
    ],
)
def test_settings_inside_sections(name: str, free: bool) -> None:
    if free:
        assert applied([change(name)], (), "f.pth", {}) == Applied()
        return
    with pytest.raises(ValueError, match="other settings"):
        applied([change(name)], (), "f.pth", {})
    applied([change(name)], (name,), "f.pth", {})


@pytest.mark.parametrize("name", ["runner.type", "quant.weight.bits", "quant.rules.0.module",
                                  "quant.learned"])  # fmt: skip
def test_what_a_checkpoint_cannot_go_on_with_is_refused_whatever_is_asked(name: str) -> None:
    with pytest.raises(ValueError, match="start a new training without --resume") as caught:
        applied([change(name)], ("runner", "quant", name), "f.pth", {})
    assert "--resume-with" not in str(caught.value)


def test_a_teacher_makes_the_checkpoint_one_began_from_count() -> None:
    with pytest.raises(ValueError, match="checkpoint 1 -> 2"):
        applied([change("checkpoint")], (), "f.pth", {"quant.distill.weight": "1.0"})
    applied([change("checkpoint")], (), "f.pth", {"quant.distill": "None"})


def test_the_same_images_may_lie_elsewhere() -> None:
    before = {IMAGES: "'abc'", "data.train.ann_file": "'/a/x'", "data.train.type": "'A'"}
    now = {**before, "data.train.ann_file": "'/b/x'"}
    assert changes_of(before, now) == []
    for images in ("'def'", "None"):
        names = [c.name for c in changes_of(before, {**now, IMAGES: images})]
        assert names == [IMAGES, "data.train.ann_file"]
    unknown = {**before, IMAGES: "None"}
    assert [c.name for c in changes_of(unknown, {**now, IMAGES: "None"})] == ["data.train.ann_file"]


def test_settings_that_come_or_go_are_changes() -> None:
    (gone,) = changes_of({"a": "1", "b": "2"}, {"a": "1"})
    (come,) = changes_of({"a": "1"}, {"a": "1", "b": "2"})
    assert str(gone) == f"b 2 -> {NOT_SET}"
    assert str(come) == f"b {NOT_SET} -> 2"


def test_many_and_long_changes_stay_one_short_line() -> None:
    many = [Change(name=f"data.train.pipeline.{i}.type", before="x" * 500, now="2")
            for i in range(40)]  # fmt: skip
    assert "and 36 more" in shown(many)
    with pytest.raises(ValueError, match=r"--resume-with data\.train,") as caught:
        applied(many, (), "f.pth", {})
    assert len(str(caught.value)) < 700


def test_names_are_settings() -> None:
    given = ["optimizer.lr, lr_config", "data"]
    assert names_of(given) == ("optimizer.lr", "lr_config", "data")
    with pytest.raises(ValueError, match=r"optimzer.lr is not a setting; did you mean optimizer\?"):
        names_of(["optimzer.lr"])
    tops = {key.name.partition(".")[0] for key in KEYS if key.state != "refused"}
    names_of(sorted(tops))


def test_secrets_and_addresses_are_not_kept() -> None:
    config = minimal(optimizer={"type": "SGD", "lr": 0.01}, size=(9, 9), quant={"preset": "int8"})
    config.tracking = {"api_key": "very-secret", "project": "p"}
    config.custom_hooks = [{"type": "X", "function": test_names_are_settings}]
    found = described(config)
    assert "very-secret" not in str(found)
    assert " at 0x" not in str(found)
    assert found["tracking.project"] == "'p'"
    assert found["optimizer.lr"] == str(config.optimizer.lr)
    assert not [name for name in found if name.startswith(("quant", "train_pipeline", "size"))]
    assert described(config) == found


def test_a_quantized_trainings_own_settings() -> None:
    found = described_quantization(quant_settings({"preset": "w4a8", "ema": {"momentum": 0.1}}))
    assert found["quant.weight.bits"] == "4"
    assert found["quant.ema.momentum"] == "0.1"
    assert found["quant.distill"] == "None"
    assert "quant.schedule.freeze_norm_after" in found


# Formats are dicts; without an observer there was no quantization.
LATER = [f.name for f in fields(Recipe) if f.name not in ("weight", "activation", "observer")]


@pytest.mark.parametrize("name", LATER)
def test_a_setting_that_an_earlier_version_did_not_have_has_its_default(name: str) -> None:
    default = described_quantization(quant_settings(None))
    now = described_quantization(quant_settings({"preset": "w4a8"}))
    before = {key: value for key, value in now.items() if key != f"quant.{name}"}
    changed = now.get(f"quant.{name}") != default.get(f"quant.{name}")
    found = [change.name for change in changes_of(before, now)]
    assert found == ([f"quant.{name}"] if changed else [])


@pytest.mark.parametrize("rules", [[], [{"position": "first", "bits": 16}]])
def test_the_same_settings_are_no_change(rules: list[object]) -> None:
    given = described_quantization(quant_settings({"preset": "openvino", "rules": rules}))
    assert changes_of(given, given) == []
    none = described_quantization(quant_settings({"preset": "openvino"}))
    found = [change.name for change in changes_of(given, none)]
    assert ("quant.rules.0.bits" in found) is bool(rules)
    assert bool(changes_of(none, given)) is bool(rules)

"""mmdet's training settings have the same effect as in mmdet."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch

pytestmark = pytest.mark.slow


def train(launch: Launch, config: Path, folder: Path, text: str, *words: object) -> str:
    """Train with a changed config and return the output."""
    path = folder / "changed.py"
    path.write_text(f"_base_ = [{str(config)!r}]\n{text}\n")
    code, out, err = launch("train", path, "--work-dir", folder / "work", *words)
    assert code == 0, err + out[-2000:]
    return out


def learning_rates(folder: Path) -> list[float]:
    """Return the learning rates that mmcv logged, in order."""
    (log,) = (folder / "work/float").glob("*.log.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["lr"] for row in rows if row.get("mode") == "train"]


def test_step_policy_with_warm_up(launch: Launch, config: Path, tmp_path: Path) -> None:
    train(
        launch, config, tmp_path,
        "lr_config = dict(_delete_=True, policy='step', warmup='linear', warmup_iters=3,"
        " warmup_ratio=0.1, step=[1], gamma=0.1)\n"
        "runner = dict(max_epochs=2)\nlog_config = dict(interval=1)\n"
        "optimizer = dict(lr=0.01)",
        "--no-validate",
    )  # fmt: skip
    rates = learning_rates(tmp_path)
    assert len(rates) == 12
    assert rates[0] == pytest.approx(0.001)
    assert rates[3] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001)


def test_runner_by_iteration(launch: Launch, config: Path, tmp_path: Path) -> None:
    out = train(
        launch, config, tmp_path,
        "runner = dict(_delete_=True, type='IterBasedRunner', max_iters=7)\n"
        "checkpoint_config = dict(interval=4)\nevaluation = dict(interval=7)",
    )  # fmt: skip
    folder = tmp_path / "work/float"
    assert {p.name for p in folder.glob("iter_*.pth")} == {"iter_4.pth", "iter_7.pth"}
    assert re.search(r"Iter\(val\)", out)
    assert load_checkpoint(folder / "iter_7.pth")["meta"]["iter"] == 7


def test_mixed_precision(launch: Launch, config: Path, tmp_path: Path) -> None:
    train(launch, config, tmp_path, "fp16 = dict(loss_scale=512.)", "--no-validate")


def test_paramwise_settings_and_hooks_of_yolox(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    train(
        launch, config, tmp_path,
        "optimizer = dict(paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))\n"
        "lr_config = dict(_delete_=True, policy='YOLOX', warmup='exp', by_epoch=False,"
        " warmup_by_epoch=True, warmup_ratio=1, warmup_iters=1, num_last_epochs=1,"
        " min_lr_ratio=0.05)\n"
        "runner = dict(max_epochs=3)\n"
        "custom_hooks = [dict(type='ExpMomentumEMAHook', resume_from=None, momentum=0.01,"
        " priority=49), dict(type='SyncNormHook', num_last_epochs=1, interval=1, priority=48)]",
    )  # fmt: skip


def test_best_and_last_checkpoints_are_kept(launch: Launch, config: Path, tmp_path: Path) -> None:
    train(
        launch, config, tmp_path,
        "runner = dict(max_epochs=4)\ncheckpoint_config = dict(max_keep_ckpts=2)\n"
        "evaluation = dict(interval=1, save_best='mAP')",
    )  # fmt: skip
    folder = tmp_path / "work/float"
    assert {p.name for p in folder.glob("epoch_*.pth")} == {"epoch_3.pth", "epoch_4.pth"}
    assert {p.name for p in folder.glob("epoch_*.sha256")} == {
        "epoch_3.pth.sha256", "epoch_4.pth.sha256",
    }  # fmt: skip
    assert (folder / "latest.pth").resolve().name == "epoch_4.pth"


def test_resume_continues_after_the_newest_whole_checkpoint(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    train(launch, config, tmp_path, "runner = dict(max_epochs=2)", "--no-validate")
    newest = tmp_path / "work/float/epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:-100])
    out = train(
        launch, config, tmp_path, "runner = dict(max_epochs=3)", "--no-validate", "--resume"
    )
    assert "epoch_1.pth: epoch 1, iteration 6" in out
    assert "Epoch [2][" in out
    assert "Epoch [1][" not in out


def test_load_from_begins_with_other_weights(launch: Launch, config: Path, tmp_path: Path) -> None:
    train(launch, config, tmp_path, "", "--no-validate")
    first = tmp_path / "work/float/float.pth"
    text = f"load_from = {str(first)!r}\noptimizer = dict(lr=0.)"
    (tmp_path / "b").mkdir()
    train(launch, config, tmp_path / "b", text, "--no-validate")
    begun = load_checkpoint(first)["state_dict"]
    ended = load_checkpoint(tmp_path / "b/work/float/float.pth")["state_dict"]
    name = "bbox_head.cls_convs.0.0.weight"
    assert (begun[name] == ended[name]).all()

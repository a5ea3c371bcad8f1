"""``checkpoint_config`` works as in mmcv, apart from additional checkpoints for resuming."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import ConfigDict

from dq.detector.config.read import finish
from dq.detector.training.checkpoint_order import Place
from dq.detector.training.checkpoint_plan import (
    Age,
    CheckpointPlan,
    checkpoint_folder,
    checkpoint_plan,
    remove_old,
)
from dq.dist.files.checkpoint import save_checkpoint
from tests.detector.minimal import minimal


def test_the_plan_without_any_setting() -> None:
    assert asdict(CheckpointPlan()) == {
        "interval": -1,
        "by_epoch": True,
        "max_keep_ckpts": -1,
        "save_optimizer": True,
        "save_last": True,
        "out_dir": None,
        "create_symlink": True,
        "meta": {},
        "steps": 0,
        "minutes": 15.0,
    }
    assert checkpoint_plan(None, counts_epochs=False) == CheckpointPlan(save_last=False)
    assert checkpoint_plan({}, counts_epochs=False) == CheckpointPlan(by_epoch=False)


@pytest.mark.parametrize(
    "section",
    [
        {"type": "CheckpointHook"},
        {"file_client_args": None},
        {"file_client_args": {}},
        {"file_client_args": {"backend": "disk"}},
        {"file_client_args": {"backend": "local"}},
        {"sync_buffer": True},
        {"meta": {}},
        {"out_dir": None},
        {"steps": 0, "minutes": 0},
    ],
)
def test_what_mmcv_accepts_and_changes_nothing_is_accepted(section: dict[str, Any]) -> None:
    given = {"minutes": 15.0, **section}
    plan = checkpoint_plan({"minutes": 15.0, **section}, counts_epochs=True)
    assert plan == CheckpointPlan(minutes=given["minutes"])


def epochs(section: dict[str, Any] | None, of: int) -> list[int]:
    """Return the epochs after which a checkpoint is written."""
    plan = checkpoint_plan(section, counts_epochs=True)
    return [epoch for epoch in range(1, of + 1) if plan.at_epoch(epoch, of)]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"interval": 1}, [1, 2, 3, 4, 5]),
        ({"interval": 2}, [2, 4, 5]),
        ({"interval": 2, "save_last": False}, [2, 4]),
        ({}, [5]),  # mmcv's interval is -1
        ({"interval": -1, "save_last": False}, []),
        ({"interval": 2, "by_epoch": False}, []),
        (None, []),
    ],
)
def test_epochs_that_end_with_a_checkpoint(
    section: dict[str, Any] | None, expected: list[int]
) -> None:
    assert epochs(section, 5) == expected


def test_steps_count_if_by_epoch_is_false() -> None:
    plan = checkpoint_plan({"interval": 3}, counts_epochs=False)
    assert [step for step in range(1, 9) if plan.at_step(step, 8)] == [3, 6, 8]
    plan = checkpoint_plan({"interval": 3, "by_epoch": False}, counts_epochs=True)
    assert [step for step in range(1, 9) if plan.counts_step(step, 8)] == [3, 6, 8]


def test_steps_between_checkpoints_of_epochs_are_for_resuming() -> None:
    plan = checkpoint_plan({"interval": 1, "steps": 3}, counts_epochs=True)
    assert [step for step in range(1, 9) if plan.at_step(step, 8)] == [3, 6]
    assert not [step for step in range(1, 9) if plan.counts_step(step, 8)]
    plan = checkpoint_plan({"interval": 4, "steps": 3}, counts_epochs=False)
    assert [step for step in range(1, 10) if plan.at_step(step, 9)] == [3, 4, 6, 8, 9]


def kept(folder: Path, section: dict[str, Any]) -> list[str]:
    """Return the files that are kept."""
    for number in range(1, 7):
        save_checkpoint(folder / f"epoch_{number}.pth", {}, note=Place(1, 9 * number, 0).note)
        save_checkpoint(folder / f"step_{number}.pth", {}, note=Place(1, number, 0).note)
    save_checkpoint(folder / "best_mAP_epoch_1.pth", {})
    for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        os.utime(path, (number, number))  # As if the clock had run backwards.
    remove_old(folder, checkpoint_plan(section, counts_epochs=True))
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("more", [{}, {"max_keep_ckpts": -1}, {"max_keep_ckpts": 0}])
def test_all_are_kept_if_the_config_has_no_number(tmp_path: Path, more: dict[str, Any]) -> None:
    left = kept(tmp_path, {"interval": 1, **more})
    assert [name for name in left if re.fullmatch(r"epoch_\d.pth", name)] == [
        f"epoch_{n}.pth" for n in range(1, 7)
    ]
    assert {"step_5.pth", "step_6.pth", "best_mAP_epoch_1.pth"} <= set(left)
    assert "step_4.pth" not in left
    assert "step_4.pth.sha256" not in left


def test_the_number_in_the_config_is_kept(tmp_path: Path) -> None:
    left = kept(tmp_path, {"interval": 1, "max_keep_ckpts": 2})
    assert [name for name in left if re.fullmatch(r"epoch_\d.pth", name)] == [
        "epoch_5.pth",
        "epoch_6.pth",
    ]


def test_a_checkpoint_without_its_place_is_neither_counted_nor_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / "step_9.pth").write_text("no checkpoint")
    left = kept(tmp_path, {"interval": 1, "max_keep_ckpts": 2})
    assert {"step_9.pth", "step_6.pth", "step_5.pth"} <= set(left)


@pytest.mark.parametrize(
    "name",
    [
        "epoch_1_backup.pth",
        "epoch_2 (copy).pth",
        "step_1-good.pth",
        "iter_3_best.pth",
        "epoch_1b.pth",
    ],
)
def test_a_copy_that_the_user_made_is_never_removed(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / name, {}, note=Place(1, 0, 0).note)
    left = kept(tmp_path, {"interval": 1, "max_keep_ckpts": 1})
    assert {name, f"{name}.sha256", "epoch_6.pth"} <= set(left)
    assert "epoch_5.pth" not in left


def test_a_checkpoint_of_another_program_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 40, "iter": 900}, "state_dict": {}}, tmp_path / "epoch_40.pth")
    left = kept(tmp_path, {"interval": 1, "max_keep_ckpts": 1})
    assert {"epoch_40.pth", "epoch_6.pth"} <= set(left)
    assert "epoch_5.pth" not in left


def test_a_config_without_checkpoint_config_keeps_three() -> None:
    config = finish(minimal())
    assert checkpoint_plan(config.checkpoint_config, counts_epochs=True).max_keep_ckpts == 3
    config = finish(minimal(checkpoint_config={"interval": 1}))
    assert checkpoint_plan(config.checkpoint_config, counts_epochs=True).max_keep_ckpts == -1
    config = finish(minimal(checkpoint_config=None))
    assert config.checkpoint_config is None


def test_folder_is_in_out_dir() -> None:
    stage = Path("runs/tiny/float")
    assert checkpoint_plan({}, counts_epochs=True).folder(stage) == stage
    plan = checkpoint_plan({"out_dir": "/big"}, counts_epochs=True)
    assert plan.folder(stage) == Path("/big/tiny/float")


def test_the_folder_of_a_config_is_that_of_its_plan(tmp_path: Path) -> None:
    stage = Path("runs/tiny/float")
    for runner in ("EpochBasedRunner", "IterBasedRunner"):
        section = {"out_dir": str(tmp_path), "interval": 1}
        config = ConfigDict(runner={"type": runner}, checkpoint_config=section)
        assert checkpoint_folder(config, stage) == tmp_path / "tiny/float"


def test_a_file_that_another_process_removes_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [tmp_path / f"epoch_{n}.pth" for n in range(4)]
    monkeypatch.setattr("dq.detector.training.checkpoint_plan.newest_first", lambda _: gone)
    monkeypatch.setattr("dq.detector.training.checkpoint_plan.is_ours", lambda _: True)
    sidecar = tmp_path / "epoch_9.pth.sha256"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [sidecar])
    remove_old(tmp_path, checkpoint_plan({"max_keep_ckpts": 1}, counts_epochs=True))


def test_checkpoints_of_iterations_are_counted_and_sidecars_of_kept_ones_stay(
    tmp_path: Path,
) -> None:
    for number in range(1, 5):
        save_checkpoint(tmp_path / f"iter_{number}.pth", {}, note=Place(1, number, 0).note)
    remove_old(tmp_path, checkpoint_plan({"max_keep_ckpts": 3}, counts_epochs=False))
    names = [f"iter_{n}.pth" for n in (2, 3, 4)]
    wanted = sorted([*names, *(f"{name}.sha256" for name in names)])
    assert sorted(path.name for path in tmp_path.iterdir()) == wanted


def test_a_checkpoint_is_too_old_from_its_limit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    age, never = Age(60.0), Age(0.0)
    for seconds, too_old in ((0.0, False), (59.5, False), (60.0, True), (900.0, True)):
        now[0] = 100.0 + seconds
        assert age.is_too_old() is too_old
        assert not never.is_too_old()
    age.renew()
    assert not age.is_too_old()


@pytest.mark.parametrize("saved", [True, False])
def test_a_plan_that_cannot_be_resumed_is_said(
    saved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint_plan({"interval": 1, "save_optimizer": saved}, counts_epochs=True)
    assert ("such checkpoints cannot be resumed" in caplog.text) is not saved


def test_meta_is_plain_data() -> None:
    plan = checkpoint_plan(ConfigDict(meta={"note": {"by": "me"}}), counts_epochs=True)
    assert type(plan.meta) is dict
    assert plan.meta == {"note": {"by": "me"}}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"intervall": 1}, "intervall is not a setting"),
        ({"interval": "x"}, "interval is 'x'"),
        ({"filename_tmpl": "m_{}.pth"}, "filename_tmpl cannot be set"),
        ({"out_dir": "s3://bucket"}, "give a folder"),
        ({"file_client_args": {"backend": "petrel"}}, "backend 'petrel'"),
        ({"type": "MyHook"}, "custom_hooks"),
        ({"meta": 3}, "use a dict"),
        ({"minutes": -1}, "minutes is -1"),
        ({"minutes": "15"}, "minutes is '15'; use 0 or more"),
        ({"minutes": None}, "minutes is None; use 0 or more"),
        ({"steps": -1}, "steps is -1"),
        ({"interval": True}, "interval is True; use a whole number"),
        ({"max_keep_ckpts": 1.0}, "max_keep_ckpts is 1.0; use a whole number"),
        ({"steps": None}, "steps is None; use a whole number"),
    ],
)
def test_invalid_values_are_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="checkpoint_config") as caught:
        checkpoint_plan(section, counts_epochs=True)
    assert message in str(caught.value)

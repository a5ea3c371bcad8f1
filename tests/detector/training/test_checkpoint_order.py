"""Checkpoints are ordered by their content, regardless of file times."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dq.detector.training.checkpoint_order import (
    Place,
    checkpoints_in,
    is_ours,
    newest_first,
    newest_training,
    next_attempt,
    place_of,
)
from dq.dist.files.checkpoint import save_checkpoint


def content(attempt: int | None, step: int, epoch: int, **more: Any) -> dict[str, Any]:
    """Return a checkpoint without weights; without an attempt, as plain mmdet writes it."""
    meta: dict[str, Any] = {"epoch": epoch, "iter": step}
    training = {} if attempt is None else {"training": {"iteration": step, "epoch": epoch}}
    if attempt is not None:
        meta["attempt"] = attempt
    return {"meta": meta, "optimizer": {"state": {}}, **training, **more}


def write(
    folder: Path, name: str, attempt: int | None, step: int, epoch: int = 0, *, noted: bool = True
) -> Path:
    note = Place(attempt, step, epoch).note if noted and attempt is not None else ""
    save_checkpoint(folder / name, content(attempt, step, epoch), note=note)
    return folder / name


@pytest.mark.parametrize("noted", [True, False])
def test_order_is_by_attempt_then_step_and_never_by_time(tmp_path: Path, noted: bool) -> None:
    wanted = [
        write(tmp_path, "epoch_9.pth", None, 900, 9),
        write(tmp_path, "epoch_2.pth", 1, 12, 2, noted=noted),
        # Restarted, or resumed from an earlier one: fewer steps, but newer.
        write(tmp_path, "step_9.pth", 2, 9, 1, noted=noted),
        write(tmp_path, "step_10.pth", 2, 10, 1, noted=noted),
        write(tmp_path, "iter_11.pth", 2, 11, 1, noted=noted),
        write(tmp_path, "step_6.pth", 3, 6, 0, noted=noted),
        write(tmp_path, "epoch_1.pth", 3, 6, 1, noted=noted),
    ]
    for number, path in enumerate(wanted):
        os.utime(path, (1000 - number, 1000 - number))
    assert newest_first(tmp_path.glob("*.pth")) == wanted[::-1]
    assert next_attempt(tmp_path) == 4
    assert next_attempt(tmp_path / "new") == 1
    found = newest_training(tmp_path)
    assert found is not None
    assert found[0].name == "epoch_1.pth"


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert next_attempt(tmp_path / "none") == 1
    assert newest_training(tmp_path / "none") is None
    assert newest_training(tmp_path) is None


def test_damaged_ones_and_those_without_training_state_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = write(tmp_path, "epoch_1.pth", 1, 6, 1)
    for name in ("best_mAP_epoch_9.pth", "epoch_9_backup.pth", "step_900 (copy).pth"):
        write(tmp_path, name, 1, 900, 9)
    (tmp_path / "epoch_99.pth").mkdir()
    (tmp_path / "step_99.pth").symlink_to("nowhere")
    (tmp_path / "latest.pth").symlink_to("epoch_5.pth")
    cut = write(tmp_path, "epoch_5.pth", 1, 30, 5)
    cut.write_bytes(cut.read_bytes()[:-9])
    bare = content(1, 24, 4)
    del bare["optimizer"]  # checkpoint_config.save_optimizer=False
    save_checkpoint(tmp_path / "epoch_4.pth", bare, note=Place(1, 24, 4).note)
    hooks = content(1, 18, 3)
    del hooks["training"]  # Written by the runner for a custom hook.
    save_checkpoint(tmp_path / "epoch_3.pth", hooks)
    (tmp_path / "epoch_2.pth").write_text("no checkpoint")
    with caplog.at_level(logging.WARNING):
        found = newest_training(tmp_path)
    assert found is not None
    assert found[0] == good
    named = [word for r in caplog.records for word in r.message.split() if word.endswith(".pth")]
    assert [Path(word).name for word in named] == [
        "epoch_2.pth", "epoch_5.pth", "epoch_4.pth", "epoch_3.pth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "strange", [{"meta": None}, {"meta": {"iter": "x"}}, {"meta": [1]}, {"training": {"epoch": ()}}]
)
def test_strange_content_has_no_place_or_the_first(tmp_path: Path, strange: Any) -> None:
    torch.save(strange, tmp_path / "epoch_1.pth")
    assert place_of(tmp_path / "epoch_1.pth") in (None, Place(0, 0, 0))


def test_a_checkpoint_of_plain_mmdet_has_a_place_before_all_of_ours_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "epoch_3.pth", None, 30, 3)
    assert place_of(path) == Place(0, 30, 3)
    assert not is_ours(path)
    found = newest_training(tmp_path)
    assert found is not None
    assert found[0] == path
    assert next_attempt(tmp_path) == 1
    ours = write(tmp_path, "step_1.pth", 1, 1)
    assert is_ours(ours)
    assert newest_first([path, ours]) == [ours, path]
    assert not is_ours(tmp_path / "none.pth")


def test_a_place_is_read_from_the_content_with_zeros_for_what_is_missing(tmp_path: Path) -> None:
    for number, (stored, wanted) in enumerate(
        [
            ({}, Place(0, 0, 0)),
            ({"meta": None, "training": None}, Place(0, 0, 0)),
            ({"meta": {"attempt": 2}}, Place(2, 0, 0)),
            ({"meta": {"attempt": 2, "iter": 7, "epoch": 3}}, Place(2, 7, 3)),
            ({"meta": {"iter": 7}, "training": {"iteration": 8, "epoch": 4}}, Place(0, 8, 4)),
            ({"meta": {"epoch": 3}, "training": {"iteration": 8}}, Place(0, 8, 3)),
        ]
    ):
        path = tmp_path / f"epoch_{number}.pth"
        torch.save(stored, path)
        assert place_of(path) == wanted
        assert wanted.note == f"attempt {wanted[0]}, step {wanted[1]}, epoch {wanted[2]}"


def test_files_of_some_kinds_are_listed_and_equal_places_by_name(tmp_path: Path) -> None:
    for name in ("epoch_1.pth", "step_2.pth", "iter_3.pth", "best_epoch_1.pth", "epoch_x.pth"):
        write(tmp_path, name, 1, 5)
    (tmp_path / "epoch_4.pth").mkdir()

    def names(*kinds: str) -> list[str]:
        return sorted(path.name for path in checkpoints_in(tmp_path, *kinds))

    assert names() == ["epoch_1.pth", "iter_3.pth", "step_2.pth"]
    assert names("step") == ["step_2.pth"]
    assert names("epoch", "iter") == ["epoch_1.pth", "iter_3.pth"]
    newest = newest_first(checkpoints_in(tmp_path))
    assert [path.name for path in newest] == ["step_2.pth", "iter_3.pth", "epoch_1.pth"]

"""A killed training resumes, and its result equals an uninterrupted training bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, on_ranks
from tests.processes.warm import WarmProcess

pytestmark = pytest.mark.slow

# All features with state: batch norms of each rank, learned scales, averages, oscillation,
# teacher, momentum, warm-up, loader processes, random augmentation, dropout's generator.
RICH = """
_base_ = [{base!r}]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion', brightness_delta=24),
    dict(type='Resize', img_scale=(96, 96), keep_ratio=False),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
data = dict(workers_per_gpu={workers}, train=dict(dataset=dict(pipeline=train_pipeline)))
checkpoint_config = dict(interval=1, steps={steps}, max_keep_ckpts=-1)
log_config = dict(interval=2)
runner = dict(max_epochs=2)
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4, _delete_=True)
quant = dict(
    learned='lsq',
    oscillation=dict(dampening=1e-4),
    ema=dict(momentum=0.1),
    distill=dict(),
    schedule=dict(round_after=dict(iteration=2), freeze_norm_after=0.8, freeze_ranges_after=0.9),
    training={{'optimizer.lr': 4e-3, 'runner.max_epochs': 2}})
{more}
"""
FAULT = """
custom_imports = dict(imports=['tests.launcher.failures.fault_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='FaultHook', what={what!r}, rank={rank}, step={step}, marker={marker!r})]
"""


def rich(config: Path, folder: Path, *, steps: int, workers: int = 1, more: str = "") -> Path:
    """Write the config of a training with all features that have state."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rich.py"
    path.write_text(RICH.format(base=str(config), steps=steps, workers=workers, more=more))
    return path


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """Return the logged losses of each step; later files replace earlier ones."""
    rows: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("*.log.json"), key=lambda p: p.stat().st_mtime_ns):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.get("mode") == "train":
                named = {k: v for k, v in row.items() if "loss" in k or k in ("lr", "grad_norm")}
                rows[1000 * row["epoch"] + row["iter"]] = named
    return rows


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places where two checkpoints are not equal bit for bit."""
    if isinstance(one, Tensor):
        same = isinstance(other, Tensor) and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict):
        names = one.keys() | other.keys()
        return [d for n in names for d in differences(one.get(n), other.get(n), f"{where}/{n}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [where]
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True))
                for d in differences(a, b, f"{where}/{i}")]  # fmt: skip
    return [] if str(one) == str(other) else [where]


def compare(one: Path, other: Path) -> None:
    """Assert that two trainings have equal checkpoints, bit for bit, and equal logged losses."""
    names = sorted(p.name for p in one.glob("epoch_*.pth"))
    assert names == ["epoch_1.pth", "epoch_2.pth"]
    for name in names:
        found, wanted = (load_checkpoint(folder / name) for folder in (other, one))
        for content in (found, wanted):
            content["meta"] = {k: content["meta"][k] for k in ("epoch", "iter", "hook_msgs")}
        assert differences(wanted, found) == []
    wanted_rows, rows = losses(one), losses(other)
    assert len(wanted_rows) >= 2
    assert rows == wanted_rows


@pytest.mark.parametrize("step", [1, 4])
def test_qat_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(
    config: Path, float_checkpoint: Path, tmp_path: Path, step: int, uninterrupted: Path
) -> None:
    more = FAULT.format(what="kill", rank=1, step=step, marker=str(tmp_path / "struck"))
    path = rich(config, tmp_path, steps=1, more=more)
    words = ("qat", path, "--checkpoint", float_checkpoint, "--work-dir", tmp_path / "work",
             "--sync-bn", "off")  # fmt: skip
    died = on_ranks(2, *words, limit_s=120)
    assert died.returncode != 0
    assert not (tmp_path / "work/qat/qat.pth").exists()
    done = on_ranks(2, *words, "--resume", "auto")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"resumed from {tmp_path}/work/qat/step_{step}.pth" in done.stdout
    compare(uninterrupted, tmp_path / "work/qat")


@pytest.fixture(scope="module")
def uninterrupted(
    config: Path, float_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Train without interruption, with another number of loader processes and checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    path = rich(config, folder, steps=0, workers=0)
    done = on_ranks(
        2, "qat", path, "--checkpoint", float_checkpoint, "--work-dir", folder, "--sync-bn", "off"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder / "qat"


def test_training_killed_at_any_time_goes_on_bit_for_bit(config: Path, tmp_path: Path) -> None:
    # One rank, killed at random moments: in a step, a checkpoint, an evaluation, or at the start.
    whole = tmp_path / "whole"
    path = str(rich(config, tmp_path, steps=1, workers=0))
    # Bits depend on the number of threads, and only some of these processes have OMP_NUM_THREADS.
    words = ["train", path, "--seed", "3", "--threads", "1", "--work-dir"]
    began = time.monotonic()
    done = on_ranks(1, *words, whole)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds = time.monotonic() - began
    chance = random.Random(0)
    other = tmp_path / "other"
    for _ in range(12):
        with (tmp_path / "killed.txt").open("ab") as output:
            process = WarmProcess(
                [*words, str(other), "--resume", "auto"], environ=os.environ, output=output
            )
        try:
            process.wait(timeout=seconds * chance.uniform(0.2, 0.9))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.end()
    else:
        last = on_ranks(1, *words, other, "--resume")
        assert last.returncode == 0, last.stderr[-3000:]
    compare(whole / "float", other / "float")


def test_fewer_ranks_go_on_with_the_same_schedule_and_samples(config: Path, tmp_path: Path) -> None:
    more = FAULT.format(what="SIGTERM", rank=0, step=4, marker=str(tmp_path / "struck"))
    path = rich(config, tmp_path, steps=0, more=more)
    words = ("train", path, "--work-dir", tmp_path / "work")
    stopped = on_ranks(2, *words, limit_s=120)
    assert stopped.returncode != 0
    done = on_ranks(1, *words, "--resume", "auto")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "2 micro-batches a step" in done.stdout
    content = load_checkpoint(tmp_path / "work/float/epoch_2.pth")
    assert content["training"]["chunks_per_step"] == 2
    assert content["training"]["iteration"] == 6
    assert content["training"]["world_size"] == 1


def test_world_size_that_does_not_fit_is_refused_by_name(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    path = rich(config, tmp_path, steps=0)
    code, _, err = launch("train", path, "--work-dir", tmp_path / "w", "--no-validate")
    assert code == 0, err
    done = on_ranks(2, "train", path, "--work-dir", tmp_path / "w", "--resume", "auto")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-2000:]
    assert "1 rank" in errors[0]

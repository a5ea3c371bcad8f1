"""A detector small enough that a stage takes seconds, and ways to call the launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
_base_ = [{base!r}]
data_root = {data_root!r}
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(
        in_channels=(16, 16, 16),
        anchor_generator=dict(
            input_size=96, min_sizes=[10, 17, 27], max_sizes=[17, 27, 42])))
size = (96, 96)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=size, keep_ratio=False),
    dict(type='RandomFlip', flip_ratio=0.0),
    dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=size, flip=False, transforms=[
        dict(type='Resize', keep_ratio=False),
        dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ])
]
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=0,
    train=dict(times=1, dataset=dict(pipeline=train_pipeline)),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline))
lr_config = dict(warmup_iters=2)
log_config = dict(interval=2)
evaluation = dict(interval=1)
runner = dict(max_epochs=1)
quant = dict(
    schedule=dict(calibration_batches=2, calibration_batch_size=4),
    training={{
        'optimizer.lr': 4e-3, 'runner.max_epochs': 1, 'lr_config.warmup_iters': 2,
        'evaluation.interval': 1}})
"""

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def config(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a tiny SSD on the tiny digits."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    base = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
    path.write_text(CONFIG.format(base=base, data_root=str(digits)))
    return path


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Call the launcher in this process, alone; return exit code, standard output and error."""
    from launcher.cli import main

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def torchrun(
    ranks: int, *words: object, limit_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Start the launcher under torchrun as a user would, from the checkout.

    torchrun itself ends its ranks when it is asked to stop; killed at once, it would leave them.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "launcher", *map(str, words)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=60)
        raise AssertionError(
            f"still at work after {limit_s} s: {out[-3000:]}{err[-3000:]}"
        ) from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)

"""A tiny detector, whose stages take seconds, and functions that call the launcher."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Once
from tests.processes.ports import free_port
from tests.processes.warm import WarmProcess

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
            _delete_=True, type='SSDAnchorGenerator', scale_major=False, input_size=96,
            strides=[8, 16, 32], ratios=([2], [2], [2]),
            min_sizes=[10, 17, 27], max_sizes=[17, 27, 42])))
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
optimizer = dict(lr=1e-3)
lr_config = dict(by_epoch=True, warmup_iters=2)
log_config = dict(interval=2)
evaluation = dict(interval=1)
runner = dict(max_epochs=1)
quant = dict(
    _delete_=True,
    schedule=dict(calibration_batches=2, calibration_batch_size=4),
    training={{
        'optimizer.lr': 4e-3, 'runner.max_epochs': 1, 'lr_config.warmup_iters': 2,
        'evaluation.interval': 1}})
"""

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def config(digits: Path, once: Once) -> Path:
    """The config of a tiny SSD on the tiny digits."""
    base = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
    text = CONFIG.format(base=base, data_root=str(digits))
    return once("config", lambda folder: (folder / "tiny.py").write_text(text)) / "tiny.py"


@pytest.fixture
def launch(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Launch:
    """Return a function that calls the launcher in this process.

    It returns exit code, standard output and standard error. A command without ``--work-dir``
    writes into ``runs`` of the working folder, which is therefore not the checkout.
    """
    from launcher.cli import main

    if Path.cwd() == ROOT:
        monkeypatch.chdir(tmp_path_factory.mktemp("folder"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        # The launcher sets variables for its own process; here they must not outlive the call.
        before = dict(os.environ)
        loggers = [logging.getLogger(name) for name in ("dq", "launcher")]
        levels = [logger.level for logger in loggers]
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(before)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def torchrun(
    ranks: int, *words: object, limit_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Start the launcher under torchrun as a user would, from the checkout.

    At the time limit torchrun is asked to stop, so that it ends its ranks; if it were killed, they
    would be left.
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


def rank_environments(number: int, *, port: int | None = None) -> list[dict[str, str]]:
    """Return the environment variables of each rank on this machine, as srun sets them."""
    port = free_port() if port is None else port
    shared = {
        "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    return [
        {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(number)
    ]


def on_ranks(
    number: int, *words: object, limit_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run the launcher on several ranks without torchrun, in processes that are started together.

    Standard output and error are those of all ranks in order; the exit code is the first nonzero.
    """
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        processes = []
        for rank, own in enumerate(rank_environments(number)):
            out, err = (Path(name, f"{rank}.{stream}") for stream in ("out", "err"))
            with out.open("wb") as output, err.open("wb") as errors:
                environ = {**os.environ, **own}
                processes.append(
                    WarmProcess(arguments, environ=environ, output=output, errors=errors)
                )
        end = time.monotonic() + limit_s
        try:
            codes = [process.wait(max(0.1, end - time.monotonic())) for process in processes]
        finally:
            for process in processes:
                process.end()
            printed, said = (
                "".join(Path(name, f"{rank}.{stream}").read_text() for rank in range(number))
                for stream in ("out", "err")
            )
    code = next((code for code in codes if code), 0)
    return subprocess.CompletedProcess(arguments, code, printed, said)


@pytest.fixture(scope="session")
def float_checkpoint(config: Path, once: Once) -> Path:
    """The tiny detector after its float training."""

    def train(folder: Path) -> None:
        done = on_ranks(1, "train", config, "--work-dir", folder, "--no-validate")
        assert done.returncode == 0, done.stderr[-3000:]

    return once("trained", train) / "float/float.pth"


@pytest.fixture(scope="session")
def untrained(config: Path, once: Once) -> Path:
    """A float checkpoint of the tiny detector with its initial weights."""
    folder = once("untrained", lambda new: write_untrained(config, new / "float.pth"))
    return folder / "float.pth"


def write_untrained(config: Path, path: Path) -> Path:
    """Write a float checkpoint of a config's detector with its initial weights."""
    import torch

    from dq.detector.config.read import finish, read_config
    from dq.detector.data.datasets import test_classes
    from dq.detector.model.build import build_model
    from dq.dist.files.checkpoint import save_checkpoint

    torch.manual_seed(0)
    read = finish(read_config(config))
    detector = build_model(read, test_classes(read), initialise=True)
    save_checkpoint(path, {"state_dict": detector.state_dict(), "meta": {}})
    return path

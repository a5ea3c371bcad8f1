"""The process settings of mmdet's tools are set, also in worker processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmcv import Config

from dq.detector.config.process_settings import set_up_process
from dq.detector.config.read import finish
from dq.detector.loading.training_loader import training_loader
from tests.detector.minimal import minimal
from tests.detector.small_set import built, section


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    threads, method = cv2.getNumThreads(), multiprocessing.get_start_method()
    cudnn: Any = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    tf32 = cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    cv2.setNumThreads(threads)
    multiprocessing.set_start_method(method, force=True)
    cudnn.benchmark, cudnn.deterministic = flags
    for name in ("dq", "launcher"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def set_up(**more: Any) -> None:
    set_up_process(finish(minimal(**more)))


def test_defaults_are_mmdets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    set_up(data={"train": {}, "workers_per_gpu": 2})
    assert cv2.getNumThreads() == 1  # OpenCV's value for no threads besides the caller's
    assert multiprocessing.get_start_method() == "fork"
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "3")


def test_settings_are_set() -> None:
    set_up(opencv_num_threads=3, mp_start_method="spawn", cudnn_benchmark=True, log_level="ERROR")
    assert cv2.getNumThreads() == 3
    assert multiprocessing.get_start_method() == "spawn"
    assert torch.backends.cudnn.benchmark
    assert not logging.getLogger("dq.train").isEnabledFor(logging.WARNING)
    set_up(deterministic=True, cudnn_benchmark=True)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_tf32_is_torchs_default_unless_it_is_set() -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = allowed()
    set_up()
    assert allowed() == before
    set_up(allow_tf32=True)
    assert allowed() == (True, True)
    set_up(allow_tf32=False)
    assert allowed() == (False, False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mp_start_method": "thread"}, "mp_start_method is 'thread'; use one of fork"),
        ({"opencv_num_threads": "many"}, "opencv_num_threads is 'many'"),
        ({"log_level": "LOUD"}, "log_level is 'LOUD'"),
        ({"allow_tf32": "yes"}, "allow_tf32 is 'yes'; use True, False or None"),
        ({"dist_params": {"backend": "mpi"}}, "dist_params.backend is 'mpi'"),
        ({"dist_params": {"backend": "nccl", "port": 1}}, "dist_params.port .* set MASTER_PORT"),
    ],
)
def test_invalid_values_are_refused_by_name(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up(**more)


class Threads:
    """A pipeline step that reports OpenCV's threads and the start method of its process."""

    def __call__(self, results: Any) -> Any:
        results["img"][0, 0, 0] = cv2.getNumThreads()
        results["img"][0, 0, 1] = multiprocessing.get_start_method() == "spawn"
        return results


@pytest.mark.slow
def test_worker_processes_start_as_the_config_says(digits: Path) -> None:
    from mmdet.datasets import PIPELINES

    from tests.detector.small_set import AUGMENTATION, FORMATTING, LOADING

    set_up(opencv_num_threads=3, mp_start_method="spawn")
    PIPELINES.register_module(name="Threads", force=True, module=Threads)
    steps = [*LOADING, *AUGMENTATION, {"type": "Threads"}, *FORMATTING]
    dataset = built(section(digits, steps))
    config = Config(
        {
            "data": {"train_dataloader": {"samples_per_gpu": 1, "workers_per_gpu": 1}},
            "runner": {"type": "EpochBasedRunner"},
            "opencv_num_threads": 3,
        }
    )
    loader = training_loader(config, dataset, seed=0)
    batches = next(iter(loader.steps(0)))
    image = batches[0]["img"].data[0][0]
    assert image[:, 0, 0].tolist()[:2] == [3, 1]

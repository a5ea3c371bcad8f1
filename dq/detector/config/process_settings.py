"""Process-wide settings that mmdet's tools make at the start."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Mapping
from typing import Any

import cv2
import torch
from mmcv import Config

log = logging.getLogger(__name__)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
BACKENDS = ("nccl", "gloo")


def set_up_process(config: Config) -> None:
    """Set start method, threads, cuDNN and logging as mmdet's ``tools/train.py`` does.

    The sources are mmdet's ``setup_multi_processes``, ``set_random_seed`` and ``get_root_logger``.

    Args:
        config: Result of `dq.detector.config.read.finish`.

    Raises:
        ValueError: A setting has an invalid value.
    """
    _set_start_method(config.get("mp_start_method"))
    threads = config.get("opencv_num_threads") or 0
    if not isinstance(threads, int):
        raise ValueError(f"opencv_num_threads is {threads!r}; give a whole number, 0 for none")
    cv2.setNumThreads(threads)
    # For child processes; this process has its threads already.
    if config.data.get("train_dataloader", {}).get("workers_per_gpu", 1) > 1:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
    if config.get("cudnn_benchmark"):
        torch.backends.cudnn.benchmark = True
    if config.get("deterministic"):
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    _set_tf32(config.get("allow_tf32"))
    _set_log_level(config.log_level)
    _check_dist_params(config.get("dist_params"))


def _set_start_method(method: Any) -> None:
    if method is None:
        return
    known = multiprocessing.get_all_start_methods()
    if method not in known:
        raise ValueError(f"mp_start_method is {method!r}; use one of {', '.join(known)}")
    multiprocessing.set_start_method(method, force=True)
    if method != "fork":
        # A process that is not forked imports everything again, and would print the libraries'
        # warnings again.
        os.environ.setdefault("PYTHONWARNINGS", "ignore")


def _set_tf32(allowed: Any) -> None:
    """Let convolutions and matrix products on a GPU compute in TF32 (ten-bit mantissa), or not."""
    if allowed is None:
        return
    if not isinstance(allowed, bool):
        raise ValueError(f"allow_tf32 is {allowed!r}; use True, False or None for torch's default")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def _set_log_level(level: Any) -> None:
    name = logging.getLevelName(level) if isinstance(level, int) else str(level)
    if name not in LEVELS:
        raise ValueError(f"log_level is {level!r}; use one of {', '.join(LEVELS)}")
    for ours in ("dq", "launcher"):
        logging.getLogger(ours).setLevel(name)


def _check_dist_params(section: Any) -> None:
    """Refuse keys that would be ignored: the process group exists before the config is read."""
    if section is None:
        return
    if not isinstance(section, Mapping):
        raise ValueError(f"dist_params is {section!r}; use dict(backend='nccl')")
    fixes = {
        "port": "set MASTER_PORT, or torchrun --master-port",
        "timeout": "use --timeout SECONDS",
    }
    for key, value in section.items():
        if key != "backend":
            fix = fixes.get(key, "leave it out")
            raise ValueError(f"dist_params.{key} is not read here; {fix}")
        if value not in BACKENDS:
            raise ValueError(f"dist_params.backend is {value!r}; use one of {', '.join(BACKENDS)}")

"""Load and run a checkpoint in plain mmdet, as its ``tools/test.py`` does, without our code.

    python -m dq.detector.survey.plain_mmdet CONFIG CHECKPOINT.pth [RESULTS.pkl]

If a key is missing or unexpected, it ends with exit code 2. RESULTS.pkl gets the results of the
test images, or one line that says why mmdet itself cannot run on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import mmcv
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel
from mmcv.runner import load_checkpoint
from mmdet.apis import single_gpu_test
from mmdet.datasets import build_dataloader, build_dataset
from mmdet.models import build_detector
from mmdet.utils import compat_cfg

from dq.error_text import error_text


def main(argv: Sequence[str] | None = None) -> int:
    """Load, detect, write the results, and return the exit code."""
    path, checkpoint, *out = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    config = compat_cfg(Config.fromfile(path))
    dataset = build_dataset(config.data.test, {"test_mode": True})
    detector = build_detector(config.model, test_cfg=config.get("test_cfg"))
    try:
        load_checkpoint(detector, checkpoint, map_location="cpu", strict=True)
    except RuntimeError as error:
        print(f"error: mmdet does not load {checkpoint}: {error_text(error)}")
        return 2
    if out:
        detector.CLASSES = dataset.CLASSES
        loader = build_dataloader(dataset, 1, 0, dist=False, shuffle=False)
        mmcv.dump(_results(MMDataParallel(detector, device_ids=[-1]), loader), out[0])
    return 0


def _results(model: Any, loader: Any) -> Any:
    try:
        return single_gpu_test(model, loader)
    except (RuntimeError, AssertionError) as error:
        # An operator that is compiled only for GPUs, or a bug that `mended_heads` fixes.
        return f"mmdet itself cannot detect here: {error_text(error)}"


if __name__ == "__main__":
    sys.exit(main())

"""The boxes that the detector of a checkpoint finds on a few images."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmcv.parallel import collate

from dq.detector.engines.exact_torch import exact_arithmetic
from dq.detector.loading.to_device import to_device
from dq.detector.metrics.results import boxes_by_class, boxes_of_any_class, labelled_boxes
from dq.detector.model.stored_detector import stored_detector
from dq.quant.numerics.spec import name_of
from dq.tracking.pictures.predictions import Box

# The most boxes of an image, the best first.
MOST = 100


@torch.no_grad()
def detections(
    config: Config,
    content: Mapping[str, Any],
    source: str,
    dataset: Any,
    indices: Sequence[int],
    *,
    lowest: float,
    device: torch.device,
) -> tuple[str, list[list[Box]]]:
    """Run the detector of a checkpoint on some images, fake-quantized if it is quantized.

    On the CPU a quantized detector computes as its exported model does.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        content: Of the checkpoint.
        source: Its name, for messages.
        dataset: In test mode.
        indices: The images.
        lowest: Boxes with a lower score are left out.
        device: Where to run.

    Returns:
        The name of its integer format, or ``float``; and the boxes of each image, ``(x1, y1, x2,
        y2, score, label)``, the best first. Proposals have the label -1.

    Raises:
        ValueError: The checkpoint is another model's, or an image cannot be read.
    """
    stored = stored_detector(config, content, source, device)
    stored.detector.eval()
    found = []
    with contextlib.ExitStack() as stack:
        if stored.graph is not None and device.type == "cpu":
            stack.enter_context(exact_arithmetic(stored.detector, stored.graph))
        for index in indices:
            inputs = to_device(collate([dataset[index]], samples_per_gpu=1), device)
            result = stored.detector(return_loss=False, rescale=True, **inputs)[0]
            found.append(_rows(result, lowest))
    return _bits(stored.recipe), found


def _rows(result: Any, lowest: float) -> list[Box]:
    if boxes_by_class(result) is None:
        proposals = boxes_of_any_class(result)
        rows = [[*row, -1] for each in proposals for row in np.asarray(each).tolist()]
    else:
        rows = labelled_boxes(result)
    found: list[Box] = [row for row in rows if row[4] >= lowest]
    return sorted(found, key=lambda row: -row[4])[:MOST]


def _bits(recipe: Any) -> str:
    if recipe is None:
        return "float"
    return name_of(recipe.weight.bits, recipe.activation.bits)

"""The loaders of a training: each part of the workflow has the same limit of unreadable images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dq.detector.data.datasets import dataset_of
from dq.detector.loading.training_loader import training_loader
from dq.detector.training.train import _loaders


@pytest.mark.parametrize("allowed", [0, 3, 40])
@pytest.mark.parametrize("modes", [("train",), ("train", "val"), ("val", "train")])
def test_every_part_of_the_workflow_has_the_limit(
    allowed: int, modes: tuple[str, ...], tiny: Callable[..., Any]
) -> None:
    config = tiny()
    config.workflow = [(mode, 1) for mode in modes]
    own = training_loader(config, dataset_of(config, "train"), seed=0, max_bad=allowed)
    loaders = _loaders(config, own, 0)
    assert loaders[modes.index("train")] is own
    assert [loader.max_bad_images for loader in loaders] == [allowed] * len(modes)

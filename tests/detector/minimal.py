"""The smallest config that `finish` accepts."""

from __future__ import annotations

from typing import Any

from mmcv import Config


def minimal(**more: Any) -> Config:
    """Return a config with the required sections, and others."""
    return Config(
        {
            "model": {"type": "RetinaNet"},
            "data": {"train": {"type": "CocoDataset"}},
            "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
            "runner": {"type": "EpochBasedRunner", "max_epochs": 2},
            **more,
        }
    )

"""Running statistics differ between ranks, but evaluations and checkpoints use their mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dq.dist.files.checkpoint import load_checkpoint
from tests.processes.ranks import run_ranks

pytestmark = pytest.mark.slow


def trained(config: Any, folder: Path) -> dict[str, Any]:
    """Train by iteration; return this rank's statistics at each evaluation and at the end."""
    from dq.detector.data.datasets import dataset_of
    from dq.detector.hooks import evaluation as evaluation_hook
    from dq.detector.model.build import build_model
    from dq.detector.step.rank_state import seed_everything
    from dq.detector.training.assignment import Workplace
    from dq.detector.training.train import train

    seen: list[dict[str, Tensor]] = []

    def look(detector: Any, *_: object, **__: object) -> list[Any]:
        seen.append({k: v.clone() for k, v in detector.state_dict().items() if "running" in k})
        return []  # There are no detections, and no metric is needed here.

    evaluation_hook.detect = look  # type: ignore[assignment]
    seed_everything(0)
    dataset = dataset_of(config, "train")
    detector = build_model(config, tuple(dataset.CLASSES), initialise=True)
    place = Workplace(work_dir=folder, device=torch.device("cpu"))
    detector = train(config, detector, dataset, place, seed=0).detector
    return {"seen": seen, "end": {k: v.clone() for k, v in detector.state_dict().items()}}


def test_evaluations_and_checkpoints_at_any_interval_use_the_mean_over_ranks(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny(evaluation__interval=3)
    config.runner = {"type": "IterBasedRunner", "max_iters": 5}
    results = {}
    for interval in (2, -1):
        config.checkpoint_config = {"interval": interval, "steps": 4 if interval > 0 else 0}
        results[interval] = run_ranks(trained, 2, config, tmp_path / str(interval))
    for first, second in results.values():
        assert len(first["seen"]) == 1  # After step 3, where no checkpoint is due.
        for one, other in zip([*first["seen"], first["end"]], [*second["seen"], second["end"]],
                              strict=True):  # fmt: skip
            assert all(torch.equal(value, other[name]) for name, value in one.items())
    # The interval of checkpoints does not change the training.
    (often, _), (once, _) = results.values()
    assert all(torch.equal(value, once["end"][name]) for name, value in often["end"].items())

    names = [name for name in often["end"] if "running" in name]
    for file in ("iter_2.pth", "iter_4.pth", "iter_5.pth"):
        content = load_checkpoint(tmp_path / "2" / file)
        own = [rank["tensors"] for rank in content["ranks"]]
        for name in names:
            mine = [tensors[f"state_dict\t{name}"].double() for tensors in own]
            assert not torch.equal(*mine), name
            mean = (mine[0] + mine[1]) / 2
            assert torch.equal(content["state_dict"][name], mean.float()), name

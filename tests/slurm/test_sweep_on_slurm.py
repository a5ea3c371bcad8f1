"""The smallest case of `benchmarks.slurm_sweep`: single elements of an array are disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.slurm_sweep import Grid, prove, surroundings
from slurm.record import chains
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Options that save time and do not affect the training.
LIGHT = ("--no-validate", "--wandb", "disabled", "--cfg-options", "tracking.quantizer_images=0",
         "tracking.prediction_images=0")  # fmt: skip


def test_disturbed_elements_end_like_undisturbed_ones(
    cluster: Cluster, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    """The first is warned; the last, which has the array's own number, is preempted."""
    grid = Grid(
        presets=["int8", "w4a8"],
        seeds=[0],
        kinds=["warn", "preempt"],
        strikes=1,
        checkpoint=float_checkpoint,
        options=LIGHT,
    )
    with surroundings(cluster, tmp_path):
        restarts = prove(cluster, config, tmp_path, grid)
        jobs = chains()[0].jobs
        shown = cluster.ask("scontrol", "show", "job", jobs[0].job_id.split("_")[0])
    assert list(restarts.values()) == [1, 1]
    assert [job.label for job in jobs] == ["rich-seed0-int8", "rich-seed0-w4a8"]
    assert "ArrayTaskThrottle=2" in shown or "%2" in shown, shown
    tables = [(tmp_path / "struck" / job.label / "results.md").read_text() for job in jobs]
    assert "int8" in tables[0]
    assert "W4A8" in tables[1]

"""The smallest case of `benchmarks.slurm_sweep`: single elements of an array are struck."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.slurm_sweep import Grid, prove, surroundings
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_elements_struck_one_by_one_end_as_if_nothing_had_been(
    cluster: Cluster, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    grid = Grid(
        presets=["int8", "w4a8"], seeds=[0], kinds=["warn", "preempt"], checkpoint=float_checkpoint
    )
    with surroundings(cluster, tmp_path):
        restarts = prove(cluster, config, tmp_path, grid)
    assert list(restarts.values()) == [2, 2]

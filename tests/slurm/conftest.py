"""The launcher's tiny detector, and a Slurm to run it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.conftest import config as config
from tests.launcher.conftest import launch as launch
from tests.slurm.cluster import Cluster, running_cluster


@pytest.fixture(autouse=True)
def _own_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's index of submissions out of the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def float_checkpoint(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint of the tiny detector, untrained."""
    import torch

    from dq.detector.build import build_model
    from dq.detector.config import finish, read_config
    from dq.dist.checkpoint import save_checkpoint

    torch.manual_seed(0)
    read = finish(read_config(config))
    detector = build_model(read, tuple(read.data.test.classes), initialise=True)
    path = tmp_path_factory.mktemp("weights") / "float.pth"
    save_checkpoint(path, {"state_dict": detector.state_dict(), "meta": {}})
    return path

"""The launcher's tiny detector, and a Slurm cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.conftest import config as config
from tests.launcher.conftest import launch as launch
from tests.launcher.conftest import write_untrained
from tests.slurm.cluster import Cluster, running_cluster


@pytest.fixture(autouse=True)
def _own_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an index of submissions that is not the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as started:
        yield started


@pytest.fixture(scope="session")
def float_checkpoint(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint of the tiny detector, untrained."""
    return write_untrained(config, tmp_path_factory.mktemp("weights") / "float.pth")

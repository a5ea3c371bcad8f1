"""Which device a rank uses."""

from __future__ import annotations

import pytest
import torch

from dq.dist.rendezvous.environment import Environment
from launcher.session import choose_device

NODE = Environment(rank=3, world_size=4, local_rank=3, local_world_size=4)


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, number: int, **slurm: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_rank_uses_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    assert choose_device("auto", NODE) == torch.device("cuda:3")
    assert choose_device("cpu", NODE) == torch.device("cpu")
    assert choose_device("cuda:1", NODE) == torch.device("cuda:1")


@pytest.mark.parametrize("more", [{"GPUS_ON_NODE": "4"}, {"GPUS_PER_TASK": "1"}])
def test_a_task_that_sees_one_gpu_of_several_uses_it(
    more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 1, PROCID="3", **more)
    assert choose_device("cuda", NODE) == torch.device("cuda:0")


@pytest.mark.parametrize("slurm", [{}, {"PROCID": "3"}, {"PROCID": "3", "GPUS_ON_NODE": "1"}])
def test_several_ranks_for_one_gpu_are_refused(
    slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 1, **slurm)
    with pytest.raises(ValueError, match="local rank 3 has no GPU, this machine has 1"):
        choose_device("auto", NODE)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    with pytest.raises(ValueError, match="has 1 GPUs, numbered from 0"):
        choose_device("cuda:7", NODE)
    gpus(monkeypatch, 0)
    assert choose_device("auto", NODE) == torch.device("cpu")
    with pytest.raises(ValueError, match="has no GPU"):
        choose_device("cuda", NODE)

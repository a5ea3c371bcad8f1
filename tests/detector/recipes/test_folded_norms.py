"""Batch norms without statistics of their own are recognized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dq.detector.recipes.folded_norms import has_folded_norms


def net(**state: float) -> nn.Module:
    found = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
    for name, value in state.items():
        found[1].state_dict()[name].fill_(value)
    return found


@pytest.mark.parametrize("variance", [1.0, 1.0 - 1e-3])
def test_a_folded_norm_has_a_bias_but_no_statistics(variance: float) -> None:
    assert has_folded_norms(net(bias=0.3, running_var=variance))


def test_trained_and_new_norms_are_not_folded() -> None:
    assert not has_folded_norms(net())
    trained = net(bias=0.3)
    trained(torch.randn(8, 3, 4, 4))
    assert not has_folded_norms(trained)
    assert not has_folded_norms(nn.Conv2d(3, 4, 1))
    without = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    assert not has_folded_norms(without)

"""Watchers of modules are called in the body and never after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dq.quant.quantizers.restore import watching_inputs, watching_outputs


def net() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.ReLU())


def test_inputs_are_seen_before_each_call() -> None:
    model, seen = net(), []
    with watching_inputs({model[1]: lambda module, inputs: seen.append((module, *inputs))}):
        model(torch.tensor([-1.0]))
    model(torch.tensor([2.0]))
    assert seen == [(model[1], torch.tensor([-1.0]))]


def test_outputs_are_seen_by_name_and_stay_as_they_are() -> None:
    model, seen = net(), []
    watched = {"first": model[0], "second": model[1]}
    with watching_outputs(watched, lambda name, x, y: seen.append((name, x[0].item(), y.item()))):
        assert model(torch.tensor([-1.0])).item() == 0
    model(torch.tensor([2.0]))
    assert seen == [("first", -1, -1), ("second", -1, 0)]


def test_what_a_watcher_returns_replaces_the_output() -> None:
    model = net()
    with watching_outputs({"first": model[0]}, lambda name, inputs, output: output + 3):
        assert model(torch.tensor([-1.0])).item() == 2
    assert model(torch.tensor([-1.0])).item() == 0


@pytest.mark.parametrize("watching", [watching_inputs, watching_outputs])
def test_watchers_are_removed_after_an_error(watching) -> None:
    model, calls = net(), []
    watched = {model[0]: calls.append} if watching is watching_inputs else {"first": model[0]}
    more = () if watching is watching_inputs else (lambda *_: calls.append(1),)
    with pytest.raises(ZeroDivisionError), watching(watched, *more):
        raise ZeroDivisionError
    model(torch.tensor([1.0]))
    assert calls == []

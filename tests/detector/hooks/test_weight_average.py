"""Our weight average gives the same numbers as the EMA hooks of mmdet and mmcv."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv.runner import HOOKS
from torch import nn

from dq.detector.hooks.weight_average import averaged_by, without_ema_hooks

FAMILY: list[dict[str, Any]] = [
    {"type": "ExpMomentumEMAHook", "momentum": 0.01, "total_iter": 5, "priority": 49},
    {"type": "ExpMomentumEMAHook", "momentum": 0.3, "interval": 2, "skip_buffers": True},
    {"type": "LinearMomentumEMAHook", "momentum": 0.2, "warm_up": 3},
    {"type": "LinearMomentumEMAHook", "momentum": 0.5, "interval": 2, "warm_up": 9},
    {"type": "EMAHook", "momentum": 0.5, "warm_up": 4, "resume_from": None},
    {"type": "EMAHook", "momentum": 0.9, "interval": 2},
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def steps(model: nn.Module, number: int) -> Any:
    """Yield the numbers of steps, each after the model has changed."""
    generator = torch.Generator().manual_seed(1)
    for step in range(number):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            model(torch.randn(8, 3, generator=generator))
        yield step


@pytest.mark.parametrize("section", FAMILY, ids=lambda s: f"{s['type']}-{s['momentum']}")
def test_average_is_that_of_the_hook(section: dict[str, Any]) -> None:
    arguments = {k: v for k, v in section.items() if k not in ("type", "priority")}
    theirs, hook = net(), HOOKS.get(section["type"])(**arguments)
    runner = SimpleNamespace(model=theirs, iter=0)
    hook.before_run(runner)
    for runner.iter in steps(theirs, 7):
        # mmcv's own hook adds in a form that current torch has removed.
        torch.Tensor.add_ = _old_add(torch.Tensor.add_)  # type: ignore[method-assign]
        try:
            hook.after_train_iter(runner)
        finally:
            torch.Tensor.add_ = torch.Tensor.add_.original  # type: ignore[method-assign,attr-defined]
    hook.after_train_epoch(runner)
    expected = {k: v for k, v in theirs.state_dict().items() if not k.startswith("ema_")}

    ours = net()
    kept, rule = without_ema_hooks([section, {"type": "YOLOXModeSwitchHook"}])
    assert kept == [{"type": "YOLOXModeSwitchHook"}]
    assert rule is not None
    average = averaged_by(rule, ours)
    for step in steps(ours, 7):
        average.update_(step)
    average.swap_()
    for name, value in ours.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=name)


def _old_add(new: Any) -> Any:
    def add_(self: torch.Tensor, *values: Any, **more: Any) -> torch.Tensor:
        if len(values) == 2:
            return new(self, values[1], alpha=values[0])  # type: ignore[no-any-return]
        return new(self, *values, **more)  # type: ignore[no-any-return]

    add_.original = new  # type: ignore[attr-defined]
    return add_


def test_without_hooks_nothing_is_averaged() -> None:
    assert without_ema_hooks(None) == ([], None)
    hooks = [{"type": "SyncNormHook"}]
    assert without_ema_hooks(hooks) == (hooks, None)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([FAMILY[0], FAMILY[2]], "two EMA hooks"),
        ([{"type": "EMAHook", "resume_from": "x.pth"}], "EMAHook.resume_from is not read"),
        ([{"type": "EMAHook", "momentun": 0.1}], "momentun"),
        ([{"type": "EMAHook", "momentum": 2.0}], "custom_hooks: EMAHook"),
    ],
)
def test_mistake_is_named(hooks: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        without_ema_hooks(hooks)

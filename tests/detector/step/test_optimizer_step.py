"""Steps of several micro-batches, and steps with NaN."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmcv.parallel import DataContainer
from torch import Tensor, nn

from dq.detector.step.guards import Guards
from dq.detector.step.losses import LossLog, LossValues
from dq.detector.step.optimizer_step import OptimizerStep
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import wrap
from tests.processes.ranks import run_ranks

CPU = torch.device("cpu")


class Net(nn.Module):
    """A stand-in for a detector: one loss per micro-batch, and a buffer that forward changes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 1, 2))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.detach().sum())
        return self.layers(x).square().mean()


def runner(model: nn.Module, lr: float = 0.1) -> Any:
    """Return the part of a runner that `OptimizerStep` needs."""

    def train_step(batch: Any, optimizer: Any) -> dict[str, Any]:
        loss = model(batch["img"])
        names = LossValues({"loss_cls": loss.detach(), "loss": loss.detach()})
        return {"loss": loss, "log_vars": names, "num_samples": len(batch["img"])}

    model.__dict__["train_step"] = train_step
    return SimpleNamespace(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        log_buffer=LossLog(), iter=0,
    )  # fmt: skip


def do(step: OptimizerStep, it: Any, batches: list[Any]) -> None:
    """Do one step as the runner does."""
    it.outputs = step.forward(it, batches)
    it.log_buffer.update(it.outputs["log_vars"], it.outputs["num_samples"])
    step.after_train_iter(it)


def batch(number: int, value: float | None = None) -> dict[str, Any]:
    x = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(number))
    if value is not None:
        x[0, 0, 0, 0] = value
    metas = [{"ori_filename": f"folder/{number}_{i}.jpg"} for i in range(2)]
    return {"img": x, "img_metas": DataContainer([metas], cpu_only=True)}


def steps(ranks: int, clip: bool) -> dict[str, Tensor]:
    """Train three steps of four micro-batches, distributed over the ranks."""
    net = Net()
    it = runner(wrap(net, device=CPU))
    step = OptimizerStep(
        guards=Guards(), grad_clip={"max_norm": 0.05, "norm_type": 2} if clip else None
    )
    for number in range(3):
        all_batches = [batch(10 * number + i) for i in range(4)]
        do(step, it, all_batches[collectives.rank() :: ranks])
    return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.parametrize("clip", [False, True])
def test_accumulated_micro_batches_on_two_ranks_equal_one_process(clip: bool) -> None:
    alone = steps(1, clip)
    for got in run_ranks(steps, 2, 2, clip):
        for name, value in alone.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-7, msg=name)
    whole = Net()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    for number in range(3):
        optimizer.zero_grad()
        whole(torch.cat([batch(10 * number + i)["img"] for i in range(4)])).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.05)
        optimizer.step()
    for name, value in whole.named_parameters():
        torch.testing.assert_close(alone[name], value.detach(), rtol=1e-5, atol=1e-7, msg=name)


def test_stop_names_step_loss_rank_and_images() -> None:
    step = OptimizerStep(guards=Guards())
    with pytest.raises(RuntimeError, match=r"step 1: loss_cls is nan on rank 0 \(images 7_0.jpg"):
        do(step, runner(Net()), [batch(7, float("nan"))])


def skip_on_two_ranks() -> tuple[list[float], float, int, str]:
    net = Net()
    it = runner(wrap(net, device=CPU))
    step = OptimizerStep(guards=Guards(nonfinite="skip", max_skipped=2))
    bad = float("inf") if collectives.rank() == 1 else None
    do(step, it, [batch(1)])
    before = [float(p.detach().sum()) for p in net.parameters()]
    seen = float(net.seen)
    for _ in range(2):
        do(step, it, [batch(2, bad)])
        assert [len(values) for values in it.log_buffer.val_history.values()] == [1, 1, 1]
    assert float(net.seen) == seen
    assert [float(p.detach().sum()) for p in net.parameters()] == before
    try:
        do(step, it, [batch(3, bad)])
    except RuntimeError as error:
        return before, seen, step.skipped, str(error)
    return before, seen, step.skipped, ""


def test_skipped_step_changes_nothing_and_too_many_end_the_training_on_all_ranks() -> None:
    first, second = run_ranks(skip_on_two_ranks, 2)
    assert first[0] == second[0]
    assert first[2] == second[2] == 2
    for got in (first, second):
        assert "step 1: " in got[3]
        assert "on rank 1" in got[3]
        assert "2 steps in a row were skipped" in got[3]


@pytest.mark.parametrize("several", [False, True])
def test_a_skipped_step_also_ends_the_scalers_step(several: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    net = Net()
    it = runner(net)
    step = OptimizerStep(guards=Guards(nonfinite="skip"), scaler=scaler)
    more = [batch(9)] if several else []
    do(step, it, [batch(1), *more])
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        do(step, it, [batch(2, float("nan")), *more])
        assert all(map(torch.equal, before, net.parameters()))
    # Not an overflow: the scale of the next step does not change.
    assert scaler.get_scale() == 1024.0
    do(step, it, [batch(3), *more])
    assert not torch.equal(before[0], next(net.parameters()))


def test_an_overflow_of_float16_lowers_the_scale_and_is_not_a_skipped_step() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    net = Net()
    it = runner(net)
    step = OptimizerStep(guards=Guards(nonfinite="skip"), scaler=scaler)
    before = [p.detach().clone() for p in net.parameters()]
    big = batch(1)
    big["img"] *= 100
    do(step, it, [big])
    assert all(map(torch.equal, before, net.parameters()))
    assert scaler.get_scale() == 2.0**126
    assert step.skipped == 0

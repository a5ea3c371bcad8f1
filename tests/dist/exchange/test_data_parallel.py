"""DDP: wrapped only if useful, gradients are means, buffers differ until they are averaged."""

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dq.dist.exchange import collectives, data_parallel
from dq.dist.exchange.collectives import collective_count
from dq.dist.exchange.data_parallel import (
    no_sync,
    sync_buffers_,
    unused_parameters_named,
    unwrap,
    wrap,
)
from tests.processes.ranks import rank_outcomes, run_ranks

CPU = torch.device("cpu")


class Derived(DistributedDataParallel):
    pass


class Older(nn.Module):
    """Stands for the DDP of an older torch without `forward_sync_buffers`."""

    def __init__(
        self,
        module: nn.Module,
        device_ids: list[torch.device] | None = None,
        broadcast_buffers: bool = True,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = False,
    ) -> None:
        super().__init__()
        self.broadcast_buffers = broadcast_buffers


def wrap_with_an_older_torch() -> tuple[bool, list[float]]:
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(collectives.rank() + 5)
    with mock.patch.object(data_parallel, "DistributedDataParallel", Older):
        wrapped: Any = wrap(model, device=CPU, cls=Older)  # type: ignore[arg-type]
    return wrapped.broadcast_buffers, model.running_mean.tolist()


def test_an_older_torch_leaves_buffers_alone_too_and_still_starts_equal() -> None:
    assert run_ranks(wrap_with_an_older_torch, 2) == [(False, [5.0]), (False, [5.0])]


def train() -> dict[str, Any]:
    rank = collectives.rank()
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[1].running_mean.fill_(rank)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    wrapped = wrap(model, device=CPU, cls=Derived)
    got: dict[str, Any] = {
        "class": type(wrapped).__name__,
        "inside": unwrap(wrapped) is model,
        "leaves buffers alone": not wrapped.forward_sync_buffers,
        "weight at start": model[0].weight.detach().clone(),
        "running mean at start": model[1].running_mean.clone(),
        "frozen stays": wrap(frozen, device=CPU) is frozen,
    }
    batch = torch.full((1, 1, 2, 2), float(rank)) + torch.arange(4.0).view(1, 1, 2, 2) * (rank + 1)
    with no_sync(wrapped):
        wrapped(batch).square().sum().backward()
    got["own gradient"] = model[0].weight.grad.clone()
    model.zero_grad()
    model[1].reset_running_stats()
    wrapped(batch).square().sum().backward()
    got["gradient"] = model[0].weight.grad.clone()
    got["own mean"] = model[1].running_mean.clone()
    got["own variance"] = model[1].running_var.clone()
    before = collective_count()
    sync_buffers_(wrapped)
    got["collectives"] = collective_count() - before
    got["mean"], got["variance"] = model[1].running_mean, model[1].running_var
    got["batches"] = model[1].num_batches_tracked.item()
    return got


def test_two_ranks_start_equal_share_gradients_and_keep_their_buffers_until_averaged() -> None:
    first, second = run_ranks(train, 2)
    for got in (first, second):
        assert got["class"] == "Derived"
        assert got["inside"]
        assert got["leaves buffers alone"]
        assert got["frozen stays"]
        assert torch.equal(got["weight at start"], first["weight at start"])
        assert got["running mean at start"].tolist() == [0.0, 0.0]
        mean_gradient = (first["own gradient"] + second["own gradient"]) / 2
        torch.testing.assert_close(got["gradient"], mean_gradient)
        assert got["collectives"] == 1
        torch.testing.assert_close(got["mean"], (first["own mean"] + second["own mean"]) / 2)
        torch.testing.assert_close(
            got["variance"], (first["own variance"] + second["own variance"]) / 2
        )
        assert got["batches"] == 1
    assert not torch.equal(first["own gradient"], second["own gradient"])
    assert not torch.equal(first["own mean"], second["own mean"])


class TwoLayers(nn.Module):
    """A module whose second layer is used only if the caller asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, values: Tensor, both: bool) -> Tensor:
        found: Tensor = self.first(values)
        return self.second(found) if both else found


def leave_out_a_layer(ranks: tuple[int, ...]) -> str:
    wrapped = wrap(TwoLayers(), device=CPU)
    uses_both = collectives.rank() not in ranks
    try:
        for _ in range(2):
            with unused_parameters_named(wrapped):
                found = wrapped(torch.ones(1, 1), uses_both)
            found.sum().backward()
    except ValueError as error:
        return str(error)
    except RuntimeError:
        return "lost"  # Another rank did not come to the collective.
    return "done"


@pytest.mark.parametrize("ranks", [(0, 1), (1,)])
def test_weights_that_a_step_does_not_use_are_named(ranks: tuple[int, ...]) -> None:
    # A rank that uses all waits for the other until the time-out of the group.
    said = [one.result for one in rank_outcomes(leave_out_a_layer, 2, ranks, group_timeout_s=3.0)]
    for rank in ranks:
        assert said[rank].startswith(
            "the losses of the last step do not use second.weight, second.bias; let"
        )
        assert "find_unused_parameters=True" in said[rank]
    assert "done" not in said


def test_other_errors_of_a_step_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="another"), unused_parameters_named(nn.Linear(1, 1)):
        raise RuntimeError("another")


def test_alone_the_module_stays_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert wrap(model, device=CPU) is model
    assert unwrap(model) is model
    with no_sync(model):
        sync_buffers_(model)
    assert model[1].running_mean.tolist() == [0.0, 0.0]


def test_alone_statistics_are_copied_and_not_written() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(3, track_running_stats=False))
    before = net[0].running_mean._version
    sync_buffers_(net)
    # Writing the same values would still make a backward pass in progress fail.
    assert net[0].running_mean._version == before
    means = data_parallel.mean_buffers(net)
    assert list(means) == ["0.running_mean", "0.running_var"]
    means["0.running_mean"].fill_(5.0)
    assert not net[0].running_mean.any()
    alone = data_parallel.mean_buffers(nn.BatchNorm2d(2))
    assert list(alone) == ["running_mean", "running_var"]


def test_ranks_without_statistics_exchange_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda group=None: 2)
    monkeypatch.setattr(collectives, "all_reduce_", None)
    assert data_parallel.mean_buffers(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (" 0", "use weight;"),
        (" 0 1", "use weight, bias;"),
        (" 0 1 0", "use weight, bias, weight;"),
        (" 0 1 0 1 1", "use weight, bias, weight and 2 more;"),
        (None, "use some weights;"),
    ],
)
def test_at_most_three_unused_weights_are_named(numbers: str | None, said: str) -> None:
    net = nn.Linear(2, 2)
    text = "Expected to have finished reduction in the prior iteration"
    if numbers is not None:
        text += f": Parameter indices which did not receive grad for rank 1:{numbers}"

    def fail() -> None:
        with unused_parameters_named(net):
            raise RuntimeError(text)

    with pytest.raises(ValueError, match=f"do not {said}"):
        fail()


def test_a_compiled_module_is_unwrapped() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model)) is model


class Wide(nn.Module):
    """More parameters than fit into DDP's first bucket, used in another order than registered."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = (400, 700, 300, 500)
        self.layers = nn.ModuleList(nn.Linear(64, size * 8) for size in sizes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        order = (2, 0, 3, 1)
        return sum(self.layers[i](x * self.scale).square().mean() for i in order)  # type: ignore[return-value]


def steps_from(first: int, state: dict[str, Any] | None) -> dict[str, Any]:
    """Train three steps, or resume after some of them in a newly wrapped module."""
    model = Wide()
    wrapped = wrap(model, device=CPU, late=[model.scale])
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, 3):
        chance = torch.Generator().manual_seed(10 * step + collectives.rank())
        optimizer.zero_grad()
        wrapped(torch.randn(4, 64, generator=chance)).backward()
        optimizer.step()
        if step == 0:
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            early = copy.deepcopy(kept)
    return {"early": early if first == 0 else None, "end": model.state_dict()}


@pytest.mark.slow
def test_three_ranks_add_up_in_the_same_order_after_a_new_start() -> None:
    whole = run_ranks(steps_from, 3, 0, None)
    again = run_ranks(steps_from, 3, 1, whole[0]["early"])
    for name, value in whole[0]["end"].items():
        assert all(torch.equal(value, rank["end"][name]) for rank in [*whole, *again]), name

"""DDP: wrapped when it is of use, gradients are means, buffers are left alone until averaged."""

from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dq.dist import collectives, data_parallel
from dq.dist.collectives import collective_count
from dq.dist.data_parallel import no_sync, sync_buffers_, unwrap, wrap
from tests.ranks import run_ranks

CPU = torch.device("cpu")


class Derived(DistributedDataParallel):
    pass


class Older(nn.Module):
    """Stand for the DDP of a torch that does not know `forward_sync_buffers` yet."""

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


def test_alone_the_module_stays_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert wrap(model, device=CPU) is model
    assert unwrap(model) is model
    with no_sync(model):
        sync_buffers_(model)
    assert model[1].running_mean.tolist() == [0.0, 0.0]


def test_a_compiled_module_is_unwrapped() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model)) is model

"""Statistics over the ranks of one node only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dq.dist.exchange import collectives
from dq.dist.exchange.node_group import node_group
from dq.dist.norm.sync_batch_norm import convert_sync_batch_norm
from dq.dist.rendezvous.environment import Environment
from tests.processes.ranks import run_ranks


def samples(rank: int) -> Tensor:
    return torch.randn(2 + rank, 3, 4, generator=torch.Generator().manual_seed(rank)) * (rank + 1)


def normalize_on_two_nodes() -> tuple[Tensor, Tensor, Tensor]:
    rank = collectives.rank()
    place = Environment(
        rank=rank, world_size=4, local_rank=rank % 2, local_world_size=2, node=rank // 2,
        num_nodes=2,
    )  # fmt: skip
    group = node_group(place)
    norm = convert_sync_batch_norm(nn.BatchNorm1d(3), group)
    x = samples(rank).requires_grad_()
    output = norm(x)
    (output * torch.arange(4.0)).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad, norm.running_var


def test_each_node_normalizes_by_its_own_samples() -> None:
    got = run_ranks(normalize_on_two_nodes, 4)
    for node in (0, 1):
        norm = nn.BatchNorm1d(3)
        x = torch.cat([samples(2 * node), samples(2 * node + 1)]).requires_grad_()
        output = norm(x)
        (output * torch.arange(4.0)).sum().backward()
        first, second = got[2 * node], got[2 * node + 1]
        torch.testing.assert_close(torch.cat([first[0], second[0]]), output.detach())
        torch.testing.assert_close(torch.cat([first[1], second[1]]), x.grad)
        torch.testing.assert_close(first[2], norm.running_var)
        assert torch.equal(first[2], second[2])
    assert not torch.equal(got[0][2], got[2][2])


def one_node() -> bool:
    place = Environment(rank=collectives.rank(), world_size=2, local_world_size=2)
    return node_group(replace(place, local_rank=collectives.rank())) is None


def test_on_one_node_there_is_no_node_group() -> None:
    assert run_ranks(one_node, 2) == [True, True]
    assert node_group(Environment()) is None

"""The digest: equal only for equal tensors; the names of tensors that differ."""

import pytest
import torch
from torch import Tensor, nn

from dq.dist.equality.digest import differing_names, digest
from dq.dist.exchange import collectives
from dq.dist.exchange.collectives import collective_count
from tests.processes.ranks import run_ranks


def named() -> dict[str, Tensor]:
    return {
        "a.scale": torch.tensor([0.5, 2.0]),
        "b.half": torch.ones(2, 3, dtype=torch.bfloat16),
        "c.count": torch.tensor(3),
        "d.none": torch.empty(0, 2),
        "e.flag": torch.tensor([True, False]),
    }


def test_order_strides_and_parameters_do_not_matter() -> None:
    wanted = digest(named().items())
    assert len(wanted) == 64
    assert digest(reversed(named().items())) == wanted
    strided = named() | {"b.half": torch.ones(3, 2, dtype=torch.bfloat16).t()}
    assert digest(strided.items()) == wanted
    parameter = named() | {"a.scale": nn.Parameter(torch.tensor([0.5, 2.0]))}
    assert digest(parameter.items()) == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"a.scale": torch.tensor([0.5, 2.0000002])},
        {"a.scale": torch.tensor([[0.5, 2.0]])},
        {"c.count": torch.tensor(3, dtype=torch.int32)},
        {"d.none": torch.empty(2, 0)},
        {"e.flag": torch.tensor([1, 0], dtype=torch.uint8)},
        {"f.more": torch.tensor(0)},
    ],
)
def test_value_shape_dtype_and_name_matter(change: dict[str, Tensor]) -> None:
    assert digest((named() | change).items()) != digest(named().items())


def test_a_duplicate_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.scale' comes twice"):
        digest([*named().items(), *named().items()])


def prove() -> tuple[list[str], int, list[str], list[str]]:
    rank = collectives.rank()
    equal = differing_names(named().items())
    taken = collective_count()
    changed = named()
    if rank == 1:
        changed["c.count"] += 1
        changed["a.scale"][0] = -0.5
    one = differing_names(changed.items())
    if rank == 2:
        del changed["b.half"]
        changed["z.only here"] = torch.zeros(1)
    return equal, taken, one, differing_names(changed.items())


def test_equal_ranks_need_one_collective_and_differences_are_named() -> None:
    for equal, taken, one, many in run_ranks(prove, 3):
        assert equal == []
        assert taken == 1
        assert one == ["a.scale", "c.count"]
        assert many == ["a.scale", "b.half", "c.count", "z.only here"]


def test_a_single_process_has_no_differences() -> None:
    assert differing_names(named().items()) == []

"""A model gets exactly its inputs; others are one line that names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from dq.quant.verify.engine import Network

FLOAT = onnx.TensorProto.FLOAT


class Sums(Network):
    """Adds its inputs."""

    def compute(self, arrays: Sequence[Any]) -> Sequence[Any]:
        return [np.sum(arrays, axis=0)]


def network_with(names: Sequence[str]) -> Sums:
    values = [helper.make_tensor_value_info(name, FLOAT, ["n", 3, 4, 4]) for name in names]
    result = helper.make_tensor_value_info("sum", FLOAT, None)
    return Sums(helper.make_model(helper.make_graph([], "net", values, [result])))


def test_all_inputs_are_used() -> None:
    network, x = network_with(["x", "y"]), torch.ones(2, 3, 4, 4)
    assert torch.equal(network.tensors(x, 2 * x)[0], 3 * x)
    assert (network.run(x, {"y": x})["sum"] == 2.0).all()


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["x", "y"], 1, "has 2 inputs (x, y) and got 1, without y;"),
        (["x", "y", "z"], 1, "has 3 inputs (x, y, z) and got 1, without y, z;"),
        (["x"], 2, "has 1 input (x) and got 2;"),
        ([], 1, "has 0 inputs (all its values are constants) and got 1;"),
    ],
)
def test_other_numbers_of_inputs_are_refused(names: list[str], given: int, said: str) -> None:
    network, x = network_with(names), torch.ones(2, 3, 4, 4)
    others = {f"other {number}": x for number in range(1, given)}
    for run in (
        lambda: network.tensors(x, *others.values()),
        lambda: network.run(x, others),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            run()


def test_an_input_of_another_name_is_refused() -> None:
    x = torch.ones(2, 3, 4, 4)
    with pytest.raises(ValueError, match="got 2, without y; is it an export of this network"):
        network_with(["x", "y"]).run(x, {"other": x})

"""What a node is for quantization, however it is written."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.roles import (
    Role,
    is_constant,
    is_mask,
    role_of,
    tensor_inputs,
    weight_node,
)
from dq.quant.recipes.recipe import Recipe


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.norm = nn.Conv2d(3, 3, 1), nn.Linear(3, 3), nn.BatchNorm2d(3)
        self.average, self.most = nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(2)
        self.near, self.smooth = nn.Upsample(scale_factor=2), nn.Upsample((4, 4), mode="bilinear")
        self.gelu, self.same = nn.GELU(), nn.Identity()
        self.weight = nn.Parameter(torch.ones(3, 3, 1, 1))


# An expression of the model `m` and its inputs `x` and `y`, by the role of its last node.
EXPRESSIONS = {
    Role.LAYER: [
        "m.conv(x)",
        "m.linear(x)",
        "F.conv2d(x, m.weight)",
        "F.conv2d(x, weight=m.weight * 2)",
        "F.conv_transpose2d(x, m.weight, None)",
    ],
    Role.MIXER: [
        "x + y",
        "x - y",
        "torch.mul(x, y)",
        "x.add(y)",
        "x.sub_(y)",
        "x @ y",
        "torch.bmm(x, y)",
        "torch.einsum('ab,cb->ac', x, y)",
        "x * x",
        "operator.iadd(x, y)",
        "m.average(x)",
        "F.avg_pool2d(x, 2)",
        "x.mean(1)",
        "torch.mean(x)",
        "m.smooth(x)",
        "F.interpolate(x, (4, 4), None, 'bilinear')",
        "F.interpolate(x, size=(4, 4), mode='bicubic')",
    ],
    Role.CARRIER: [
        "m.most(x)",
        "m.near(x)",
        "m.same(x)",
        "F.max_pool2d(x, 2)",
        "F.interpolate(x, (4, 4))",
        "F.interpolate(x, size=(4, 4), mode='nearest-exact')",
        "x.view(-1)",
        "x.to(torch.float16)",
        "x[0]",
        "x.reshape(x.shape[0], -1)",
        "torch.flatten(x, 1)",
        "F.pad(x, (1, 1))",
        "x.expand_as(x)",
    ],
    Role.JOIN: ["torch.cat([x, y])", "torch.stack([x, y], 1)", "torch.concat([x, x])"],
    Role.OTHER: [
        "m.gelu(x)",
        "m.norm(x)",
        "m.weight",
        "F.relu(x)",
        "x * 2.0",
        "x + m.weight",
        "m.weight + m.weight",
        "m.weight.mean()",
        "m.weight.view(-1)",
        "x * (y > 0)",
        "x.size(0)",
        "x.shape[0] * 2",
        "getattr(x, 'dtype')",
        "F.conv2d(x, y)",  # A weight that depends on the input.
        "torch.softmax(x, 1)",
        "torch.where(x > 0, x, y)",
        "x > y",
        "torch.max(x, y)",  # Of two tensors, it selects values of both.
    ],
}
CASES = [(role, text) for role, texts in EXPRESSIONS.items() for text in texts]


def graph_of(text: str) -> tuple[nn.Module, fx.Node]:
    """Return a model and the node of an expression."""
    model = Model()
    names = {"F": F, "torch": torch, "operator": operator}

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = model

        def forward(self, x: Tensor, y: Tensor) -> object:
            return eval(text, {**names, "m": self.m, "x": x, "y": y})

    traced = fx.symbolic_trace(Called())
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return traced, output.args[0]


@pytest.mark.parametrize(("role", "text"), CASES)
def test_the_role_of_an_expression(role: Role, text: str) -> None:
    root, node = graph_of(text)
    assert role_of(root, node) is role


def test_inputs_and_outputs() -> None:
    root, node = graph_of("x + y")
    found = {each.name: role_of(root, each) for each in node.graph.nodes}
    assert found == {"x": Role.INPUT, "y": Role.INPUT, "add": Role.MIXER, "output": Role.OTHER}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("torch.where(x > 0, x, y)", ["x", "y"]),
        ("x * m.weight", ["x"]),
        ("x * y.size(0)", ["x"]),
        ("x * (y == 0)", ["x"]),
        ("x * (y == 0).to(x.dtype)", ["x"]),
        ("x * torch.lt(y, 0).float()", ["x"]),
        ("x * y.bool()", ["x"]),
        ("x * y.to(torch.int32)", ["x", "to"]),
    ],
)
def test_only_tensors_that_depend_on_the_input_are_read(text: str, wanted: list[str]) -> None:
    _, node = graph_of(text)
    assert [each.name for each in tensor_inputs(node)] == wanted
    for each in node.all_input_nodes:
        is_number = each.name in {"x", "y", "size", "m_weight"} or each.name in wanted
        assert is_mask(each) is not is_number
        assert is_constant(each) == each.name.startswith("m_weight")


def test_the_weight_of_a_layer_that_is_called_as_a_function() -> None:
    for text, name in (
        ("F.conv2d(x, m.weight)", "m_weight"),
        ("F.linear(x, weight=m.weight)", "m_weight"),
        ("F.conv2d(x, m.weight * 2)", "mul"),
        ("F.conv2d(x, y)", None),
        ("F.relu(x)", None),
        ("m.conv(x)", None),
        ("x.add(m.weight)", None),
    ):
        _, node = graph_of(text)
        found = weight_node(node)
        assert (found and found.name) == name, text


def test_quantized_layers_are_layers() -> None:
    graph = prepare(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval(), Recipe())
    roles = [role_of(graph.root, node) for node in graph.graph.nodes]
    assert roles.count(Role.LAYER) == 1

"""The inputs of parts: those of each call, in float and as the repaired model leaves them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.ptq.parts import captured, part_inputs, rows_of
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase


class Head(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return boxes.sum() * scores.sum()


class Runner:
    """A model whose parts get one box for each image, or none."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.ran: list[Any] = []

    def features(self, images: Tensor) -> Tensor:
        result: Tensor = self.root.quantizers["x"](images)
        return result

    def run(self, features: Tensor, images: Tensor, boxes: Any = None) -> Any:
        self.ran.append(boxes)
        boxes = len(images) if boxes is None else boxes
        given = features[:boxes]
        self.root.head(given, given + 1)
        self.root.head(given[:0], given[:0])  # Without boxes.
        return boxes


@pytest.fixture
def model() -> tuple[Any, Runner]:
    root = nn.Module()
    quantizer = ActivationQuantizer(QuantSpec(), MinMaxObserver())
    quantizer.scale.fill_(1.0)
    root.quantizers = nn.ModuleDict({"x": quantizer})
    root.head, root.other = Head(), Head()
    quantizer.phase = Phase.FROZEN
    graph = SimpleNamespace(
        root=root, quantizers=root.quantizers, parts={"head": None, "other": None}
    )
    quantizer.observer.observe(torch.tensor([0.0, 255.0]))
    quantizer.observer.update_()
    return graph, Runner(root)


def test_calls_are_kept_in_float_and_rounded(
    model: tuple[Any, Runner], caplog: pytest.LogCaptureFixture
) -> None:
    graph, runner = model
    images = [torch.tensor([1.2, 2.6, 3.4]), torch.tensor([7.7])]
    with caplog.at_level(logging.WARNING):
        inputs = part_inputs(graph, runner, images)
    assert "no boxes reach other on these images" in caplog.text
    assert inputs.boxes == [3, 1]
    assert runner.ran == [None, None]
    calls = inputs.plain["head"]
    assert inputs.plain["other"] == []
    assert [len(call) for call in calls] == [2, 2]
    assert torch.equal(calls[0][0], images[0])
    assert torch.equal(calls[1][1], images[1] + 1)
    features = inputs.features()
    assert [f.tolist() for f in features] == [[1, 3, 3], [8]]
    rounded = inputs.rounded("head", features)
    assert [[x.tolist() for x in call] for call in rounded] == [
        [[1, 3, 3], [2, 4, 4]],
        [[8], [9]],
    ]
    assert runner.ran == [None, None, 3, 1]
    assert graph.quantizers["x"].phase is Phase.FROZEN
    with pytest.raises(ValueError, match="longer"):
        inputs.rounded("head", features[:1])


def test_only_the_parts_asked_for_are_kept_and_nothing_after_the_body(
    model: tuple[Any, Runner],
) -> None:
    graph, _ = model
    x = torch.ones(2)
    with captured(graph, ["other"]) as found:
        graph.root.head(x, x)
        graph.root.other(x, x)
        graph.root.other(x, x[:0])  # One empty input is enough.
    graph.root.other(x, x)
    assert {part: len(calls) for part, calls in found.items()} == {"other": 1}
    found["other"][0][0].zero_()
    assert x.tolist() == [1, 1]  # What is kept is a copy.
    assert not any(module._forward_pre_hooks for module in graph.root.modules())


def test_calls_are_split_by_rows() -> None:
    x = torch.arange(5)
    assert [part.tolist() for part in rows_of([x, x[:1]], 2)] == [[0, 1], [2, 3], [4], [0]]
    pairs = rows_of([(x, -x), (x[:2], x[:2])], 3)
    assert [[t.tolist() for t in call] for call in pairs] == [
        [[0, 1, 2], [0, -1, -2]],
        [[3, 4], [-3, -4]],
        [[0, 1], [0, 1]],
    ]
    with pytest.raises(ValueError, match="shorter"):
        rows_of([(x, x[:2])], 2)

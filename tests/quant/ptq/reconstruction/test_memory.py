"""As many images are learned from as their values between two blocks fit into memory."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.layer_walk import float_copy
from dq.quant.ptq.reconstruction import memory
from dq.quant.ptq.reconstruction.blocks import blocks_of
from dq.quant.ptq.reconstruction.learning import reconstruct_
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import calibrate

# Eight channels of 16x16 float32 values, the output of each layer.
OUTPUT = 8 * 16 * 16 * 4


def chain() -> QuantizedGraph:
    """Return a calibrated chain of layers, which has several blocks of one output each."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(24)]
    graph = prepare(nn.Sequential(*layers).eval(), Recipe())
    calibrate(graph, batches(2))
    return graph


def batches(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 8, 16, 16, generator=generator) for _ in range(number)]


def test_an_image_takes_the_values_before_and_after_a_block_twice() -> None:
    graph = chain()
    blocks = blocks_of(graph)
    assert len(blocks) > 2
    each = memory.bytes_of_an_image(graph, float_copy(graph.root), blocks, batches(1)[0])
    assert each == 2 * 2 * OUTPUT


@pytest.mark.parametrize(("fit", "used"), [(64, 40), (40, 40), (39, 36), (9, 8), (8, 8), (1, 8)])
def test_only_as_many_images_are_used_as_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fit: int, used: int
) -> None:
    graph = chain()
    monkeypatch.setattr(memory, "MOST_BYTES", fit * 4 * OUTPUT)
    with caplog.at_level(logging.INFO, memory.__name__):
        calls = memory.affordable(graph, float_copy(graph.root), blocks_of(graph), batches(10))
    assert sum(map(memory.size_of, calls)) == used
    said = [record.getMessage() for record in caplog.records]
    assert said == ([] if used == 40 else [f"{used} images of 40 are used: the values of more"
                                           " would need above 0 GB"])  # fmt: skip


def test_fewer_images_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain()
    monkeypatch.setattr(memory, "MOST_BYTES", 1)
    wanted, whole = chain(), batches(10)
    better = reconstruct_(wanted, whole[:2], float_copy(wanted.root), steps=2)
    assert reconstruct_(graph, whole, float_copy(graph.root), steps=2) == better
    for name, value in wanted.root.state_dict().items():
        assert torch.equal(value, graph.root.state_dict()[name]), name

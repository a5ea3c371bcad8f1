"""Block reconstruction brings the outputs on unseen images nearer to float's."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.adaround import adaround_
from dq.quant.ptq.bias_correction import correct_bias_
from dq.quant.ptq.layer_walk import float_copy
from dq.quant.ptq.reconstruction import learning
from dq.quant.ptq.reconstruction.blocks import Block
from dq.quant.ptq.reconstruction.learning import reconstruct_
from dq.quant.ptq.repairs import calibrate_and_repair_
from dq.quant.ptq.settings import Repair
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from tests.quant.nets import Separable, calibrate, images, sqnr, unseen
from tests.quant.ptq.reconstruction.test_blocks import Pyramid

W3 = replace(INT8_WEIGHT, bits=3)
A4 = preset("w4a4").activation
RECIPES = {
    "3-bit weights": Recipe(weight=W3),
    "per tensor": Recipe(weight=replace(W3, channel_axis=None), activation=A4),
    "powers of two": Recipe(
        weight=replace(W3, power_of_two=True), activation=replace(A4, power_of_two=True)
    ),
    "symmetric activations": replace(
        preset("tensorrt"), weight=W3, activation=replace(preset("tensorrt").activation, bits=4)
    ),
    "4-bit activations": Recipe(weight=W3, activation=A4),
    "lsq": Recipe(weight=W3, activation=A4, learned="lsq"),
    "lsq+": Recipe(weight=W3, activation=A4, learned="lsq+"),
    "pact": Recipe(weight=W3, activation=A4, learned="pact"),
    "onnxruntime": replace(preset("onnxruntime"), weight=W3),
}


# The gain differs much from net to net.
NETS = 4


def ready(
    recipe: Recipe, activation: type[nn.Module] = nn.ReLU, seed: int = 0
) -> tuple[QuantizedGraph, nn.Module, list[Tensor]]:
    """Return a calibrated net with corrected biases, itself in float, and unseen float outputs."""
    torch.manual_seed(seed)
    net = Separable(activation, unequal=False).eval()
    wanted = unseen(net)
    graph = prepare(net, recipe)
    calibrate(graph, images())
    reference = float_copy(graph.root)
    correct_bias_(graph, images())
    return graph, reference, wanted


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "4-bit activations" else pytest.mark.slow)
        for name in RECIPES
    ],
)
def test_the_error_on_unseen_images_falls(name: str) -> None:
    gains, better = [], 0
    for seed in range(NETS):
        graph, reference, wanted = ready(RECIPES[name], nn.SiLU, seed)
        before = sqnr(graph, wanted)
        modules, keys = dict(graph.quantizers.named_modules()), list(graph.root.state_dict())
        better += reconstruct_(graph, images(), reference, steps=60)
        gains.append(sqnr(graph, wanted) - before)
        assert dict(graph.quantizers.named_modules()) == modules
        assert list(graph.root.state_dict()) == keys
        assert all(p.grad is None for p in graph.root.parameters())
    assert better >= NETS / 2
    assert sum(gains) / NETS > 0.4


def test_it_beats_rounding_layer_by_layer() -> None:
    graph, reference, wanted = ready(RECIPES["4-bit activations"], nn.SiLU)
    adaround_(graph, images(), steps=0)
    rounded = sqnr(graph, wanted)
    graph, reference, wanted = ready(RECIPES["4-bit activations"], nn.SiLU)
    reconstruct_(graph, images(), reference, steps=60)
    assert sqnr(graph, wanted) > rounded + 0.4


@pytest.mark.parametrize("name", ["4-bit activations", "symmetric activations", "onnxruntime"])
def test_a_learned_scale_is_that_of_the_range(name: str) -> None:
    """Checkpoints, training and export take scales from ranges again."""
    graph, reference, _ = ready(RECIPES[name], nn.SiLU)
    first = {n: float(q.scale) for n, q in graph.activations().items()}
    reconstruct_(graph, images(), reference, steps=60)
    moved = 0
    for quantizer_name, quantizer in graph.activations().items():
        scale, shift = quantizer.scale.clone(), quantizer.zero_point.clone()
        moved += float(scale) != first[quantizer_name]
        quantizer.initialise_from_range_()
        torch.testing.assert_close(quantizer.scale, scale, rtol=1e-5, atol=0)
        assert torch.equal(quantizer.zero_point, shift)
    assert moved


def test_the_same_images_give_the_same_result() -> None:
    states = []
    for _ in range(2):
        graph, reference, _ = ready(RECIPES["4-bit activations"])
        torch.rand(7)  # Nothing depends on torch's own generator.
        reconstruct_(graph, images(), reference, steps=10)
        states.append(graph.root.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_shared_layers_and_sums_are_reconstructed_too() -> None:
    torch.manual_seed(0)
    net = Pyramid().eval()
    wanted = unseen(net)
    graph = prepare(net, Recipe(weight=W3))
    calibrate(graph, images())
    before, reference = sqnr(graph, wanted), float_copy(graph.root)
    head = net.head.weight.detach().clone()
    reconstruct_(graph, images(), reference, steps=60)
    assert sqnr(graph, wanted) > before + 0.4
    assert not torch.equal(net.head.weight, head)


class InPlace(nn.Module):
    """Sums in float, which the next operation overwrites if it may."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(9)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            x = nn.functional.silu(x, inplace=self.in_place)
            x = x + unit(x)
        return x


def test_operations_in_place_change_nothing() -> None:
    states = []
    for in_place in (False, True):
        torch.manual_seed(0)
        graph = prepare(InPlace(in_place).eval(), replace(preset("ncnn"), weight=W3))
        calibrate(graph, images())
        reference = float_copy(graph.root)
        assert reconstruct_(graph, images(), reference, steps=10) >= 1
        states.append(graph.root.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_without_steps_nothing_changes() -> None:
    graph, reference, _ = ready(RECIPES["3-bit weights"])
    before = {key: value.clone() for key, value in graph.root.state_dict().items()}
    assert reconstruct_(graph, images(), reference, steps=0) == 0
    assert all(torch.equal(v, before[key]) for key, v in graph.root.state_dict().items())
    assert all(q.phase is Phase.FROZEN for q in graph.activations().values())


def test_calibration_does_it_last_and_logs_each_block(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    graph = prepare(Separable(unequal=False).eval(), RECIPES["3-bit weights"])

    def run(batch: Tensor) -> int:
        graph(batch)
        return len(batch)

    repair = Repair(steps=("reconstruct", "bias"), reconstruction_steps=5)
    with caplog.at_level(logging.INFO):
        calibrate_and_repair_(graph, images(), run, torch.device("cpu"), repair=repair)
    lines = [r.getMessage() for r in caplog.records]
    corrected = next(n for n, line in enumerate(lines) if "bias correction" in line)
    blocks = [n for n, line in enumerate(lines) if "block 1: relative error" in line]
    assert blocks
    assert corrected < blocks[0]
    set_phase(graph.quantizers, Phase.FROZEN)


def test_a_sum_of_squares_is_for_one_image_with_channels_weighed() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    total = float(x.square().sum())
    assert float(learning._weighed(x, torch.ones(()))) == pytest.approx(total / 2)
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    wanted = x[:, 0].square().sum() + 2 * x[:, 2].square().sum()
    assert float(learning._weighed(x, weight)) == pytest.approx(float(wanted) / 2)


def test_the_first_images_or_calls_are_measured() -> None:
    x = torch.arange(20.0).reshape(10, 2)
    found = learning._few([x[:3], x[3:]])
    assert [len(part) for part in found] == [2, 2, 2, 2]
    assert torch.equal(torch.cat(found), x[:8])
    calls = [(x, x)] * 9
    assert learning._few(calls) == calls[:8]
    assert learning.size_of(x) == learning.size_of((x, x[:1])) == 10


def test_half_of_the_values_are_mixed_and_what_is_no_number_is_not() -> None:
    ones, zeros = torch.ones(1000), torch.zeros(1000)
    index = torch.arange(3)
    mixed = learning._mixed(
        {"a": ones, "b": index, "c": "d"},
        {"a": zeros, "b": index + 1, "c": "e"},
        torch.Generator().manual_seed(0),
    )
    assert 450 < int(mixed["a"].sum()) < 550
    assert mixed["b"] is index
    assert mixed["c"] == "d"
    copied = learning._copied({"a": ones, "c": "d"})
    copied["a"].zero_()
    assert ones.all()
    assert learning._floats([ones, index, {"z": zeros}, None]) == [ones, zeros]


def test_an_error_is_relative_and_skips_outputs_that_are_no_numbers() -> None:
    graph = prepare(Separable().eval(), RECIPES["3-bit weights"])
    index, first, second = list(graph.graph.nodes)[1:4]
    block = Block(nodes=(), inputs=(), outputs=(index, first, second))
    targets = {
        index: [torch.arange(2), torch.arange(2)],
        first: [torch.full((1, 2, 1), 2.0), torch.full((1, 2, 1), 4.0)],
        second: [torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 3.0)],
    }
    effects = {first: torch.tensor([1.0, 0.5])}
    error = learning._Error(block, targets, effects, learning.HOST)
    assert list(error.weights) == [first, second]
    assert error.power == pytest.approx((4 + 2 + 16 + 8) / 2 + (1 + 9) / 2)
    outputs = {
        first: targets[first][1] + 1.0, second: targets[second][1] - 2.0, index: torch.zeros(2)
    }  # fmt: skip
    assert float(error(outputs, 1)) == pytest.approx((1.5 + 4.0) / 20.0)
    nothing = {node: [torch.zeros(1, 2, 1)] for node in (first, second)}
    block = Block(nodes=(), inputs=(), outputs=(first, second))
    assert learning._Error(block, nothing, {}, learning.HOST).power == 1e-30


def test_images_are_taken_a_few_at_once_and_boxes_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    rows_of = learning.rows_of

    def few(calls: list[Tensor], most: int) -> list[Any]:
        asked.append(most)
        return rows_of(calls, most)

    monkeypatch.setattr(learning, "rows_of", few)
    graph, reference, _ = ready(RECIPES["3-bit weights"])
    reconstruct_(graph, images()[:1], reference, steps=0)
    assert asked == [4]
    reconstruct_(graph, images()[:1], reference, steps=0, plain_batches=images()[:1])
    assert asked == [4, 100, 100]


class Stored(Tensor):
    """A value in the machine's own memory, as if the model were on a GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (Tensor.is_floating_point, Tensor.as_subclass):
            raise TypeError(f"{func} on a value that is not on the device")
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_values_of_all_images_are_in_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(device: object, value: Any) -> Any:
        kind = Stored if device == "host" else Tensor
        return tree_map(lambda v: v.as_subclass(kind) if isinstance(v, Tensor) else v, value)

    wanted, reference, _ = ready(RECIPES["lsq+"])
    reconstruct_(wanted, images(), reference, steps=5)
    monkeypatch.setattr(learning, "HOST", "host")
    monkeypatch.setattr(learning, "_on", moved)
    graph, reference, _ = ready(RECIPES["lsq+"])
    reconstruct_(graph, images(), reference, steps=5)
    for name, value in wanted.root.state_dict().items():
        assert torch.equal(value, graph.root.state_dict()[name])

"""AdaRound: rounding chosen for the output beats rounding to nearest."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.affine import fake_quantize, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq import adaround
from dq.quant.ptq.adaround import (
    adaround_,
    can_unfold,
    moments,
    polish,
    round_layer_,
    rows,
)
from dq.quant.ptq.bias_correction import correct_bias_
from dq.quant.ptq.layer_walk import CapturedLayer, walk
from dq.quant.ptq.weight_clipping import best_weight_range, clip_weights_, restore_weights_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from tests.quant.nets import Separable, calibrate, images, sqnr, unseen


def low(bits: int, **changes: object) -> Recipe:
    return Recipe(weight=replace(INT8_WEIGHT, bits=bits, **changes))  # type: ignore[arg-type]


def ready(recipe: Recipe) -> QuantizedGraph:
    torch.manual_seed(0)
    graph = prepare(Separable(unequal=False).eval(), recipe)
    calibrate(graph, images())
    return graph


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 0), ({}, 100), ({"narrow": False}, 0), ({"power_of_two": True}, 0)],
)
def test_it_beats_nearest_rounding_with_corrected_bias(
    changes: dict[str, object], steps: int
) -> None:
    torch.manual_seed(0)
    wanted = unseen(Separable(unequal=False).eval())
    graph = ready(low(3, **changes))
    correct_bias_(graph, images())
    nearest = sqnr(graph, wanted)
    graph = ready(low(3, **changes))
    scales = {
        site.name: quantized.quantized_weight(layer, norm)[1]
        for site, quantized, layer, norm in graph.layers()
    }
    assert len(adaround_(graph, images(), steps=steps)) == 6
    assert sqnr(graph, wanted) > nearest + 1.0
    for site, quantized, layer, norm in graph.layers():
        torch.testing.assert_close(
            quantized.quantized_weight(layer, norm)[1], scales[site.name], rtol=1e-5, atol=0
        )


def test_more_steps_find_a_better_rounding_than_polishing_alone() -> None:
    """Weights of one row depend on each other, so one at a time ends in a local minimum."""
    generator = torch.Generator().manual_seed(2)
    # Inputs of 16 dimensions in 64.
    batch = torch.randn(512, 16, generator=generator) @ torch.randn(16, 64, generator=generator)

    def error(steps: int) -> float:
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(64, 32)).eval()
        graph = prepare(net, low(2))
        wanted = net[0](batch).detach()
        calibrate(graph, [batch])
        assert adaround_(graph, [batch], steps=steps) == ["0"]  # One batch is enough.
        set_phase(graph.quantizers, Phase.FROZEN)
        for quantizer in graph.activations().values():
            quantizer.phase = Phase.OFF
        return float((graph(batch) - wanted).detach().square().mean())

    polished, optimised = error(0), error(200)
    assert optimised < 0.9 * polished


@pytest.mark.parametrize(
    ("layer", "shape", "can"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 5, 5), True),
        (nn.Conv2d(3, 4, 3), (3, 5, 5), False),  # Without a dimension for images.
        (nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 5, 5), False),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (1, 3, 5, 5), False),
        (nn.Conv2d(911, 1, 3), (1, 911, 3, 3), False),  # 8199 values in a patch.
        (nn.Conv2d(910, 1, 3), (1, 910, 3, 3), True),
        (nn.Linear(8192, 1), (1, 8192), True),
        (nn.Linear(8193, 1), (1, 8193), False),
        (nn.ConvTranspose2d(3, 4, 3), (1, 3, 5, 5), False),
        (nn.Conv1d(3, 4, 3), (1, 3, 5), False),
    ],
)
def test_layers_whose_inputs_can_be_unfolded(
    layer: nn.Module, shape: tuple[int, ...], can: bool
) -> None:
    assert can_unfold(layer, [torch.zeros(shape)]) is can


def test_the_float_weight_is_on_the_grid_and_there_are_no_new_keys() -> None:
    graph = ready(low(4))
    keys = list(graph.root.state_dict())
    adaround_(graph, images(), steps=10)
    assert list(graph.root.state_dict()) == keys
    for _, quantized, layer, norm in graph.layers():
        folded, scale, _ = quantized.quantized_weight(layer, norm)
        moved = (quantized.weight(folded) - folded).detach().abs().max()
        assert float(moved) < 1e-4 * float(scale.max())


def test_polishing_finds_the_best_rounding_of_independent_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 200, 5, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(5, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 3, 5, generator=generator, dtype=torch.float64) * 3
    gram = x.transpose(1, 2) @ x / 200
    cross = gram @ weight.transpose(1, 2)
    one = torch.ones(1, 1, 1, dtype=torch.float64)

    def loss(integers: torch.Tensor) -> torch.Tensor:
        error = integers - weight
        return ((error @ gram) * error).sum(-1)

    free = torch.ones_like(weight, dtype=torch.bool)
    low_end, nearest = weight.floor(), weight.round()
    got = polish(nearest, free, (low_end, low_end + 1), one, 0 * one, gram, cross)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5).double()
    best = torch.stack([loss(low_end + choice) for choice in every]).amin(0)
    assert (loss(got) <= loss(nearest)).all()
    assert float(loss(got).sum()) < 1.5 * float(best.sum())
    assert ((got == low_end) | (got == low_end + 1)).all()


def test_polishing_ends_where_no_single_change_reduces_the_loss() -> None:
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        # Inputs that depend on each other, so that one change makes others worthwhile.
        x = torch.randn(2, 60, 3, generator=generator, dtype=torch.float64)
        x = x @ torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
        weight = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64) * 2
        gram = x.transpose(1, 2) @ x / 60
        cross = gram @ weight.transpose(1, 2)
        scale = torch.rand(2, 3, 1, generator=generator, dtype=torch.float64) + 0.5
        shift = torch.tensor([[1.0], [0.0], [-2.0]], dtype=torch.float64)
        position = weight / scale + shift
        free = torch.rand(2, 3, 8, generator=generator) < 0.8
        begun, bounds = position.round(), (position.floor(), position.floor() + 1)
        got = polish(begun, free, bounds, scale, shift, gram, cross)
        assert torch.equal(got[~free], begun[~free])

        def loss(
            integers: Tensor,
            weight: Tensor = weight,
            scale: Tensor = scale,
            shift: Tensor = shift,
            gram: Tensor = gram,
        ) -> Tensor:
            error = (integers - shift) * scale - weight
            return ((error @ gram) * error).sum()

        assert loss(got) < loss(begun)
        for index in free.nonzero().tolist():
            other = got.clone()
            end = 1 if got[tuple(index)] == bounds[0][tuple(index)] else 0
            other[tuple(index)] = bounds[end][tuple(index)]
            assert loss(other) >= loss(got) * (1 - 1e-9)
        one = polish(begun, free, bounds, scale, shift, gram, cross, sweeps=1)
        assert loss(one) >= loss(got)


@torch.enable_grad()
def nagels_rounding(captured: CapturedLayer, steps: int) -> tuple[Tensor, float]:
    """Return the chosen integers of a linear layer and the loss of rounding to nearest.

    After the paper's equations 21 to 25, on the inputs and outputs themselves.
    """
    (x,), (target,) = captured.inputs, captured.targets
    x, target = x.detach().double(), target.detach().double()
    weight, scale, shift = captured.quantized.quantized_weight(captured.layer, captured.norm)
    spec, weight = captured.quantized.weight.spec, weight.detach().double()
    scale, shift = scale.double().reshape(-1, 1), shift.double().reshape(-1, 1)
    position = weight / scale + shift
    floor, nearest = position.floor(), position.round().clamp(spec.quant_min, spec.quant_max)
    low, high = position.amin(1, keepdim=True), position.amax(1, keepdim=True)
    free = (floor >= (low - 1e-3).ceil()) & (floor + 1 <= (high + 1e-3).floor())
    free &= (position != low) & (position != high)

    def error(integers: Tensor) -> Tensor:
        left = x @ ((integers - shift) * scale).T - target
        return (left - left.mean(0)).square().mean(0).sum()

    v = torch.logit((position - floor).clamp(1e-4, 1 - 1e-4).add(0.1) / 1.2)
    v = v.detach().requires_grad_()
    adam = torch.optim.Adam([v], lr=0.05)
    unit = float(error(nearest) - error(position))
    for step in range(steps):
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        loss = error(torch.where(free, floor + h, nearest)) / unit
        if step > 0.2 * steps:
            beta = 20 - 18 * (step / steps - 0.2) / 0.8
            kept_open = 1 - (2 * h - 1).abs() ** beta
            loss = loss + torch.where(free, kept_open, 0.0).sum() / free.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    chosen = torch.where(free, floor + (v.detach() >= 0), nearest)
    constant = float((target - target.mean(0)).square().mean(0).sum())
    return chosen, float(error(nearest)) - constant


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_learned_rounding_is_that_of_the_paper(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq.quant.ptq.adaround.polish", lambda integers, *_: integers)
    torch.manual_seed(1)
    graph = prepare(
        nn.Sequential(nn.Linear(12, 6)).eval(), low(4, narrow=False, symmetric=symmetric)
    )
    batch = torch.randn(40, 4) @ torch.randn(4, 12)
    calibrate(graph, [batch])
    found = []

    def visit(captured: CapturedLayer) -> None:
        wanted, nearest = nagels_rounding(captured, 50)
        layer, quantized = captured.layer, captured.quantized
        _, scale, shift = quantized.quantized_weight(layer, None)
        first = layer.weight.detach().clone()
        before, after = round_layer_(captured, steps=50, learning_rate=0.05, strength=1.0)
        assert before == pytest.approx(nearest, rel=1e-5)
        assert after < before
        got = layer.weight.detach() / scale.reshape(-1, 1) + shift.reshape(-1, 1)
        extreme = (first == first.amin(1, True)) | (first == first.amax(1, True))
        if not symmetric:
            assert torch.equal(layer.weight[extreme], first[extreme])
            wanted = wanted.where(~extreme, got.double())
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-4)
        nearest_integers = (first / scale.reshape(-1, 1) + shift.reshape(-1, 1)).round()
        assert not torch.equal(got.round(), nearest_integers)
        found.append(captured.site.name)

    walk(graph, [batch], visit, "test")
    assert found == ["0"]


def test_a_rounding_that_is_no_better_than_to_nearest_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dq.quant.ptq.adaround.polish", lambda integers, *_: integers + 1)
    torch.manual_seed(1)
    graph = prepare(nn.Sequential(nn.Linear(12, 6)).eval(), low(4))
    batch = torch.randn(40, 12)
    calibrate(graph, [batch])

    def visit(captured: CapturedLayer) -> None:
        _, scale, _ = captured.quantized.quantized_weight(captured.layer, None)
        wanted = (captured.layer.weight / scale.reshape(-1, 1)).round() * scale.reshape(-1, 1)
        before, after = round_layer_(captured, steps=3, learning_rate=0.01, strength=1.0)
        assert before == after
        torch.testing.assert_close(captured.layer.weight, wanted)

    walk(graph, [batch], visit, "test")


def test_extreme_weights_and_those_that_would_pass_them_are_not_free() -> None:
    spec = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0)
    position = torch.tensor([[-3.0, -2.6, 0.4, 2.2, 3.0], [-1.5, -1.2, 0.0, 1.2, 1.5]])
    free = adaround._free(position, position, position.floor(), spec)
    assert free.tolist() == [[False, True, True, True, False], [False, False, True, False, False]]
    extreme = adaround._extremes(position, spec)
    assert extreme.nonzero().tolist() == [[0, 0], [0, 4], [1, 0], [1, 4]]


def test_a_layer_with_several_norms_and_one_that_cannot_be_unfolded_are_left_to_nearest() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
            self.up = nn.ConvTranspose2d(3, 3, 2)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: Tensor) -> Tensor:
            y = self.norms[1](self.shared(self.norms[0](self.shared(x))))
            return self.last(self.up(y))

    torch.manual_seed(0)
    graph = prepare(Levels().eval(), low(4))
    calibrate(graph, images())
    root = graph.root
    kept = {name: root.get_submodule(name).weight.clone() for name in ("shared", "up")}
    biases = {name: root.get_submodule(name).bias.clone() for name in ("up", "last")}
    assert adaround_(graph, images(), steps=0) == ["last"]
    assert all(torch.equal(root.get_submodule(n).weight, w) for n, w in kept.items())
    assert not any(torch.equal(root.get_submodule(n).bias, b) for n, b in biases.items())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(4, 8, (3, 1), padding=(1, 0), groups=2, bias=False),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Linear(4, 5),
    ],
)
def test_rows_times_weight_is_the_layer(layer: nn.Conv2d | nn.Linear) -> None:
    x = torch.randn(2, 4, 9, 9)
    x = x if isinstance(layer, nn.Conv2d) else x.permute(0, 2, 3, 1)
    y = layer(x)
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.reshape(groups, layer.weight.shape[0] // groups, -1)
    got = rows(x, layer) @ weight.transpose(1, 2)
    got = got.permute(1, 0, 2).flatten(1)
    want = y.permute(0, 2, 3, 1).flatten(0, 2) if isinstance(layer, nn.Conv2d) else y.flatten(0, 2)
    want = want if layer.bias is None else want - layer.bias
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_moments_are_the_loss_of_the_real_layer() -> None:
    graph = ready(low(3))

    def visit(captured: CapturedLayer) -> None:
        gram, cross = moments(captured)
        folded, _, _ = captured.quantized.quantized_weight(captured.layer, captured.norm)
        weight = captured.quantized.weight(folded).double().reshape(len(gram), -1, gram.shape[1])
        loss = ((weight @ gram) * weight).sum() - 2 * (weight * cross.transpose(1, 2)).sum()
        error = torch.cat(
            [t - o for t, o in zip(captured.targets, captured.outputs(), strict=True)]
        ).double()
        wanted = torch.cat(captured.targets).double()
        spread = [
            (e - e.mean((0, 2, 3), keepdim=True)).square().mean((0, 2, 3)).sum()
            for e in (error, wanted)
        ]
        torch.testing.assert_close(loss, spread[0] - spread[1], rtol=1e-3, atol=1e-6)

    walk(graph, images(), visit, "test")


def test_clipping_reduces_the_error_of_weights_with_outliers_and_can_be_undone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 4, 3), nn.BatchNorm2d(4)).eval()
    net[1].weight.data = torch.tensor([1.0, -2.0, 0.5, 1e-20])
    net[0].weight.data.normal_()
    original = net[0].weight.clone()
    graph = prepare(net, low(3))
    set_phase(graph.quantizers, Phase.FROZEN)
    (entry,) = graph.layers()
    _, quantized, layer, norm = entry
    folded, _ = quantized.folded(layer, norm)
    before = float((quantized.weight(folded) - folded).detach().square().sum())
    kept = clip_weights_(graph)
    clipped, _ = quantized.folded(layer, norm)
    assert float((quantized.weight(clipped) - folded).detach().square().sum()) < 0.8 * before
    restore_weights_(graph, kept)
    assert torch.equal(net[0].weight, original)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_best_weight_range_is_no_worse_than_any_other_share(power_of_two: bool) -> None:
    spec = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0, power_of_two=power_of_two)
    weight = torch.randn(5, 400, generator=torch.Generator().manual_seed(0)) ** 3
    low_end, high = best_weight_range(weight, spec)
    assert (high < weight.amax(1)).any()

    def error(share: float) -> torch.Tensor:
        scale, zero = scale_and_zero_point(weight.amin(1) * share, weight.amax(1) * share, spec)
        return (fake_quantize(weight, scale, zero, spec) - weight).square().sum(1)

    scale, zero = scale_and_zero_point(low_end, high, spec)
    found = (fake_quantize(weight, scale, zero, spec) - weight).square().sum(1)
    for share in (1.0, 0.8, 0.6, 0.4):
        assert (found <= error(share) * (1 + 1e-5)).all()

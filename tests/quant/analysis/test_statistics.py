"""Statistics of quantizers: the numbers are right and the model does not change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dq.quant.analysis.statistics import model_bytes, quantizer_figures
from dq.quant.graph.prepare import prepare
from dq.quant.numerics.affine import fake_quantize
from dq.quant.ptq.calibration import calibrate_
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.small_net import W4, calibrated, images


def test_figures_are_those_of_the_tensors_themselves() -> None:
    graph = calibrated()
    x = images(9)
    rows, _ = quantizer_figures(graph, [x], graph)
    assert [row["name"] for row in rows] == [site.name for site in graph.sites]
    by_name = {row["name"]: row for row in rows}
    name, quantizer = next(iter(graph.activations().items()))  # the input's
    rounded = fake_quantize(x, quantizer.scale, quantizer.zero_point, quantizer.spec)
    wanted = -10 * math.log10(float((rounded - x).square().sum() / x.square().sum()))
    entry = by_name[name]
    assert entry["sqnr"] == pytest.approx(wanted, abs=0.01)
    assert entry["network_sqnr"] == pytest.approx(wanted, abs=0.01)
    assert (entry["seen_low"], entry["seen_high"]) == (float(x.min()), float(x.max()))
    beyond = (x < entry["low"] - entry["scale"] / 2) | (x > entry["high"] + entry["scale"] / 2)
    assert entry["clipped"] == pytest.approx(float(beyond.float().mean()))
    assert sum(entry["histogram"]) == x.numel()


def test_wider_integers_have_less_noise_and_tighter_ranges_clip() -> None:
    eight, four = calibrated(), calibrated(Recipe(weight=W4))
    noisy, clean = (
        {r["name"]: r["sqnr"] for r in quantizer_figures(g, [images()], g)[0] if r["kind"] == kind}
        for g, kind in ((four, "weight"), (eight, "weight"))
    )
    assert all(clean[name] > noisy[name] + 15 for name in noisy)
    name, quantizer = next(iter(eight.activations().items()))
    quantizer.scale.div_(4)
    rows, _ = quantizer_figures(eight, [images()], eight)
    assert next(row["clipped"] for row in rows if row["name"] == name) > 0.1


def test_model_and_generators_do_not_change_and_moved_weights_are_counted() -> None:
    graph = calibrated()
    graph.root.train()
    next(iter(graph.activations().values())).phase = Phase.TRAIN
    state = {k: v.clone() for k, v in graph.root.state_dict().items()}
    phases = [q.phase for q in graph.activations().values()]
    generator = torch.get_rng_state()
    _, integers = quantizer_figures(graph, [images()], graph)
    assert all(torch.equal(v, state[k]) for k, v in graph.root.state_dict().items())
    assert graph.root.training
    assert [q.phase for q in graph.activations().values()] == phases
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(q._forward_pre_hooks for q in graph.activations().values())
    rows, _ = quantizer_figures(graph, [images()], graph, before=integers)
    assert {r["moved"] for r in rows if r["kind"] == "weight"} == {0.0}
    with torch.no_grad():
        graph.root.head.weight.neg_()
    rows, _ = quantizer_figures(graph, [images()], graph, before=integers)
    assert max(r["moved"] for r in rows if r["moved"] is not None) > 0.9


def test_bytes_of_a_model_follow_its_bits() -> None:
    eight, four = calibrated(), calibrated(Recipe(weight=W4))
    weights = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 2
    assert model_bytes(eight.root, eight) - model_bytes(four.root, four) == weights // 2
    # 18 biases and 18 channel scales; scale and zero point of each activation.
    others = 4 * (8 + 8 + 2 + 18 + 2 * len(eight.activations()))
    assert model_bytes(eight.root, eight) == weights + others + 0


class Selects(nn.Module):
    """A layer on as many rows as its input says, like a head on the boxes of a first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_calls_of_another_number_of_rows_count_in_neither_noise_nor_signal() -> None:
    torch.manual_seed(0)
    graph = prepare(Selects().eval(), Recipe())
    x = torch.randn(6, 4)
    calibrate_(graph, [x], lambda batch: len(graph(batch)))
    rounded: list[bool] = []

    def run(batch: torch.Tensor) -> None:
        """Call the layer twice, the second time with more rows if it rounds."""
        rounds = next(iter(graph.activations().values())).phase.quantizes
        rounded.append(rounds)
        graph(batch)
        graph(100 * batch if not rounds else torch.cat([batch, batch]))

    alone, _ = quantizer_figures(graph, [x], graph)
    both, _ = quantizer_figures(graph, [x], run)
    assert rounded == [False, True]
    for one, two in zip(alone, both, strict=True):
        assert two["network_sqnr"] == one["network_sqnr"]
        if one["kind"] != "weight":
            assert two["sqnr"] != one["sqnr"]

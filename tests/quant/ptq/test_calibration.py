"""Calibration: the ranges of the float model on all batches, and nothing of what was before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare, prepare_part
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.observers.min_max import MovingAverageObserver
from dq.quant.ptq.calibration import calibrate_
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import OBSERVERS, Recipe


def prepared(observer: str = "moving_average", learned: str | None = None) -> QuantizedGraph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return prepare(net.eval(), Recipe(observer=observer, learned=learned))


def batches(size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [size * k * torch.randn(2, 3, 6, 6, generator=generator) for k in (1, 2, 3)]


def calibrated(graph: QuantizedGraph, data: list[Tensor]) -> int:
    def run(batch: Tensor) -> int:
        graph(batch)
        return len(batch)

    return calibrate_(graph, data, run)


def ranges(graph: QuantizedGraph) -> dict[str, tuple[float, float]]:
    return {
        name: (float(q.observer.range_min), float(q.observer.range_max))
        for name, q in graph.activations().items()
    }


def test_the_range_is_from_minimum_to_maximum_or_the_mean_of_those_of_the_batches() -> None:
    data = batches(1.0)
    graph = prepared("min_max")
    assert calibrated(graph, data) == 6
    everything = torch.cat(data)
    assert ranges(graph)["x/out"] == (float(everything.min()), float(everything.max()))
    graph = prepared("moving_average")
    calibrated(graph, data)
    low, high = ranges(graph)["x/out"]
    assert low == pytest.approx(sum(float(x.min()) for x in data) / 3, rel=1e-5)
    assert high == pytest.approx(sum(float(x.max()) for x in data) / 3, rel=1e-5)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_second_calibration_with_a_histogram_forgets_the_first(observer: str) -> None:
    once, twice = prepared(observer), prepared(observer)
    calibrated(once, batches(1.0))
    calibrated(twice, batches(7.0))
    if isinstance(twice.activations()["x/out"].observer, HistogramObserver):
        calibrated(twice, batches(1.0))
        assert ranges(twice) == ranges(once)
    else:
        assert ranges(twice)["x/out"][1] == pytest.approx(7 * ranges(once)["x/out"][1], rel=1e-5)


def test_the_model_is_float_while_it_is_observed_and_frozen_afterwards() -> None:
    graph = prepared("min_max")
    graph.root.train()
    seen = []
    x = batches(1.0)[0]
    wanted = nn.Sequential(*list(graph.root)[:4]).eval()(x)
    before = {name: t.clone() for name, t in graph.root.state_dict().items() if "running" in name}

    def run(batch: Tensor) -> int:
        seen.append(graph(batch))
        return len(batch)

    calibrate_(graph, [x], run)
    torch.testing.assert_close(seen[0], wanted)
    assert not seen[0].requires_grad
    assert not graph.root.training
    assert all(q.phase is Phase.FROZEN for q in graph.activations().values())
    after = graph.root.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert not torch.equal(graph(x), seen[0])


@pytest.mark.parametrize("fails", [False, True])
def test_the_moving_average_gets_its_momentum_back(fails: bool) -> None:
    graph = prepared("moving_average")
    observers = [q.observer for q in graph.activations().values()]
    data: list[Any] = batches(1.0)
    if fails:
        data = [*data, torch.full_like(data[0], torch.nan)[:, :1]]
        with pytest.raises(RuntimeError):
            calibrated(graph, data)
    else:
        calibrated(graph, data)
    for observer in observers:
        assert isinstance(observer, MovingAverageObserver)
        assert observer.momentum == 0.01


def test_no_images_and_no_finite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no image to calibrate with"):
        calibrated(prepared(), [])
    graph = prepared()
    with torch.no_grad():
        graph.root[3].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"1 quantizer has no finite range .*\(first 3/out\)"):
        calibrated(graph, batches(1.0))


def test_learned_scales_of_weights_are_chosen_anew() -> None:
    graph = prepared(learned="lsq")

    def scale() -> Tensor:
        (entry,) = [entry for entry in graph.layers() if entry[0].name == "3"]
        _, quantized, layer, norm = entry
        return quantized.quantized_weight(layer, norm)[1].detach().clone()

    calibrated(graph, batches(1.0))
    before = scale()
    with torch.no_grad():
        graph.root[3].weight.mul_(torch.tensor([4.0, 0.5]).reshape(-1, 1, 1, 1))
    calibrated(graph, batches(1.0))
    torch.testing.assert_close(scale(), before * torch.tensor([4.0, 0.5]))


class TwoStages(nn.Module):
    """A backbone, and a head that runs on as many rows as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.backbone(x)
        return result


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("spoilt", [None, "backbone", "head"])
@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_head_without_boxes_is_not_reported_as_nan(
    observer: str, spoilt: str | None, called: bool
) -> None:
    """Three of four images have no boxes; if `called` is false, the last one has none either."""
    torch.manual_seed(0)
    model = TwoStages().eval()
    recipe = Recipe(observer=observer)
    graph = prepare(model, recipe)
    traced = trace_tolerantly(model, model.head, torch.ones(2, 4))
    part = prepare_part(graph, recipe, traced, "head")
    model.head.forward = part.__call__  # type: ignore[method-assign]
    if spoilt is not None:
        layer = model.backbone if spoilt == "backbone" else model.head[0]
        with torch.no_grad():
            layer.bias.fill_(torch.nan)
    given = batches(1.0)

    def run(images: Tensor) -> int:
        found = graph(images).mean((2, 3)).nan_to_num()
        model.head(found if called and images is given[-1] else found[:0])
        return len(images)

    said = None
    if spoilt == "backbone":
        said = "first backbone/out.*; the float model yields NaN or infinity there"
    elif not called:
        said = r"no range .*first head.*because head got no boxes on these images; .*module='head"
    elif spoilt == "head":
        said = "first head.*; the float model yields NaN or infinity there"
    if said is None:
        assert calibrate_(graph, given, run) == 6
    else:
        with pytest.raises(ValueError, match=said):
            calibrate_(graph, given, run)
    assert not model.head._forward_pre_hooks

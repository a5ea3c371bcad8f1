"""A run from a quantizer on gives the outputs of a whole run, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.analysis.partial_runs import PartialRuns
from dq.quant.analysis.sensitivity import (
    decibel,
    float_outputs,
    noise,
    noises_alone,
    ordered_sum,
    sensitivities,
)
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.graph.test_writes import CASES, Net
from tests.quant.nets import calibrate, images


class Branches(nn.Module):
    """Two branches, a shared head on two levels, outputs in a dict, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.swish, self.relu = nn.Hardswish(inplace=True), nn.ReLU(inplace=True)
        self.head, self.other = nn.Conv2d(16, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.swish(self.norm(self.stem(x)))
        left, right = F.silu(self.left(x)), self.relu(self.right(x))
        both = torch.cat([left + right, right], 1)
        levels = [self.head(both), self.head(F.max_pool2d(both, 2))]
        return {"levels": levels, "other": self.other(right)}


def ready(net: nn.Module, batches: list[Tensor], **recipe: Any) -> QuantizedGraph:
    graph = prepare(net.eval(), Recipe(**recipe))
    calibrate(graph, batches)
    return graph


def whole_runs(graph: QuantizedGraph, batches: list[Tensor]) -> dict[str, float]:
    """Return the noise of each quantizer alone, by whole runs."""
    wanted = float_outputs(graph, batches)
    set_phase(graph.quantizers, Phase.OFF)
    found = {}
    with torch.no_grad():
        for site in graph.sites:
            quantizer = quantizer_of(graph, site.name)
            quantizer.phase = Phase.FROZEN
            found[site.name] = noise(graph, batches, wanted)
            quantizer.phase = Phase.OFF
    set_phase(graph.quantizers, Phase.FROZEN)
    return found


@pytest.mark.parametrize("target", ["int8", "onnxruntime", "openvino"])
@pytest.mark.parametrize("learned", [None, "lsq"])
def test_the_noise_of_each_quantizer_is_that_of_whole_runs(
    target: str, learned: str | None
) -> None:
    graph = ready(Branches(), images(), target=target, learned=learned)
    batches = images(1, num=20)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    wanted = whole_runs(graph, batches)
    names = [site.name for site in graph.sites]
    assert noises_alone(graph, batches, names) == wanted
    assert any(noise > 0 for noise in wanted.values())
    found = sensitivities(graph, batches)
    assert {s.name: s.sqnr for s in found} == {n: decibel(v) for n, v in wanted.items()}
    assert all(quantizer_of(graph, name).phase is Phase.FROZEN for name in names)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_in_place_is_read_again_as_it_was(name: str) -> None:
    batches = [torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    graph = ready(Net(CASES[name]), batches)
    names = [site.name for site in graph.sites]
    assert noises_alone(graph, batches, names) == whole_runs(graph, batches)


def test_only_what_depends_on_the_quantizer_is_computed_and_kept() -> None:
    batch = images()[0]
    graph = ready(Branches(), [batch])
    runs = PartialRuns(graph, ["left", "other"])
    names = [node.name for node in runs.changed["other"]]
    assert names == ["quantizers_other", "quantizers_other_out", "output"]
    set_phase(graph.quantizers, Phase.OFF)
    calls: list[str] = []
    for name, module in graph.root.named_modules():
        if name.startswith("quantizers.") and name.count(".") == 1:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        plain = runs.in_float(batch)
        everything = len(calls) // 2  # The first run also looks for writes.
        calls.clear()
        quantizer_of(graph, "other").phase = Phase.FROZEN
        outputs = floating_tensors(runs.with_quantizer("other", plain))
    assert 1 <= len(calls) <= 2 < everything
    targets = floating_tensors(plain.outputs)
    assert outputs[0] is targets[0]
    assert outputs[1] is targets[1]
    assert not torch.equal(outputs[2], targets[2])
    # Nothing of the stem is kept: no run with one of these quantizers reads it.
    assert len(plain.values) < everything


def test_a_quantizer_that_changes_no_output_makes_no_noise() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.masked = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.masked(x) * 0.0

    batches = images()[:1]
    graph = ready(Unread(), batches)
    assert noises_alone(graph, batches, ["masked"]) == {"masked": 0.0}


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 70_000, 20_000_000])
def test_no_number_of_threads_changes_a_sum(size: int) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(float(ordered_sum(x)))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(float(x.sum()), rel=1e-12)

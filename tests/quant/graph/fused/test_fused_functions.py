"""A function between two quantizers, run in one pass, gives what its operations give."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.fused.functions import QuantizedFunction, gated
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.kernels import table
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.SiLU(inplace=True),
    "spelled": lambda x: x * torch.sigmoid(x),
    "leaky_relu": nn.LeakyReLU(0.1, inplace=True),
    "leaky_method": lambda x: F.leaky_relu(x, negative_slope=0.2),
    "hardswish": nn.Hardswish(),
    "mish": F.mish,
    "gelu": nn.GELU(),
    "elu": nn.ELU(),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.norm, self.function = nn.BatchNorm2d(8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.norm(self.first(x))))


def calibrated(name: str, phase: Phase) -> QuantizedGraph:
    torch.manual_seed(0)
    graph = prepare(Net(FUNCTIONS[name]), preset("onnxruntime"))
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        graph(images(0) / 2)
    update_scales_(list(graph.activations().values()))
    graph.root.train()
    set_phase(graph.quantizers, phase)
    return graph


def images(seed: int) -> Tensor:
    return torch.randn(2, 3, 17, 19, generator=torch.Generator().manual_seed(seed))


def state(graph: QuantizedGraph, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return result, all quantizers' ranges after a step, and the gradients in one row."""
    x = x.clone().requires_grad_()
    y = graph(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    update_scales_(list(graph.activations().values()))
    assert x.grad is not None
    gradients = [x.grad, *(p.grad for p in graph.root.parameters() if p.grad is not None)]
    ranges = {k: v.clone() for k, v in graph.quantizers.state_dict().items()}
    return y.detach(), ranges, torch.cat([g.flatten() for g in gradients])


def num_fused(graph: QuantizedGraph, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []
    usual = table.Lookup.apply
    monkeypatch.setattr(table.Lookup, "apply", lambda *given: calls.append(1) or usual(*given))
    graph(x)
    monkeypatch.undo()
    return len(calls)


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.FROZEN])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_pass_gives_results_ranges_and_gradients_of_the_operations(
    name: str, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images(1)  # Twice as large as what was calibrated: some values are cut off.
    graph = calibrated(name, phase)
    assert num_fused(copy.deepcopy(graph), x, monkeypatch) == 1
    one = state(copy.deepcopy(graph), x)
    monkeypatch.setattr(table, "takes", lambda x: False)
    other = state(copy.deepcopy(graph), x)
    assert torch.equal(one[0], other[0])
    for key, value in other[1].items():
        assert torch.equal(one[1][key], value), key
    assert float((one[2] - other[2]).norm()) < 1e-5 * float(other[2].norm())
    assert one[2].abs().sum() > 0


@pytest.mark.parametrize("phase", [Phase.OFF, Phase.CALIBRATE, Phase.OBSERVE])
def test_phases_that_do_not_round_use_the_operations(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = calibrated("silu", phase)
    assert num_fused(graph, images(1), monkeypatch) == 0
    if phase is Phase.OFF:
        assert torch.allclose(graph(images(1)), graph.root(images(1)), atol=1e-5)


def test_broken_values_are_cut_off_and_spoil_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = calibrated("silu", Phase.TRAIN)
    x = torch.linspace(-20, 20, 50)
    x[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    found = []
    for takes in (True, False):
        first, second, gate = (
            copy.deepcopy(graph.activations()[name])
            for name in ("first/out", "function/out", "function/sigmoid/out")
        )
        monkeypatch.setattr(table, "takes", lambda x, takes=takes: takes)
        function = QuantizedFunction(gated, "silu")
        result = function(first, second, x.clone(), False, gate)
        update_scales_([first, second])
        found.append([result, first.observer.range_max, second.observer.range_max])
    assert all(torch.isfinite(value).all() for value in found[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Kept(Net):
    """Something else reads the tensor between."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.function(y)) + self.last(y)


def test_a_tensor_that_is_needed_elsewhere_is_not_fused_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = prepare(Kept(nn.SiLU()).eval(), preset("onnxruntime"))
    set_phase(graph.quantizers, Phase.CALIBRATE)
    graph(images(0))
    update_scales_(list(graph.activations().values()))
    set_phase(graph.quantizers, Phase.FROZEN)
    assert num_fused(graph, images(0), monkeypatch) == 0


def test_a_quantizer_with_hooks_is_called_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = calibrated("silu", Phase.FROZEN)
    seen = []
    for quantizer in graph.activations().values():
        quantizer.register_forward_hook(lambda module, args, result: seen.append(module.site))
    assert num_fused(graph, images(0), monkeypatch) == 0
    assert sorted(seen) == sorted(graph.activations())


def test_the_function_has_its_name_in_the_compiled_graph() -> None:
    function = QuantizedFunction(torch.tanh, "quantized_tanh")
    assert function.__name__ == "quantized_tanh"

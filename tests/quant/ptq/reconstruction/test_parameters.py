"""What a block learns, in which units, and what is left of it afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.ptq.reconstruction import parameters as module
from dq.quant.ptq.reconstruction.blocks import Block, blocks_of
from dq.quant.ptq.reconstruction.parameters import (
    Parameters,
    _learnable,
    _take_scale_,
    layers_in,
    learning,
)
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.learned_step import LsqActivationQuantizer
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import Separable, calibrate, images


def test_a_parameter_moves_in_its_unit_and_can_be_restored() -> None:
    parameters = Parameters()
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([5.0]))
    parameters.add(weight, torch.tensor([[10.0], [100.0]]), 0.25)
    parameters.add(bias, torch.tensor(2.0), 0.5)
    groups = parameters.groups()
    assert [group["lr"] for group in groups] == [0.25, 0.5]
    (moved,), (shift,) = (group["params"] for group in groups)
    assert not moved.any()
    assert moved.requires_grad
    weight.grad = torch.ones(2, 2)
    parameters.take_gradients_()
    assert moved.grad.tolist() == [[10, 10], [100, 100]]
    assert shift.grad is None
    assert weight.grad is None
    with torch.no_grad():
        moved.copy_(torch.tensor([[1.0, 0.0], [0.5, -1.0]]))
        shift.fill_(1.5)
    parameters.write_()
    assert weight.tolist() == [[11, 2], [53, -96]]
    assert bias.tolist() == [8]
    parameters.restore_()
    assert weight.tolist() == [[1, 2], [3, 4]]
    assert bias.tolist() == [5]


def ready(learned: str | None = None) -> tuple[QuantizedGraph, Block]:
    torch.manual_seed(0)
    net = Separable(unequal=False).eval()
    with torch.no_grad():
        net.body[1].weight[3] = 0.0  # A dead channel.
        net.body[4].bias.zero_()
    graph = prepare(net, Recipe(learned=learned))
    calibrate(graph, images())
    return graph, blocks_of(graph, fewest=1, most=2)[0]


@pytest.mark.parametrize("learned", [None, "lsq"])
def test_units_are_rounding_steps_of_weights_and_shares_of_biases_and_scales(
    learned: str | None,
) -> None:
    graph, block = ready(learned)
    quantizers = dict(graph.quantizers.named_modules())
    flags = {name: p.requires_grad for name, p in graph.root.named_parameters()}
    names = {id(p): name for name, p in graph.root.named_parameters()}
    found = list(layers_in(graph, block))
    assert 0 < len(found) < len(list(graph.layers()))
    with learning(graph, block) as parameters:
        by_name: dict[str, Any] = {}
        others = []
        for one in parameters.learned:
            name = names.get(id(one.parameter))
            (others.append(one) if name is None else by_name.update({name: one}))
            assert one.parameter.requires_grad
        learnable = {id(one.parameter) for one in parameters.learned}
        for parameter in graph.root.parameters():
            assert parameter.requires_grad == (id(parameter) in learnable)
        for quantized, layer, norm in found:
            assert quantized.weight.phase is Phase.TRAIN
            _folded, scale, _ = quantized.quantized_weight(layer, norm)
            prefix = next(n for n, m in graph.root.named_modules() if m is layer)
            weight = by_name[f"{prefix}.weight"]
            assert weight.rate == 0.03
            if norm is not None:
                factor = norm.weight / (norm.running_var + norm.eps).sqrt()
                wanted = scale / factor.detach().abs().clamp(min=1e-12)
                own = next(n for n, m in graph.root.named_modules() if m is norm)
                bias = by_name[f"{own}.bias"]
                assert bias.rate == 0.01
                unit = norm.bias.detach().square().mean().sqrt().clamp(min=1e-6)
                torch.testing.assert_close(bias.unit, unit.expand(8))
            else:
                wanted = scale
            torch.testing.assert_close(weight.unit[:, 0, 0, 0], wanted)
        for one in others:
            assert one.rate == 0.01
        phases = {name: q.phase for name, q in graph.activations().items()}
        assert set(phases.values()) == {Phase.TRAIN, Phase.FROZEN}
    assert dict(graph.quantizers.named_modules()) == quantizers
    assert {name: p.requires_grad for name, p in graph.root.named_parameters()} == flags
    assert all(q.phase is Phase.FROZEN for q in graph.activations().values())


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(),
        QuantSpec(bits=4, signed=True),
        QuantSpec(signed=True, symmetric=True),
        QuantSpec(symmetric=True),
    ],
)
def test_a_learned_scale_becomes_a_range_and_the_range_the_same_scale(spec: QuantSpec) -> None:
    quantizer = ActivationQuantizer(spec, MinMaxObserver())
    quantizer.observer.observe(torch.tensor([-1.0, 3.0]))
    quantizer.observer.update_()
    quantizer.initialise_from_range_()
    before = quantizer.scale.clone(), quantizer.zero_point.clone()
    learned = _learnable(quantizer)
    assert (learned.learned_offset is None) == spec.symmetric
    torch.testing.assert_close(learned.scale, before[0])
    assert torch.equal(learned.zero_point, before[1])
    with torch.no_grad():
        learned.learned_scale.mul_(1.5)
        if learned.learned_offset is not None:
            learned.learned_offset.mul_(1.5)
    _take_scale_(quantizer, learned)
    torch.testing.assert_close(quantizer.scale, before[0] * 1.5)
    assert torch.equal(quantizer.zero_point, before[1])
    quantizer.initialise_from_range_()
    torch.testing.assert_close(quantizer.scale, before[0] * 1.5)
    assert torch.equal(quantizer.zero_point, before[1])


def test_layers_of_the_block_alone_and_none_with_several_norms() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
            self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norms[1](self.shared(self.norms[0](self.shared(x))))
            result: torch.Tensor = self.last(y)
            return result

    graph = prepare(Levels().eval(), Recipe())
    every = SimpleNamespace(nodes=tuple(graph.graph.nodes))
    assert [layer for _, layer, _ in layers_in(graph, every)] == [graph.root.last]  # type: ignore[arg-type]
    nothing = SimpleNamespace(nodes=())
    assert not list(layers_in(graph, nothing))  # type: ignore[arg-type]


def test_what_was_learned_is_kept_after_an_error_too() -> None:
    graph, block = ready()
    name = next(n for n in graph.activations() if n != "x/out")
    learned: list[bool] = []

    def fail() -> None:
        with learning(graph, block):
            quantizers = graph.activations().values()
            learned.extend(isinstance(q, LsqActivationQuantizer) for q in quantizers)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert any(learned)
    assert not any(isinstance(q, LsqActivationQuantizer) for q in graph.activations().values())
    assert all(p.grad is None for p in graph.root.parameters())
    assert name in graph.activations()


@pytest.mark.parametrize("learned", [None, "lsq"])
@pytest.mark.parametrize(
    ("step", "call"), [("_learnable", 1), ("_learnable", 2), ("_add_layer", 1)]
)
def test_an_error_before_the_body_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, step: str, call: int, learned: str | None
) -> None:
    """As if the memory were full at one of the steps that make a block learnable."""
    graph, block = ready(learned)
    before = dict(graph.quantizers.named_modules())
    flags = {name: p.requires_grad for name, p in graph.root.named_parameters()}
    phases = {name: q.phase for name, q in graph.activations().items()}
    assert any(flags.values())
    real, calls = getattr(module, step), 0

    def fails(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise MemoryError
        return real(*given)

    monkeypatch.setattr(module, step, fails)
    try:
        with learning(graph, block):
            pass
    except MemoryError:
        pass
    assert calls == (0 if (step, learned) == ("_learnable", "lsq") else call)
    assert dict(graph.quantizers.named_modules()) == before
    assert {name: p.requires_grad for name, p in graph.root.named_parameters()} == flags
    assert {name: q.phase for name, q in graph.activations().items()} == phases

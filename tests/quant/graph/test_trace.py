"""Tracing: modules that are kept whole, names in errors, and the modules that a graph runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.trace import BoundGraph, TraceError, trace
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe


class Deciding(nn.Module):
    """Branches on data, and returns two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = self.conv(x)
        if y.sum() > 1e9:
            y = -y
        return y, [y * 2, y * 3]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.deciding = Deciding()
        self.heads = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        first, rest = self.deciding(self.stem(x))
        return [head(level) for head, level in zip(self.heads, [first, *rest], strict=True)]


def test_a_module_without_static_graph_is_named() -> None:
    model = Model()
    with pytest.raises(TraceError, match="Model has no static graph in deciding") as caught:
        trace(model)
    assert caught.value.calls == ("deciding",)


def test_a_module_without_static_graph_stays_whole_and_float() -> None:
    model = Model()
    x = torch.randn(1, 3, 4, 4)
    expected = model(x)
    traced = trace_tolerantly(model, model.forward, x)
    assert list(traced.left_float) == ["deciding"]
    assert not any(module._forward_hooks for module in model.modules()), "it leaves no hook"
    assert "control flow" in traced.left_float["deciding"]
    graph = prepare(model, Recipe(), traced)
    assert {s.name for s in graph.sites if s.kind == "weight"} == {
        "stem",
        *(f"heads/{i}" for i in range(3)),
    }
    for got, value in zip(graph(x), expected, strict=True):
        assert torch.equal(got, value)
    # The parts of the module's result are quantized one by one, if integers are read.
    inputs = {s.name for s in graph.sites if s.kind == "activation" and "heads" not in s.name}
    assert inputs == {"x/out", "getitem/out", "getitem#1/out", "getitem#2/out"}
    set_phase(graph.quantizers, Phase.CALIBRATE)
    graph(x)


def test_an_example_runs_without_a_record_for_gradients() -> None:
    seen: list[bool] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor:
                seen.append(torch.is_grad_enabled())
            return x if float(x.mean()) > 0 else -x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Watching())
    x = torch.randn(1, 3, 4, 4)
    assert list(trace_tolerantly(model, model.forward, x).left_float) == ["1"]
    assert seen
    assert not any(seen)


def test_modules_of_one_type_stay_whole_together() -> None:
    model = nn.Sequential(Deciding(), nn.Conv2d(4, 3, 1), Deciding())

    def forward(x: Tensor) -> Tensor:
        y, _ = model[0](x)
        z: Tensor = model[2](model[1](y))[0]
        return z

    traced = trace_tolerantly(model, forward, torch.randn(1, 3, 2, 2))
    assert set(traced.left_float) == {"0", "2"}


def test_a_branch_on_data_outside_of_any_module_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(x: Tensor) -> Tensor:
        return model(x) if x.sum() > 0 else x

    with pytest.raises(TraceError, match="control flow"):
        trace_tolerantly(model, forward, torch.ones(1, 3, 2, 2))


def test_modes_of_modules_are_as_before() -> None:
    model = Model().train()
    model.heads[1].eval()
    trace_tolerantly(model, model.forward, torch.randn(1, 3, 2, 2))
    assert [m.training for m in model.heads] == [True, False, True]
    assert model.training


def test_graph_uses_a_replaced_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    graph = BoundGraph(model, trace(model))
    model[0] = nn.Conv2d(3, 5, 1)
    assert graph(torch.randn(1, 3, 2, 2)).shape[1] == 5


def test_constant_of_the_forward_pass_is_not_in_the_state_dict() -> None:
    class Shifting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([1.0, 2.0])

    model = Shifting()
    keys = set(model.state_dict())
    graph = BoundGraph(model, trace(model))
    assert graph(torch.zeros(2)).tolist() == [1.0, 2.0]
    assert set(model.state_dict()) == keys


def test_writing_into_a_tensor_is_traced() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.new_zeros(x.shape)
            y[:, 0] = x[:, 1] * 2
            return y

    model = Writing()
    graph = BoundGraph(model, trace(model))
    x = torch.randn(3, 2)
    assert torch.equal(graph(x), model(x))


def test_rank_of_a_tensor_is_known_from_an_example_in_either_mode() -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.fc = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            if x.dim() > 2 and x.ndim == 4:
                x = x.flatten(1)
            y: Tensor = self.fc(x)
            return y

    model = Flattening()
    x = torch.randn(2, 3, 2, 2)
    with pytest.raises(TraceError):
        trace(model)
    mean = model.norm.running_mean
    before = mean.clone()  # type: ignore[union-attr]
    traced = trace_tolerantly(model, model.forward, x)
    assert not traced.left_float
    assert torch.equal(model.norm.running_mean, before)  # type: ignore[arg-type]
    model.eval()
    assert torch.equal(BoundGraph(model, traced)(x), model(x))


def test_two_inputs() -> None:
    model = nn.Sequential(nn.Bilinear(2, 3, 4))
    graph = trace(model, lambda x, y: model[0](x, y), examples=(torch.ones(1, 2), torch.ones(1, 3)))
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(BoundGraph(model, graph)(x, y), model[0](x, y))


def test_sizes_are_unpacked_and_stay_unknown() -> None:
    class Splitting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            batch, _ = x.shape[:2]
            return x.view(batch, 2, -1, *x.shape[2:]).sum(1)

    model = Splitting()
    traced = trace_tolerantly(model, model.forward, torch.randn(1, 4, 3, 3))
    assert not traced.left_float
    x = torch.randn(3, 4, 5, 6)
    assert torch.equal(BoundGraph(model, traced)(x), model(x))

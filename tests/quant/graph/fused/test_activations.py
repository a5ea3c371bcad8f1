"""Activation functions run in one pass with their quantizer where nobody can tell."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.fused.activations import clip_of
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import calibrate


class Net(nn.Module):
    """Two layers with an activation function between, and a forward pass of the test's."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], activation: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.one, self.activation, self.two = nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _plain(n: Net, x: Tensor) -> Tensor:
    y: Tensor = n.two(n.activation(n.one(x)))
    return y


def _size_read(n: Net, x: Tensor) -> Tensor:
    """Read the activation's result for its size, which a quantizer does not change."""
    y = n.activation(n.one(x))
    return F.interpolate(n.two(y), size=(y.shape[2] * 2, y.shape[3] * 2))


def _input_read_twice(n: Net, x: Tensor) -> Tensor:
    before = n.one(x)
    found: Tensor = n.two(n.activation(before)) + before.abs().mean()
    return found


def _sum_read_twice(n: Net, x: Tensor) -> Tensor:
    before = n.one(x) + 1.0
    found: Tensor = n.two(n.activation(before)) + before.abs().mean()
    return found


def _of_the_input(n: Net, x: Tensor) -> Tensor:
    y: Tensor = n.two(n.one(n.activation(x)))
    return y


def image(seed: int) -> Tensor:
    return torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(seed))


def quantized(function: Callable[[Net, Tensor], Tensor], activation: nn.Module) -> QuantizedGraph:
    torch.manual_seed(0)
    graph = prepare(Net(function, activation).eval(), Recipe())
    calibrate(graph, [image(seed) for seed in range(3)])
    return graph


def run_node_by_node(graph: QuantizedGraph, x: Tensor) -> Tensor:
    """Return what the graph as it is analysed and exported computes, with nothing fused."""
    found: Tensor = torch.fx.Interpreter(graph.root, graph=graph.graph).run(x)
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of activation modules."""
    counted: Counter[str] = Counter()
    for kind in (nn.ReLU, nn.Hardtanh, nn.SiLU):

        def forward(
            self: nn.Module, x: Tensor, real: Callable[..., Tensor] = kind.forward
        ) -> Tensor:
            counted[type(self).__name__] += 1
            return real(self, x)

        monkeypatch.setattr(kind, "forward", forward)
    return counted


@pytest.mark.parametrize(
    ("function", "activation", "called"),
    [
        (_plain, nn.ReLU(), 0),
        (_plain, nn.ReLU6(), 0),
        (_plain, nn.Hardtanh(-0.5, 2.0), 0),
        (_plain, nn.SiLU(), 1),
        (_size_read, nn.ReLU(), 1),
        (_input_read_twice, nn.ReLU(), 0),
        (_sum_read_twice, nn.ReLU(), 0),
        (_of_the_input, nn.ReLU(), 0),
    ],
)
@pytest.mark.parametrize("phase", [Phase.FROZEN, Phase.TRAIN])
def test_fused_or_not_every_value_and_gradient_is_the_same(
    calls: Counter[str],
    function: Callable[[Net, Tensor], Tensor],
    activation: nn.Module,
    called: int,
    phase: Phase,
) -> None:
    graph = quantized(function, activation)
    other = copy.deepcopy(graph)
    found = []
    for one, run in ((graph, graph), (other, lambda x: run_node_by_node(other, x))):
        set_phase(one.quantizers, phase)
        x = image(7).requires_grad_()
        calls.clear()
        y = run(x)
        found.append((calls.total(), y.detach().clone()))
        y.square().sum().backward()
        gradients = [p.grad for p in (x, *one.root.parameters())]
        found[-1] += ([g for g in gradients if g is not None],)
    (fused, y, gradients), (alone, wanted, wanted_gradients) = found
    assert fused == called
    assert alone == 1
    assert torch.equal(y, wanted)
    assert len(gradients) == len(wanted_gradients) == 5
    for one, two in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_users_input_is_never_overwritten() -> None:
    for activation in (nn.ReLU(), nn.SiLU()):
        graph = quantized(_of_the_input, activation)
        x = image(7)
        graph(x)
        assert torch.equal(x, image(7))


@torch.no_grad()
@pytest.mark.parametrize("hooked", ["activation", "quantizer"])
@pytest.mark.parametrize("before", [True, False])
def test_hooks_see_the_value_in_between(hooked: str, before: bool) -> None:
    graph = quantized(_plain, nn.ReLU())
    quantizer = graph.activations()["activation/out"]
    module = graph.root.activation if hooked == "activation" else quantizer
    seen: list[Tensor] = []
    wanted = graph(image(7))
    if before:
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    else:
        module.register_forward_hook(lambda _, __, result: seen.append(result.clone()))
    assert torch.equal(graph(image(7)), wanted)
    assert len(seen) == 1
    clipped = bool((seen[0] >= 0).all())
    assert clipped is not (hooked == "activation" and before)


def test_only_what_clips_has_bounds() -> None:
    assert clip_of(nn.ReLU()) == (0.0, torch.inf)
    assert clip_of(nn.ReLU6()) == (0.0, 6.0)
    assert clip_of(nn.Hardtanh(-2.0, 3.0)) == (-2.0, 3.0)
    assert clip_of(nn.SiLU()) is None

    class Own(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return F.silu(x)

    assert clip_of(Own()) is None

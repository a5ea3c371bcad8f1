"""Calls of shared modules in training: the usual ones keep their quantizers, others stay float."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.known.calls import call_numbers
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.trace import TraceError
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe, Rule

Steps = Callable[["Shared", Tensor], list[Tensor]]


class Shared(nn.Module):
    """Calls its layers with the same functions in both modes, and in training once more."""

    def __init__(self, usual: Steps, before: Steps | None, after: Steps | None) -> None:
        super().__init__()
        self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.usual, self.before, self.after = usual, before, after

    def branch(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(self.b(x).relu())
        return result

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        more = self.before(self, x) if self.before is not None and self.training else []
        result = self.usual(self, x)
        if self.after is not None and self.training:
            more = more + self.after(self, x)
        return result, more


def once(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(x)]


def levels(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(x), net.branch(F.max_pool2d(x, 2)), net.branch(x * 2)]


def with_dropout(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(F.dropout(net.b(x)[:, :3], 0.0, net.training)), net.branch(x)]


def clipped(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.c(F.relu6(net.b(4 * x))), net.c(F.relu6(net.b(-9 * x)))]


def other(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(-x)]


def others(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(x + 1), net.c(F.relu6(net.b(-x))), net.branch(x.abs())]


def same(net: Shared, x: Tensor) -> list[Tensor]:
    return [net.branch(x)]


def frozen(net: Shared, recipe: Recipe, x: Tensor) -> QuantizedGraph:
    graph = prepare(net, recipe, examples=[x])
    set_phase(graph.quantizers, Phase.CALIBRATE)
    net.eval()
    graph(x)
    update_scales_(list(graph.activations().values()))
    set_phase(graph.quantizers, Phase.FROZEN)
    return graph


@pytest.mark.parametrize("usual", [once, levels, with_dropout, clipped])
@pytest.mark.parametrize("before", [None, other, others, same])
@pytest.mark.parametrize("after", [None, other, others, same])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(free_clips=True)])
def test_calls_of_training_alone_take_no_quantizer(
    usual: Steps, before: Steps | None, after: Steps | None, recipe: Recipe
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    plain = prepare(Shared(usual, None, None), recipe, examples=[x])
    torch.manual_seed(0)
    net = Shared(usual, before, after)
    graph = frozen(net, recipe, x)
    assert [site.name for site in graph.sites] == [site.name for site in plain.sites]
    assert list(graph.quantizers) == list(plain.quantizers)
    wanted, _ = graph(x)
    net.train()
    found, _ = graph(x)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


class Halved(Shared):
    """What comes before the shared layers differs between the modes."""

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return super().forward(x * 0.5 / 0.5 if self.training else x)


def test_equally_many_calls_of_another_input_are_the_same_in_order() -> None:
    x = torch.randn(2, 3, 6, 6)
    net = Halved(levels, None, None)
    graph = frozen(net, Recipe(), x)
    net.train()
    called = {str(n.target) for n in graph.training_graph.nodes}  # type: ignore[union-attr]
    # The input is not among them: only its half is read.
    assert {f"quantizers.{name}" for name in graph.quantizers} - called <= {"quantizers.x/out"}


def test_calls_that_cannot_be_told_apart_are_refused_by_name() -> None:
    x = torch.randn(2, 3, 6, 6)
    with pytest.raises(TraceError, match=r"relu has 2 calls in training and 1 call in eval"):
        prepare(Halved(once, other, None), Recipe(), examples=[x])
    float_layers = tuple(Rule(module=name, quantize=False) for name in ("b", "c", "relu"))
    net = Halved(once, other, None)
    assert not hasattr(net, "quantizers")
    prepare(net, Recipe(rules=float_layers), examples=[x])


@pytest.mark.parametrize(
    ("first", "second", "numbers"),
    [
        ("", "", []),
        ("abc", "abc", [0, 1, 2]),
        ("abc", "xyz", [0, 1, 2]),
        ("ab", "ba", [1, 0]),
        ("a", "xay", [None, 0, None]),
        ("ab", "xa", [1, 0]),
        ("aa", "aaa", [0, 1, 1]),
        ("ab", "b", [1]),
        ("", "x", [None]),
    ],
)
def test_call_numbers(first: str, second: str, numbers: list[int | None]) -> None:
    assert call_numbers(first, second) == numbers


@pytest.mark.parametrize(("first", "second"), [("a", "xy"), ("ab", "x"), ("abc", "axyz")])
def test_calls_without_a_partner(first: str, second: str) -> None:
    with pytest.raises(LookupError):
        call_numbers(first, second)

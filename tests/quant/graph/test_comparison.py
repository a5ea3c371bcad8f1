"""A prepared graph is compared with its model once; a failed preparation changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph import trace as tracing
from dq.quant.graph.comparison import DifferenceError, Reference, refuse_difference
from dq.quant.graph.prepare import prepare, prepare_part
from dq.quant.graph.trace import TraceError
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.integer.convert import integer_network
from dq.quant.integer.engine.graph import exact_network
from dq.quant.recipes.recipe import Recipe, Rule
from tests.quant import small_net as nets


class Secret(nn.Module):
    """Writes where tracing cannot see it: through a numpy view of its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if type(y) is Tensor:
            y.numpy()[:] = 1.0
        z: Tensor = self.last(self.drop(y) + torch.ones(1))
        return z


def untouched(model: nn.Module) -> list[object]:
    return [
        [name for name, _ in model.named_modules()],
        [name for name, _ in model.named_buffers()],
        [m.training for m in model.modules()],
        {name: t.clone().tolist() for name, t in model.state_dict().items()},
    ]


@pytest.mark.parametrize("way", ["tolerantly", "prepare"])
def test_a_difference_is_refused_by_name_and_the_model_is_restored(way: str) -> None:
    model = Secret().train()
    model.drop.eval()
    before, x = untouched(model), torch.randn(1, 3, 4, 4)
    random = torch.get_rng_state()
    ways = {
        "tolerantly": lambda: trace_tolerantly(model, model.forward, x),
        "prepare": lambda: prepare(model, Recipe(), examples=(x,)),
    }
    with pytest.raises(TraceError, match=r"does not compute what the model.*(first|last)"):
        ways[way]()
    assert untouched(model) == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("with_plain", [True, False])
def test_the_graph_before_quantizers_names_the_place(with_plain: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    reference = Reference(forward=model.forward, examples=(torch.randn(1, 3, 4, 4),))
    plain = (lambda x: model[1](model[0](x))) if with_plain else None
    place = "after 1;" if with_plain else "in its outputs;"
    with pytest.raises(DifferenceError, match=place):
        refuse_difference(model, reference, lambda x: torch.zeros(1, 2, 4, 4), plain)


def test_a_random_model_is_not_a_difference() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y + torch.rand_like(y)

    prepare(Noisy(), Recipe(), examples=(torch.randn(1, 3, 4, 4),))


def test_a_model_that_fails_on_noise_is_compared_on_its_examples() -> None:
    def root_of(x: Tensor) -> Tensor:
        assert (x >= 0).all()
        return x.sqrt()

    reference = Reference(forward=root_of, examples=(torch.ones(2) * 4,))
    refuse_difference(nn.Identity(), reference, lambda x: x / 2)
    with pytest.raises(DifferenceError, match="does not compute"):
        refuse_difference(nn.Identity(), reference, lambda x: x)


def test_a_model_that_always_fails_cannot_be_compared() -> None:
    def fails(x: Tensor) -> Tensor:
        raise IndexError("nothing was found")

    reference = Reference(forward=fails, examples=(torch.ones(2),))
    refuse_difference(nn.Identity(), reference, lambda x: x)
    with pytest.raises(DifferenceError, match="nothing was found"):
        refuse_difference(
            nn.Identity(), Reference(forward=lambda x: x, examples=(torch.ones(2),)), fails
        )


RULES = {
    "module": (ValueError, Recipe(rules=(Rule(module="hedd", bits=4),))),
    "type": (ValueError, Recipe(rules=(Rule(type="Conv9d", bits=4),))),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("given", [False, True])
def test_a_mistyped_rule_can_be_corrected_and_tried_again(rule: str, given: bool) -> None:
    model = nets.Net().eval()
    x = nets.images()
    traced = trace_tolerantly(model, model.forward, x) if given else None
    before, wanted = untouched(model), prepare(nets.Net().eval(), Recipe())
    error, recipe = RULES[rule]
    with pytest.raises(error, match="is not in the model"):
        prepare(model, recipe, traced)
    assert untouched(model) == before
    graph = prepare(model, Recipe(), traced)
    assert [s.name for s in graph.sites] == [s.name for s in wanted.sites]
    assert list(graph.quantizers) == list(wanted.quantizers)


def test_a_part_that_fails_does_not_change_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 4, 1), "b": nn.Linear(4, 2)})
    whole = prepare(model, Recipe(), tracing.trace(model, model["a"]))
    traced = trace_tolerantly(model, model["b"], torch.randn(3, 4))  # type: ignore[arg-type]
    before = untouched(model)

    def fails(*args: object) -> None:
        raise RuntimeError("no memory is left")

    with monkeypatch.context() as patched:
        patched.setattr("dq.quant.graph.prepare.initialise_weights_", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            prepare_part(whole, Recipe(), traced, "b")
    assert untouched(model) == before
    assert not whole.parts
    assert prepare_part(whole, Recipe(), traced, "b") is whole.parts["b"]


@pytest.mark.parametrize("mode", [True, False])
def test_a_graph_works_in_both_modes(mode: bool) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            nn.functional.dropout(y, 0.5, training=self.training, inplace=True)
            return y

    model, x = Dropping().train(mode), torch.randn(2, 3, 4, 4)
    graph = prepare(model, Recipe())
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(graph(x), expected)


@pytest.mark.parametrize("convert", [integer_network, exact_network])
def test_an_integer_network_does_not_change_the_mode_of_the_model(convert) -> None:
    class Sided(nets.Net):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.GroupNorm(2, 8)

        def forward(self, x):
            return self.head(self.side(super().forward(x)[1]))

    torch.manual_seed(0)
    graph = prepare(Sided(), Recipe())
    with torch.no_grad():
        for quantizer in graph.activations().values():
            quantizer.observer.range_min.fill_(-3.0)
            quantizer.observer.range_max.fill_(3.0)
            quantizer.initialise_from_range_()
    graph.root.train()
    before = [module.training for module in graph.root.modules()]
    network = convert(graph)
    assert [module.training for module in graph.root.modules()] == before
    if isinstance(network, nn.Module):
        assert not any(module.training for module in network.modules())
        shared = {id(p) for p in network.parameters()}
        assert id(graph.root.side.weight) in shared, "its tensors are the model's own"


F16 = torch.float16
CASES = {
    "equal": ([1.0, -2.0], [1.0, -2.0], True),
    "rounding": ([1.0, -2.0], [1.0005, -2.001], True),
    "one percent": ([1.0, -2.0], [1.01, -2.0], False),
    "small beside large": ([100.0, 0.0], [100.0, 0.05], True),
    "small alone": ([1.0, 0.0], [1.0, 0.05], False),
    "nan": ([torch.nan, 1.0], [torch.nan, 1.0], True),
    "a number for nan": ([torch.nan, 1.0], [0.0, 1.0], False),
    "infinity": ([torch.inf, 1.0], [torch.inf, 1.0], True),
    "a number for infinity": ([torch.inf, 1.0], [1e30, 1.0], False),
    "beside infinity": ([torch.inf, 1.0], [torch.inf, 1.1], False),
    "no finite number": ([torch.nan], [torch.nan], True),
    "empty": ([], [], True),
    "shape": ([1.0, 2.0], [[1.0, 2.0]], False),
    "integers": ([1000, 3], [1000, 3], True),
    "another integer": ([1000, 3], [1001, 3], False),
    "truth": ([True, False], [True, True], False),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_compared_up_to_rounding_and_integers_exactly(name: str) -> None:
    expected, found, same = CASES[name]
    compare({"a": torch.tensor(expected)}, {"a": torch.tensor(found)}, same=same)


def test_all_outputs_are_compared_in_any_dtype() -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    compare([x, (y,)], [x, (y,)], same=True)
    compare([x, (y,)], [x, (y + 1,)], same=False)
    compare([x, y], [x], same=False)
    compare(x, x.to(F16), same=True)
    compare(x.to(F16), x, same=True)


def compare(expected: object, found: object, *, same: bool) -> None:
    reference = Reference(forward=lambda x: expected, examples=(torch.zeros(1),))
    if same:
        refuse_difference(nn.Identity(), reference, lambda x: found)
        return
    with pytest.raises(DifferenceError, match="does not compute what the model computes, first"):
        refuse_difference(nn.Identity(), reference, lambda x: found)

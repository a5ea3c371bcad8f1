"""Frozen means frozen: no optimizer, average or update changes a scale or zero point."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MovingAverageObserver
from dq.quant.quantizers.factory import LEARNED, forget_momentum_, learned_parameters, regroup_
from dq.quant.quantizers.factory import activation_quantizer as make
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import OBSERVERS, Recipe
from dq.quant.training.weight_average import WeightAverage
from tests.quant import small_net as nets

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
}


def state_of(graph) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in graph.quantizers.state_dict().items()}


@pytest.mark.parametrize("learned", [None, *LEARNED])
@pytest.mark.parametrize(
    ("optimizer", "way"),
    [
        *((name, "regrouped") for name in OPTIMIZERS),
        *((name, "not told") for name in OPTIMIZERS),
        ("sgd", "told when frozen"),
        ("sgd", "gradients kept as zeros"),
        ("sgd", "by a closure"),
        ("sgd", "a copy"),
    ],
)
def test_nothing_of_a_frozen_quantizer_changes(
    learned: str | None, optimizer: str, way: str
) -> None:
    graph = nets.calibrated(Recipe(learned=learned))
    graph.root.train()
    if way == "a copy":
        graph = copy.deepcopy(graph)
    steps = OPTIMIZERS[optimizer](list(graph.root.parameters()))
    if way == "regrouped":
        regroup_(steps, graph.root)
    average = WeightAverage(graph.root, 0.1)

    def step(seed: int) -> None:
        def loss() -> torch.Tensor:
            steps.zero_grad(set_to_none=way != "gradients kept as zeros")
            value = graph(nets.images(seed))[0].square().mean()
            value.backward()
            return value

        if way == "by a closure":
            steps.step(loss)
        else:
            loss()
            steps.step()
        update_scales_(list(graph.activations().values()))
        average.update_()

    set_phase(graph.root, Phase.TRAIN)
    for seed in range(3):
        step(seed)
    graph(nets.images(7) * 9)  # Recorded, but the range is not updated yet when it freezes.
    if way == "told when frozen":
        forget_momentum_(steps, graph.root)
    set_phase(graph.root, Phase.FROZEN)
    before, weight = state_of(graph), graph.root.head.weight.clone()
    for seed in range(4):
        step(seed)
        if not seed:
            averaged = {n: average.values[f"quantizers.{n}"].clone() for n in before}
    assert not torch.equal(graph.root.head.weight, weight)
    for name, value in state_of(graph).items():
        assert torch.equal(value, before[name]), name
    for name in before:
        assert torch.equal(average.values[f"quantizers.{name}"], averaged[name]), name
        assert torch.equal(averaged[name], before[name]), name


def test_an_update_of_all_leaves_out_the_frozen_ones_alone() -> None:
    quantizers = [make(None, QuantSpec(), MovingAverageObserver()) for _ in range(3)]
    for quantizer in quantizers:
        quantizer.phase = Phase.CALIBRATE
        quantizer(torch.tensor([0.0, 51.0]))
    quantizers[1].phase = Phase.FROZEN
    update_scales_(quantizers)
    scales = [float(quantizer.scale) for quantizer in quantizers]
    assert scales == pytest.approx([0.2, 1.0, 0.2])
    assert [q.has_range for q in quantizers] == [True, False, True]
    assert all(float(q.observer.batch_max) == -torch.inf for q in quantizers)


@pytest.mark.parametrize("learned", LEARNED)
def test_learning_continues_when_the_phase_returns_to_train(learned: str) -> None:
    graph = nets.calibrated(Recipe(learned=learned))
    graph.root.train()
    optimizer = OPTIMIZERS["sgd"](list(graph.root.parameters()))
    regroup_(optimizer, graph.root)
    for phase, moves in ((Phase.FROZEN, False), (Phase.TRAIN, True)):
        set_phase(graph.root, phase)
        before = {n: p.detach().clone() for n, p in learned_parameters(graph.root).items()}
        optimizer.zero_grad()
        graph(nets.images(1) * 3)[0].square().mean().backward()
        optimizer.step()
        after = learned_parameters(graph.root)
        assert any(not torch.equal(p, before[n]) for n, p in after.items()) is moves


@pytest.mark.parametrize("learned", [None, *LEARNED])
def test_a_frozen_quantizer_without_a_range_raises_and_is_named(learned: str | None) -> None:
    from dq.quant.graph.prepare import prepare

    torch.manual_seed(0)
    graph = prepare(nets.Net().eval(), Recipe(learned=learned))
    set_phase(graph.quantizers, Phase.FROZEN)
    with pytest.raises(ValueError, match=r"the quantizer x/out has no range.*calibrate"):
        graph(nets.images())
    other = nets.calibrated(Recipe(learned=learned))
    graph.root.load_state_dict(other.root.state_dict())
    assert torch.equal(graph(nets.images())[0], other(nets.images())[0])


@pytest.mark.parametrize("learned", [None, *LEARNED])
def test_a_scale_set_by_hand_is_enough(learned: str | None) -> None:
    quantizer = make(learned, QuantSpec(), MovingAverageObserver())
    quantizer.phase = Phase.FROZEN
    with pytest.raises(ValueError, match="without a name"):
        quantizer(torch.ones(3))
    with torch.no_grad():
        for tensor in (*quantizer.parameters(), *quantizer.buffers()):
            if tensor.is_floating_point() and tensor.isfinite().all() and tensor.dim() == 0:
                tensor.mul_(0.1)
    quantizer(torch.ones(3))


@pytest.mark.parametrize("observer", ["mse", "percentile", "entropy"])
@pytest.mark.parametrize("learned", [None, "lsq"])
def test_an_observer_collects_without_an_explicit_call(observer: str, learned: str | None) -> None:
    """With a large outlier: a moving average covers it, a search does not."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    x[0] = 400.0
    recipe = Recipe(observer=observer, learned=learned, percentile=99.0)
    quantizer = recipe.activation_quantizer(QuantSpec(bits=4))
    alone = OBSERVERS[observer](spec=QuantSpec(bits=4), **_options(observer))  # type: ignore[call-arg]
    quantizer.phase = Phase.CALIBRATE
    for part in x.split(1000):
        quantizer(part)
        update_scales_([quantizer])
        alone.observe(part)
    alone.update_()
    assert torch.equal(quantizer.observer.range_max, alone.range_max)
    assert torch.equal(quantizer.observer.range_min, alone.range_min)
    assert quantizer.observer.range_max < 200 or observer == "mse"
    quantizer.phase = Phase.FROZEN
    quantizer.phase = Phase.CALIBRATE  # As after an evaluation of the quantized net in between.
    assert quantizer.observer.counts.sum() == len(x)  # type: ignore[attr-defined]
    quantizer.phase = Phase.TRAIN
    assert not quantizer.observer.counts.numel()  # type: ignore[attr-defined]


def _options(observer: str) -> dict[str, float]:
    return {"percentile": 99.0} if observer == "percentile" else {}


def averaged(values: list[float], quantizer: ActivationQuantizer) -> float:
    for value in values:
        quantizer(torch.tensor([0.0, value]))
        update_scales_([quantizer])
    return float(quantizer.observer.range_max)


def test_a_moving_average_is_not_its_first_batch() -> None:
    quantizer = make(None, QuantSpec(), MovingAverageObserver(momentum=0.01))
    quantizer.phase = Phase.CALIBRATE
    values = [100.0, 1.0, 2.0, 3.0, 4.0]
    assert averaged(values, quantizer) == pytest.approx(sum(values) / 5)
    # In the long run the momentum decides.
    assert averaged([1.0] * 95, quantizer) == pytest.approx(sum([*values, *[1.0] * 95]) / 100)
    before = float(quantizer.observer.range_max)
    assert averaged([1.0], quantizer) == pytest.approx(0.99 * before + 0.01)


def test_a_training_continues_from_a_calibrated_range_as_from_a_loaded_one() -> None:
    one, other = (make(None, QuantSpec(), MovingAverageObserver(momentum=0.01)) for _ in range(2))
    one.phase = Phase.CALIBRATE
    averaged([3.0, 5.0], one)
    other.load_state_dict(one.state_dict())
    for quantizer in (one, other):
        quantizer.phase = Phase.FROZEN
        quantizer.phase = Phase.TRAIN
        quantizer.train()
    assert averaged([50.0], one) == averaged([50.0], other) == pytest.approx(4 + 0.46)

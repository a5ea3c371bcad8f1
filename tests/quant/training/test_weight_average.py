import copy

import pytest
import torch

from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.weight_average import Ema, WeightAverage
from tests.quant import small_net as nets


def train(graph, average, steps: int = 10) -> None:
    set_phase(graph.root, Phase.TRAIN)
    graph.root.train()
    optimizer = torch.optim.SGD(graph.root.parameters(), lr=0.01)
    for seed in range(steps):
        optimizer.zero_grad()
        graph(nets.images(seed))[0].square().mean().backward()
        optimizer.step()
        average.update_()


def test_weights_and_learned_scales_are_averaged_and_integers_are_not() -> None:
    graph = nets.calibrated(Recipe(learned="lsq"))
    average = WeightAverage(graph.root, 0.5)
    scale = graph.quantizers["head"].weight.learned_scale
    zero_point = graph.quantizers["x/out"].fixed_zero_point
    with torch.no_grad():
        first, scale_first = graph.root.head.weight.clone(), scale.clone()
        graph.root.head.weight.add_(1.0)
        scale.add_(1.0)
        zero_point.fill_(77)
    average.update_()
    # The first step weighs 9 / 11.
    assert torch.allclose(average.values["head.weight"], first + 9 / 11)
    name = "quantizers.head.weight.learned_scale"
    assert torch.allclose(average.values[name], scale_first + 9 / 11)
    copied = average.values["quantizers.x/out.fixed_zero_point"]
    assert copied == 77
    assert copied.dtype == torch.int32


def test_infinite_ranges_stay_infinite_and_scales_fit_their_ranges() -> None:
    graph = nets.calibrated()
    quantizer = graph.quantizers["x/out"]
    quantizer.observer.range_min.fill_(torch.inf)
    quantizer.observer.range_max.fill_(-torch.inf)
    average = WeightAverage(graph.root, 0.1)
    average.update_()
    assert average.values["quantizers.x/out.observer.range_min"] == torch.inf
    assert all(not value.isnan().any() for value in average.values.values())
    for name, value in average.values.items():
        if name.startswith("quantizers.") and "observer" not in name:
            assert torch.equal(value, graph.root.state_dict()[name])


def test_the_average_can_be_evaluated_and_the_training_continues_unchanged() -> None:
    graph = nets.calibrated(Recipe(learned="lsq+"))
    average = WeightAverage(graph.root, 0.01)
    train(graph, average)
    graph.root.eval()
    set_phase(graph.root, Phase.FROZEN)
    x = nets.images(99)
    with torch.no_grad():
        own = graph(x)[0]
        with average.in_model():
            averaged = graph(x)[0]
        again = graph(x)[0]
    assert torch.equal(own, again)
    assert not torch.equal(own, averaged)
    assert (own - averaged).square().mean() < 0.05 * own.square().mean()


def test_resuming_restores_both_the_average_and_the_weights() -> None:
    graph = nets.calibrated(Recipe(learned="lsq"))
    average = WeightAverage(graph.root, 0.01)
    train(graph, average)
    with average.in_model():
        weights, rest = copy.deepcopy((graph.root.state_dict(), average.state_dict()))
    own, values = copy.deepcopy((graph.root.state_dict(), average.values))

    other = nets.calibrated(Recipe(learned="lsq"))
    resumed = WeightAverage(other.root, 0.01)
    other.root.load_state_dict(weights)
    resumed.load_state_dict(rest)
    assert resumed.num_updates == 10
    assert all(torch.equal(v, own[n]) for n, v in other.root.state_dict().items())
    assert all(torch.equal(v, values[n]) for n, v in resumed.values.items())
    train(other, resumed, 1)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_a_momentum_that_averages_nothing_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"quant.ema.momentum"):
        Ema(momentum=momentum)

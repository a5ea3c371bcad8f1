import pytest
import torch

from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.oscillation import Oscillation, OscillationTracker, dampening_loss
from tests.quant import small_net as nets


def prepared():
    """LSQ, so that the scale does not follow the weight that the test changes."""
    graph = nets.calibrated(Recipe(weight=nets.W4, learned="lsq"))
    set_phase(graph.root, Phase.TRAIN)
    return graph


def move(graph, steps: float) -> None:
    """Move one weight of the head by this many integers."""
    with torch.no_grad():
        scale = graph.quantizers["head"].weight.learned_scale[0]
        graph.root.head.weight[0, 0, 0, 0] = steps * scale


def test_only_reversals_count() -> None:
    graph = prepared()
    tracker = OscillationTracker(graph, Oscillation(momentum=0.1))
    for step in (0, 1, 2, 3, 3, 4):
        move(graph, step)
        tracker.update_()
    assert tracker.share_oscillating() == 0.0
    move(graph, 3)
    tracker.update_()
    total = sum(record.integers.numel() for record in tracker.records.values())
    assert float(tracker.records["head"].frequency[0, 0, 0, 0]) == pytest.approx(0.1)
    assert tracker.share_oscillating() == pytest.approx(1 / total)


def test_the_frequency_of_a_weight_that_flips_each_step_goes_to_one() -> None:
    graph = prepared()
    tracker = OscillationTracker(graph, Oscillation(momentum=0.2))
    for step in range(40):
        move(graph, 1 + step % 2)
        tracker.update_()
    assert tracker.records["head"].frequency[0, 0, 0, 0] > 0.99
    assert tracker.records["head"].frequency.flatten()[1:].max() == 0


def test_an_oscillating_weight_is_frozen_at_its_most_frequent_integer() -> None:
    graph = prepared()
    tracker = OscillationTracker(graph, Oscillation(momentum=0.1, freeze_above=0.3))
    for step in range(30):
        move(graph, 1 if step % 3 == 2 else 2)
        tracker.update_()
    assert tracker.share_frozen() > 0
    move(graph, 5)
    before = graph.root.head.weight.detach().clone()
    tracker.update_()
    scale = graph.quantizers["head"].weight.learned_scale[0]
    assert graph.root.head.weight[0, 0, 0, 0].item() == pytest.approx(2 * scale.item(), rel=1e-5)
    changed = (graph.root.head.weight != before).sum()
    assert changed == 1


def test_a_frozen_weight_of_a_folded_layer_keeps_its_integer_when_the_norm_changes() -> None:
    graph = prepared()
    tracker = OscillationTracker(graph, Oscillation(momentum=0.5, freeze_above=0.01))
    tracker.update_()
    record = tracker.records["stem+norm"]
    record.frequency.fill_(1.0)
    tracker.update_()
    assert record.frozen.all()
    integers = record.integers.clone()
    with torch.no_grad():
        graph.root.stem.weight.add_(0.3 * torch.randn_like(graph.root.stem.weight))
        graph.root.norm.running_var.mul_(1.7)
    tracker.update_()
    site, quantized, layer, norm = next(iter(graph.layers()))
    weight, scale, _ = quantized.quantized_weight(layer, norm)
    assert site.name == "stem+norm"
    assert torch.allclose(weight / scale.reshape(-1, 1, 1, 1), integers.float(), atol=1e-3)


def test_its_state_is_outside_the_model_and_loads_again() -> None:
    graph = prepared()
    keys = list(graph.root.state_dict())
    tracker = OscillationTracker(graph, Oscillation(freeze_above=0.02))
    for step in range(5):
        move(graph, step % 2)
        tracker.update_()
    assert list(graph.root.state_dict()) == keys
    other = OscillationTracker(graph, Oscillation(freeze_above=0.02))
    other.load_state_dict(tracker.state_dict())
    assert other.share_oscillating() == tracker.share_oscillating() > 0
    assert other.share_frozen() == tracker.share_frozen()


def test_dampening_pulls_weights_to_their_integers_and_nothing_else() -> None:
    graph = prepared()
    optimizer = torch.optim.SGD(graph.root.parameters(), lr=0.2)
    first = dampening_loss(graph)
    for _ in range(100):
        optimizer.zero_grad()
        dampening_loss(graph).backward()
        assert graph.root.norm.weight.grad is None
        assert graph.quantizers["head"].weight.learned_scale.grad is None
        optimizer.step()
    assert dampening_loss(graph) < 0.2 * first


def test_dampening_rises_over_the_training() -> None:
    settings = Oscillation(dampening=2.0)
    values = [settings.dampening_at(share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert values == sorted(values)
    assert (values[0], values[2], values[3]) == pytest.approx((0.0, 1.0, 2.0))


@pytest.mark.parametrize("given", [{"momentum": 0}, {"freeze_above": 1.0}, {"dampening": -1}])
def test_invalid_settings_are_refused(given) -> None:
    with pytest.raises(ValueError, match=f"quant.oscillation.{next(iter(given))}"):
        Oscillation(**given)

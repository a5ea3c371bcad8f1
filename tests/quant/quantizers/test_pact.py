import pytest
import torch

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.factory import regroup_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.learned_step import factor_of
from dq.quant.quantizers.pact import PactActivationQuantizer, learned_clip
from dq.quant.quantizers.phase import Phase

U4 = QuantSpec(bits=4)


def test_each_bound_gets_the_gradients_of_the_values_it_clips() -> None:
    x = torch.tensor([-9.0, -1.0, 0.5, 1.0, 7.0, 8.0], requires_grad=True)
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    y = learned_clip(x, low, high, U4, factor=0.5)
    assert torch.allclose(y, torch.tensor([-1.0, -1.0, 0.4, 1.0, 2.0, 2.0]), atol=0.11)
    y.backward(torch.tensor([1.0, 10.0, 10.0, 10.0, 2.0, 4.0]))
    assert low.grad == 0.5
    assert high.grad == 3.0
    assert x.grad.tolist() == [0, 10, 10, 10, 0, 0]


def test_a_factor_in_a_tensor_is_the_factor() -> None:
    """With symbolic sizes torch.compile gives the factor as a tensor."""
    found = []
    for factor in (0.3, torch.tensor(0.3)):
        x = torch.linspace(-3, 9, 50, requires_grad=True)
        ends = [torch.tensor(end, requires_grad=True) for end in (-1.0, 2.0)]
        learned_clip(x, *ends, U4, factor=factor).square().sum().backward()
        found.append([x.grad, *(end.grad for end in ends)])
    assert all(bool(gradient.any()) for gradient in found[0])
    torch.testing.assert_close(found[1], found[0])


def test_it_starts_at_the_observed_range_and_keeps_it_while_nothing_clips() -> None:
    quantizer = PactActivationQuantizer(U4, MinMaxObserver())
    quantizer.phase = Phase.CALIBRATE
    quantizer(torch.tensor([0.0, 3.0]))
    update_scales_([quantizer])
    quantizer.phase = Phase.TRAIN
    assert quantizer.scale.item() == pytest.approx(0.2)
    assert quantizer.zero_point == 0
    quantizer(torch.linspace(0, 3, 20)).sum().backward()
    assert quantizer.clip_max.grad == 0


@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.FROZEN, Phase.OBSERVE])
def test_its_bounds_learn_in_training_alone(phase: Phase) -> None:
    quantizer = PactActivationQuantizer(U4, MinMaxObserver())
    quantizer.phase = Phase.CALIBRATE
    quantizer(torch.tensor([0.0, 3.0]))
    update_scales_([quantizer])
    quantizer.phase = phase
    quantizer(torch.tensor([1.0, 5.0], requires_grad=True)).sum().backward()
    assert quantizer.clip_max.grad == (1 if phase is Phase.TRAIN else 0) * factor_of(
        2, 1, quantizer.clip_max
    )


def test_weight_decay_stays_on_the_clipping_values() -> None:
    quantizer = PactActivationQuantizer(U4, MinMaxObserver())
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1, weight_decay=1e-3)
    # Qualified names decide, so the quantizer needs a place in a model.
    model = torch.nn.ModuleDict({"a": quantizer})
    assert regroup_(optimizer, model, lr_factor=0.1) == 2
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["lr"]) == (1e-3, pytest.approx(0.01))


def test_training_and_evaluation_quantize_the_same() -> None:
    quantizer = PactActivationQuantizer(U4, MinMaxObserver())
    with torch.no_grad():
        quantizer.clip_min.fill_(-0.7)
        quantizer.clip_max.fill_(1.9)
    x = torch.randn(100)
    quantizer.phase = Phase.TRAIN
    train = quantizer(x)
    quantizer.phase = Phase.FROZEN
    assert torch.equal(train, quantizer.eval()(x))


def test_an_empty_range_still_gives_a_scale() -> None:
    quantizer = PactActivationQuantizer(U4, MinMaxObserver())
    update_scales_([quantizer])
    assert quantizer.scale.item() == pytest.approx(1.0)

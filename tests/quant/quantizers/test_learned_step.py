import copy

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.numerics.affine import fake_quantize, quantize, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.factory import (
    forget_momentum_,
    initialise_weights_,
    learned_parameters,
    regroup_,
)
from dq.quant.quantizers.fake_quantize import LearnedActivationQuantizer, update_scales_
from dq.quant.quantizers.learned_step import (
    LsqActivationQuantizer,
    LsqWeightQuantizer,
    factor_of,
    gradient_factor,
    learned_fake_quantize,
    least_squares_scale,
    positive,
    zero_point_of,
)
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe

U4 = QuantSpec(bits=4)
S4 = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten()
    )


def calibrated(recipe: Recipe, *, train: bool = True):
    model = net()
    graph = prepare(model, recipe)
    model.eval()
    set_phase(model, Phase.CALIBRATE)
    torch.manual_seed(1)
    with torch.no_grad():
        graph(torch.randn(4, 3, 8, 8))
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    set_phase(model, Phase.TRAIN)
    model.train(train)
    return model, graph


def round_straight_through(x: torch.Tensor) -> torch.Tensor:
    return x + (torch.round(x) - x).detach()


def reference(x, scale, zero_point, spec, offset=None):
    """LSQ and LSQ+ as in their papers, by autograd in float64."""
    if spec.channel_axis is not None:
        scale, zero_point = scale[:, None], zero_point[:, None]
    shift = -zero_point * scale.detach() if offset is None else offset
    if offset is None:
        integer = round_straight_through(
            torch.clamp(x / scale + zero_point, spec.quant_min, spec.quant_max)
        )
        return (integer - zero_point) * scale
    integer = round_straight_through(
        torch.clamp((x - shift) / scale, spec.quant_min, spec.quant_max)
    )
    return integer * scale + shift


@pytest.mark.parametrize("learn_offset", [False, True])
def test_the_gradients_per_tensor_are_the_papers_in_float64(learn_offset: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(500) * 3).double()
    # The papers clip before rounding, torch's kernels after it: values less than half a step beyond
    # an end count as clipped there and as inside here.
    integer = x / 0.37 + 5
    x = x[~(((integer > -0.51) & (integer < 0)) | ((integer > 15) & (integer < 15.51)))]
    x.requires_grad_()
    scale = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor(5.0, dtype=torch.float64)
    offset = (-5.0 * scale.detach()).requires_grad_() if learn_offset else None
    upstream = torch.randn(len(x)).double()
    reference(x, scale, zero_point, U4, offset).backward(upstream)

    own_x = x.detach().float().requires_grad_()
    own_scale = scale.detach().float().requires_grad_()
    own_offset = offset.detach().float().requires_grad_() if learn_offset else None
    y = learned_fake_quantize(own_x, own_scale, zero_point.int(), U4, offset=own_offset, factor=0.5)
    y.backward(upstream.float())
    assert torch.allclose(own_scale.grad.double(), 0.5 * scale.grad, rtol=1e-4)
    assert torch.equal(own_x.grad, x.grad.float())
    if learn_offset:
        assert torch.allclose(own_offset.grad.double(), 0.5 * offset.grad, rtol=1e-4)


def test_the_gradients_agree_with_torchs_learnable_kernels() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 50) * 3
    upstream = torch.randn(6, 50)
    for axis in (None, 0):
        spec = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=axis)
        n = 1 if axis is None else 6
        scale, zero_point = torch.rand(n) * 0.3 + 0.1, torch.zeros(n)
        theirs = [x.clone().requires_grad_(), scale.clone().requires_grad_(), zero_point.clone()]
        if axis is None:
            y = torch._fake_quantize_learnable_per_tensor_affine(*theirs, -8, 7, 0.25)
        else:
            y = torch._fake_quantize_learnable_per_channel_affine(*theirs, 0, -8, 7, 0.25)
        y.backward(upstream)
        ours = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        own_scale = ours[1].squeeze(0) if axis is None else ours[1]
        own = learned_fake_quantize(
            ours[0], own_scale, zero_point.int().reshape(own_scale.shape), spec, factor=0.25
        )
        own.backward(upstream)
        assert torch.equal(own, y)
        assert torch.equal(ours[0].grad, theirs[0].grad)
        assert torch.allclose(ours[1].grad, theirs[1].grad, rtol=1e-5)


def test_the_offset_gets_only_the_gradient_of_clipped_values() -> None:
    x = torch.tensor([-10.0, 0.1, 0.2, 10.0, 20.0], requires_grad=True)
    offset = torch.tensor(-0.5, requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    zero_point = zero_point_of(offset, scale, U4)
    assert zero_point == 5
    y = learned_fake_quantize(x, scale, zero_point, U4, offset=offset)
    y.backward(torch.tensor([1.0, 100.0, 100.0, 2.0, 4.0]))
    assert offset.grad == 7.0
    assert x.grad.tolist() == [0, 100, 100, 0, 0]


def test_fake_quantization_is_that_of_evaluation_and_export() -> None:
    model, graph = calibrated(Recipe(weight=S4, activation=U4, learned="lsq+"))
    quantizer = next(iter(graph.activations().values()))
    x = torch.randn(4, 3, 8, 8)
    train = quantizer(x)
    set_phase(model, Phase.FROZEN)
    assert torch.equal(train, quantizer.eval()(x))
    assert torch.equal(train, fake_quantize(x, quantizer.scale, quantizer.zero_point, U4))
    for _, quantized, layer, norm in graph.layers():
        weight, scale, zero_point = quantized.quantized_weight(layer, norm)
        rounded = quantized.weight(weight)
        spec = quantized.weight.spec
        integers = quantize(weight, scale, zero_point, spec)
        assert torch.allclose(rounded, integers * scale.reshape(-1, 1, 1, 1), atol=1e-7)
        set_phase(model, Phase.TRAIN)
        assert torch.equal(quantized.weight(weight), rounded)
        set_phase(model, Phase.FROZEN)
        # The scale is stored: another weight does not change it.
        assert torch.equal(quantized.weight.scale_and_zero_point(weight * 3)[0], scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_first_weight_scale_loses_less_than_min_max_and_than_lsqs_formula(bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.distributions.Laplace(0, 1).sample((16, 200))
    spec = QuantSpec(bits=bits, signed=True, symmetric=True, channel_axis=0)
    zero_point = torch.zeros(16, dtype=torch.int32)

    def error(scale: torch.Tensor) -> float:
        return (fake_quantize(weight, scale, zero_point, spec) - weight).square().mean().item()

    best, _ = least_squares_scale(weight, spec)
    widest, _ = scale_and_zero_point(weight.amin(1), weight.amax(1), spec)
    formula = 2 * weight.abs().mean(1) / spec.quant_max**0.5
    assert error(best) <= error(widest)
    assert error(best) <= 1.02 * error(formula)
    if bits == 8:
        assert error(formula) > 3 * error(best)


def test_the_scale_stays_positive_and_a_power_of_two_where_asked() -> None:
    raw = torch.tensor([-0.3, 0.0, 1e-45, 0.7], requires_grad=True)
    assert (positive(raw, U4) > 0).all()
    power = QuantSpec(bits=4, power_of_two=True)
    raw = torch.tensor([0.3, 0.7, 3.1, 0.25], requires_grad=True)
    scale = positive(raw, power)
    assert scale.tolist() == [0.25, 0.5, 4.0, 0.25]
    scale.sum().backward()
    assert torch.allclose(raw.grad, scale.detach() / raw.detach())


def test_the_scale_follows_the_range_until_the_phase_quantizes_and_is_learned_then() -> None:
    quantizer = LsqActivationQuantizer(U4, MinMaxObserver(), learn_offset=True)
    for phase in (Phase.CALIBRATE, Phase.OBSERVE):
        quantizer.phase = phase
        assert torch.equal(quantizer(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 2.0]))
        update_scales_([quantizer])
        assert quantizer.scale.item() == pytest.approx(0.2)
        assert quantizer.zero_point == 5
    quantizer.phase = Phase.TRAIN
    quantizer(torch.tensor([-50.0, 50.0]))
    update_scales_([quantizer])
    assert quantizer.scale.item() == pytest.approx(0.2)
    assert quantizer.observer.range_max == 2.0


def test_learning_lowers_the_error_of_a_bad_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1000)
    quantizer = LsqWeightQuantizer(S4, num_channels=4)
    with torch.no_grad():
        quantizer.learned_scale.copy_(torch.tensor([2.0, 0.02, 0.3, 1.0]))
    quantizer.phase = Phase.TRAIN
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.3)
    first = (quantizer(x) - x).square().mean(1).detach()
    for _ in range(400):
        optimizer.zero_grad()
        (quantizer(x) - x).square().sum(1).div(20).sum().backward()
        optimizer.step()
    best, _ = least_squares_scale(x, S4)
    ideal = (fake_quantize(x, best, torch.zeros(4).int(), S4) - x).square().mean(1)
    last = (quantizer(x) - x).square().mean(1)
    assert (last < 1.15 * ideal).all()
    assert first[0] > 3 * last[0]


def test_a_phase_that_does_not_learn_still_gives_every_parameter_a_gradient_of_zero() -> None:
    model, graph = calibrated(Recipe(weight=S4, activation=U4, learned="lsq+"))
    for phase in (Phase.OFF, Phase.OBSERVE, Phase.FROZEN):
        set_phase(model, phase)
        model.zero_grad()
        graph(torch.randn(2, 3, 8, 8)).sum().backward()
        parameters = learned_parameters(model)
        assert len(parameters) == 2 * len(graph.activations()) + 2
        assert all(p.grad is not None and (p.grad == 0).all() for p in parameters.values())


def test_a_scale_may_follow_its_range_before_the_backward_pass() -> None:
    model, graph = calibrated(Recipe(weight=S4, activation=U4, learned="lsq+"))
    set_phase(model, Phase.OBSERVE)
    loss = graph(torch.randn(2, 3, 8, 8)).sum()
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    loss.backward()


def test_float_keys_stay_and_state_loads_into_another_prepared_model() -> None:
    recipe = Recipe(weight=S4, activation=U4, learned="lsq")
    model, graph = calibrated(recipe)
    plain = [k for k in model.state_dict() if not k.startswith(f"{CONTAINER}.")]
    assert plain == list(net().state_dict())
    other = net()
    other_graph = prepare(other, recipe)
    other.load_state_dict(model.state_dict())
    set_phase(other, Phase.FROZEN)
    set_phase(model, Phase.FROZEN)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other_graph(x), graph(x))
    assert all(q.has_range for q in other_graph.activations().values())


@pytest.mark.parametrize(
    ("learned", "training"),
    [
        ("lsq+", True),
        pytest.param("pact", True, marks=pytest.mark.slow),
        pytest.param("lsq+", False, marks=pytest.mark.slow),
    ],
)
def test_it_compiles_as_one_graph_with_the_same_outputs_and_gradients(
    learned: str, training: bool
) -> None:
    model, graph = calibrated(Recipe(weight=S4, activation=U4, learned=learned), train=training)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(graph, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    for phase in (Phase.OBSERVE, Phase.TRAIN, Phase.FROZEN):
        set_phase(model, phase)
        model.load_state_dict(twin.state_dict())
        expected = graph(x)
        gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        model.load_state_dict(twin.state_dict())
        found = compiled(x)
        assert torch.allclose(found, expected, atol=1e-6)
        others = torch.autograd.grad(found.square().sum(), list(model.parameters()))
        for a, b in zip(gradients, others, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learned", ["lsq", "lsq+", "pact"])
def test_under_bfloat16_autocast_scales_are_learned_in_float32(learned: str) -> None:
    model, graph = calibrated(Recipe(learned=learned))
    x = torch.randn(2, 3, 8, 8)
    exact = graph(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = graph(x)
    assert (y - exact).abs().max() < 0.1 * exact.abs().max()
    y.float().sum().backward()
    for parameter in learned_parameters(model).values():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_the_gradient_in_half_precision_is_that_of_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000).half()
    results = []
    for dtype in (torch.float16, torch.float32):
        scale = torch.tensor(0.1, requires_grad=True)
        y = learned_fake_quantize(x.to(dtype), scale, torch.tensor(5).int(), U4)
        y.backward(torch.ones_like(y))
        results.append(scale.grad)
    assert torch.allclose(results[0], results[1], rtol=1e-3)


def test_learned_parameters_get_groups_of_their_own() -> None:
    model, _ = calibrated(Recipe(learned="lsq+"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    count = len(list(model.parameters()))
    moved = regroup_(optimizer, model, lr_factor=0.5)
    assert moved == len(learned_parameters(model))
    weights, scales = optimizer.param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 1e-4)
    assert (scales["lr"], scales["weight_decay"], scales["momentum"]) == (0.05, 0.0, 0.9)
    assert len(weights["params"]) + len(scales["params"]) == count
    assert all(p.dim() > 1 or len(p) for p in weights["params"])

    # One group per parameter, as with mmcv's paramwise settings.
    single = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=0.1)
    regroup_(single, model)
    assert sum(len(g["params"]) for g in single.param_groups) == count
    assert all(g["params"] for g in single.param_groups)

    plain, _ = calibrated(Recipe())
    untouched = torch.optim.SGD(plain.parameters(), lr=0.1)
    assert regroup_(untouched, plain) == 0
    assert len(untouched.param_groups) == 1


def test_frozen_scales_do_not_drift_on_momentum() -> None:
    model, graph = calibrated(Recipe(learned="lsq+"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-2)
    regroup_(optimizer, model)

    def step() -> None:
        optimizer.zero_grad()
        graph(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()

    step()
    set_phase(model, Phase.FROZEN)
    forget_momentum_(optimizer, model)
    before = {n: p.detach().clone() for n, p in learned_parameters(model).items()}
    step()
    step()
    assert all(torch.equal(p, before[n]) for n, p in learned_parameters(model).items())


def test_the_gradient_factor_is_the_papers() -> None:
    assert factor_of(0, 0, torch.zeros(())) == 1.0  # Nothing to share.
    assert factor_of(4, 9, torch.zeros(())) == pytest.approx(1 / 6)
    assert isinstance(factor_of(4, 9, torch.zeros(())), float), "a tensor costs a launch on a GPU"
    assert gradient_factor(64, QuantSpec(bits=8, signed=True)) == pytest.approx((64 * 127) ** -0.5)


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'lsqq' does not exist; did you mean lsq"):
        Recipe(learned="lsqq")


def test_lsq_on_a_symmetric_activation_learns_no_offset() -> None:
    spec = QuantSpec(bits=8, signed=True, symmetric=True)
    quantizer = LsqActivationQuantizer(spec, MinMaxObserver(), learn_offset=True)
    assert isinstance(quantizer, LearnedActivationQuantizer)
    assert quantizer.learned_offset is None


@pytest.mark.parametrize("with_offset", [True, False])
def test_a_factor_in_a_tensor_is_the_factor(with_offset: bool) -> None:
    """With symbolic sizes torch.compile gives the factor as a tensor."""
    found = []
    for factor in (0.3, torch.tensor(0.3)):
        x = torch.linspace(-3, 9, 50, requires_grad=True)
        scale = torch.tensor(0.4, requires_grad=True)
        offset = torch.tensor(-0.8, requires_grad=True) if with_offset else None
        zero_point = torch.tensor(2, dtype=torch.int32)
        y = learned_fake_quantize(x, scale, zero_point, U4, offset=offset, factor=factor)
        y.square().sum().backward()
        found.append([x.grad, scale.grad, *([] if offset is None else [offset.grad])])
    assert all(bool(gradient.any()) for gradient in found[0])
    torch.testing.assert_close(found[1], found[0])

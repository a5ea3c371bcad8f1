"""Tensors recomputed in the backward pass are not saved, and are equal bit for bit."""

from __future__ import annotations

import copy
import functools
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.kernels import native, recompute
from dq.quant.kernels.recompute import Recomputation, make_recomputable, recomputing
from dq.quant.quantizers import layers
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.learned_step import LsqWeightQuantizer
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.trained import kept, prepared


class Mixed(nn.Module):
    """Every kind of layer, two readers of one value, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.left = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.right = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.left(x)) + F.relu(self.right(x))
        x = self.shared(F.relu(self.shared(x)))
        return self.last(self.up(x).mean((2, 3)))


def of_linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(4)]), torch.randn(2, 256)


def of_convolutions_with_norms() -> tuple[nn.Module, Tensor]:
    layers_of = [(nn.Conv2d(64, 64, 3, bias=False), nn.BatchNorm2d(64)) for _ in range(4)]
    return nn.Sequential(*[m for pair in layers_of for m in pair]), torch.randn(1, 64, 10, 10)


def of_transposed() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.ConvTranspose2d(256, 256, 1), nn.BatchNorm2d(256))
    return model, torch.randn(1, 256, 2, 2)


NETS = {made.__name__: made for made in (of_linear, of_convolutions_with_norms, of_transposed)}


def gradients(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the gradients of all parameters and of the images."""
    model.zero_grad()
    images = x.clone().requires_grad_()
    run(images).square().sum().backward()
    assert images.grad is not None
    return [images.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("learned", [None, "lsq", "lsq+"])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_those_of_saved_tensors(
    learned: str | None, kernels: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(2, 3, 11, 12)
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    graph = prepared(model, learned, x)
    if not kernels:
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    again = gradients(graph, model, x)
    model.load_state_dict(before)
    monkeypatch.setattr(layers, "apply_layer", layers._apply)
    all_kept = gradients(graph, model, x)
    assert len(again) == len(all_kept)
    for one, two in zip(again, all_kept, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("learned", [None, "lsq", "pact"])
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.FROZEN])
@pytest.mark.parametrize("net", ["of_linear", "of_convolutions_with_norms", "of_transposed"])
def test_weights_of_torchs_operators_have_the_gradients_of_kept_ones(
    learned: str | None, phase: Phase, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = NETS[net]()
    graph = prepared(model, learned, x, phase)
    monkeypatch.setattr(native, "takes", lambda *tensors: False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    again = gradients(graph, model, x)
    model.load_state_dict(before)
    monkeypatch.setattr(recompute, "LEAST_VALUES", 2**60)
    for one, two in zip(again, gradients(graph, model, x), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("learned", [None, "lsq"])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.FROZEN])
@pytest.mark.parametrize("net", ["of_linear", "of_convolutions_with_norms", "of_transposed"])
def test_a_fake_quantized_weight_is_not_saved(
    learned: str | None,
    kernels: bool,
    phase: Phase,
    net: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = NETS[net]()
    run = prepared(model, learned, x, phase)
    if not kernels:
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = kept(run(x))
    beyond = sum(size for address, size in found.items() if address not in parameters)
    one = next(model.parameters()).numel() * 4
    assert beyond < one, "less than a single weight, of four"


def test_values_with_a_learned_scale_are_saved_once() -> None:
    model = nn.Sequential(*[nn.Conv2d(8, 8, 1, bias=False) for _ in range(6)])
    x = torch.randn(2, 8, 32, 32)
    run, size = prepared(model, "lsq", x), x.numel() * 4
    total = sum(number for number in kept(run(x)).values() if number >= size)
    assert total <= 7 * size  # The images and six results, each before quantization.


def test_backward_may_run_twice_and_each_value_is_computed_once() -> None:
    x, weight = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
    made, calls = weight * 2, []
    given = weight.detach()

    def compute() -> Tensor:
        calls.append(1)
        return given * 2

    make_recomputable(made, compute)
    images = x.clone().requires_grad_()
    with recomputing(made):
        y = F.linear(images, made) + F.linear(images * 2, made)
    first = torch.autograd.grad(y.sum(), [images, weight], retain_graph=True)
    second = torch.autograd.grad(y.sum(), [images, weight])
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(first[0], (made.sum(0) * 3).expand_as(x).detach())
    assert len(calls) == 1


def test_a_tensor_that_is_not_recomputable_is_saved() -> None:
    x = torch.randn(3, requires_grad=True)
    with recomputing(x):
        y = x * x
    y.sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_recomputing_makes_no_autograd_graph() -> None:
    weight = torch.randn(3, requires_grad=True)
    assert not Recomputation(lambda: weight * 2).tensor().requires_grad


# Writes into a fake-quantized tensor, before or after the layer that saves it.
WRITES: dict[str, Callable[[Tensor], object]] = {
    "relu_": lambda y: F.relu_(y),
    "dropout": lambda y: F.dropout(y, 0.5, inplace=True),
    "mul_": lambda y: y.mul_(1.7),
    "item": lambda y: y[:, 0].zero_(),
    "view": lambda y: y.view(-1).clamp_(-0.2, 0.3),
}
PHASES = (Phase.OFF, Phase.OBSERVE, Phase.TRAIN, Phase.FROZEN)


def _quantizers(learned: str | None, x: Tensor, phase: Phase):
    recipe = Recipe(learned=learned)
    activation = recipe.activation_quantizer(recipe.activation)
    layer = nn.Conv2d(4, 4, 1)
    weight = QuantizedLayer(recipe.weight_quantizer(recipe.weight, num_channels=4))
    activation.phase = Phase.CALIBRATE
    activation(x)
    update_scales_([activation])
    if isinstance(weight.weight, LsqWeightQuantizer):
        weight.weight.initialise_(layer.weight.detach())
    for module in (activation, weight.weight):
        module.phase = phase
    return activation, layer, weight


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("learned", [None, "lsq", "lsq+", "pact"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kernels", [True, False])
def test_a_write_into_a_fake_quantized_tensor_is_in_the_gradients(
    write: str, learned: str | None, phase: Phase, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if not kernels:
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    x = torch.randn(2, 4, 5, 5)
    activation, layer, weight = _quantizers(learned, x, phase)
    parameters = [*layer.parameters(), *activation.parameters(), *weight.parameters()]

    def gradients_of(copies: bool) -> list[Tensor]:
        images = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = activation(images * 1.0)
        # In a phase that does not learn, the function for zero gradients returns a view.
        y = y.clone() if copies or y._is_view() or not phase.quantizes else y
        WRITES[write](y)
        out = weight(y, layer)
        return list(torch.autograd.grad(out.square().sum(), [images, *parameters]))

    found = gradients_of(copies=False)
    monkeypatch.setattr(layers, "apply_layer", layers._apply)
    for one, two in zip(found, gradients_of(copies=True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learned", [None, "lsq"])
def test_a_write_after_the_layer_is_right_or_an_error_but_never_wrong(
    learned: str | None,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    activation, layer, weight = _quantizers(learned, x, Phase.TRAIN)
    given = x.clone().requires_grad_()
    weight(activation(given), layer).square().sum().backward()
    wanted = layer.weight.grad.clone()
    layer.weight.grad = None
    kept = activation(given)
    y = weight(kept, layer)
    kept.mul_(3.0)
    if learned is None:  # Saved, with torch's own check.
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.square().sum().backward()
    else:  # Recomputed from the unquantized values, which did not change.
        y.square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, wanted)


def test_a_source_may_not_change_before_the_backward_pass() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    source = weight.detach().clone()
    made = weight * 2
    make_recomputable(made, lambda: source * 2, (source,))
    images = torch.randn(2, 4, requires_grad=True)
    with recomputing(made):
        y = F.linear(images, made)
    source.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_recomputable_tensor_is_saved_and_copied_like_any_other_and_leaves_nothing() -> None:
    source = torch.ones(2, requires_grad=True)
    held = weakref.ref(source)
    made = source * 2
    make_recomputable(made, functools.partial(torch.mul, source.detach(), 2), (source,))
    content = io.BytesIO()
    torch.save(made.detach_(), content)
    content.seek(0)
    assert torch.equal(torch.load(content), made)
    assert torch.equal(copy.deepcopy(made), made)
    assert vars(made) == {}
    del made, source
    gc.collect()
    assert held() is None

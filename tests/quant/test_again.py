"""What the backward pass computes again: kept no more, and the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant import layers, native
from dq.quant.again import Again, keeping_no, offer
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
def test_gradients_are_those_of_kept_tensors(
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


@pytest.mark.parametrize("learned", [None, "lsq"])
def test_a_rounded_weight_is_not_kept(learned: str | None) -> None:
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(4)])
    x = torch.randn(2, 256)
    run = prepared(model, learned, x)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = kept(run(x))
    beyond = sum(size for address, size in found.items() if address not in parameters)
    assert beyond < 256 * 256 * 4, "less than a single weight, of four"


def test_values_with_a_learned_scale_are_kept_once() -> None:
    model = nn.Sequential(*[nn.Conv2d(8, 8, 1, bias=False) for _ in range(6)])
    x = torch.randn(2, 8, 32, 32)
    run, size = prepared(model, "lsq", x), x.numel() * 4
    total = sum(number for number in kept(run(x)).values() if number >= size)
    assert total <= 7 * size  # The images and six results, each before rounding.


def test_the_graph_can_be_gone_through_twice_and_each_value_is_computed_once() -> None:
    x, weight = torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
    made, calls = weight * 2, []
    given = weight.detach()

    def compute() -> Tensor:
        calls.append(1)
        return given * 2

    offer(made, compute)
    images = x.clone().requires_grad_()
    with keeping_no(made):
        y = F.linear(images, made) + F.linear(images * 2, made)
    first = torch.autograd.grad(y.sum(), [images, weight], retain_graph=True)
    second = torch.autograd.grad(y.sum(), [images, weight])
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(first[0], (made.sum(0) * 3).expand_as(x).detach())
    assert len(calls) == 1


def test_a_tensor_that_nobody_offered_is_kept() -> None:
    x = torch.randn(3, requires_grad=True)
    with keeping_no(x):
        y = x * x
    y.sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_computing_again_makes_no_graph() -> None:
    weight = torch.randn(3, requires_grad=True)
    assert not Again(lambda: weight * 2).tensor().requires_grad

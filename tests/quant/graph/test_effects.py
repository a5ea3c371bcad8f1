"""What a forward pass does besides its result, and layers whose weight a hook computes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import dq.quant as dq


class Dropped(nn.Module):
    """A norm that is called for its running statistics alone."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.norm(y)
        self.norm(torch.relu(y))
        z: Tensor = self.last(y)
        return z


NORMS = {
    "batch": nn.BatchNorm2d(4),
    "without statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "frozen": nn.BatchNorm2d(4).eval(),
    "instance": nn.InstanceNorm2d(4, track_running_stats=True),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("phase", [dq.Phase.OFF, dq.Phase.TRAIN])
def test_running_statistics_are_those_of_the_model(name: str, phase: dq.Phase) -> None:
    torch.manual_seed(0)
    net = Dropped(copy.deepcopy(NORMS[name]))
    twin = copy.deepcopy(net)
    x = torch.randn(4, 3, 5, 5)
    model = dq.prepare(net, dq.preset("int16"), x)
    dq.calibrate(model, [x])
    dq.set_phase(model, phase)
    for module in (net, twin):
        module.train()
        module.norm.train(name != "frozen")
    for _ in range(3):
        torch.testing.assert_close(model(x), twin(x), rtol=1e-3, atol=1e-3)
    for key, value in twin.norm.state_dict().items():
        torch.testing.assert_close(net.norm.state_dict()[key], value, rtol=1e-3, atol=1e-3)


class Normed(nn.Module):
    def __init__(self, norm: str, module: nn.Module) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            legacy = getattr(nn.utils, norm)
            self.inside = legacy(module)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.inside(x)))
        return y


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_whose_weight_a_hook_computes_stays_float_and_learns(
    norm: str, layer: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    net = Normed(norm, layer(3, 4, 1)).eval()
    twin = Normed(norm, layer(3, 4, 1)).eval()
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 5, 5)
    model = dq.prepare(net, dq.preset("int16"), x)
    assert "inside" in caplog.text
    assert "parametrizations" in model.graph.left_float["inside"]
    dq.calibrate(model, [x])
    dq.set_phase(model, dq.Phase.TRAIN)
    for run in (model, twin):
        run(x).square().sum().backward()
    for name, parameter in twin.named_parameters():
        found = dict(net.named_parameters())[name].grad
        torch.testing.assert_close(found, parameter.grad, rtol=2e-2, atol=2e-2)
    with torch.no_grad():  # As a step of the optimizer.
        for parameter in (*net.inside.parameters(), *twin.inside.parameters()):
            parameter.mul_(1.1)
        torch.testing.assert_close(model(x), twin(x), rtol=1e-2, atol=1e-2)


class Recent(nn.Module):
    """Parameterless and elementwise, and remembers what it has seen in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean * 0.9 + x.detach().mean() * 0.1
        return torch.relu(x)


@pytest.mark.parametrize("name", [*NORMS, "own"])
def test_preparation_leaves_statistics_modes_and_random_numbers_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    own = Recent() if name == "own" else copy.deepcopy(NORMS[name])
    net = nn.Sequential(nn.Conv2d(3, 4, 1), own, nn.Dropout(), nn.Conv2d(4, 2, 1)).train()
    own.train(name != "frozen")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    numbers = torch.get_rng_state()
    x = torch.ones(2, 3, 5, 5)
    dq.prepare(net, dq.preset("int8"), x)
    assert torch.equal(torch.get_rng_state(), numbers)
    for key, value in before.items():
        assert torch.equal(net.state_dict()[key], value), key
    assert [module.training for module in net[:4]] == [True, name != "frozen", True, True]

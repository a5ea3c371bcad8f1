"""The weights of a network rounded together give what its layers give one by one."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.fused import scales
from dq.quant.graph.fused import weights as weights_together
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.kernels import native, together
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers import learned_step
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.learned_step import positive
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from tests.devices.pretended_gpu import Gpu, OnGpu, pretended_gpu

pytestmark = pytest.mark.cpu


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search learned scales among four: the pretended GPU takes long for each operation."""
    few = functools.partial(learned_step.least_squares_scale, num_candidates=4)
    monkeypatch.setattr(learned_step, "least_squares_scale", few)


class Net(nn.Module):
    """Norms, biases with and without a norm, a head for two levels, a layer that is not reached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.head, self.linear = nn.Conv2d(6, 4, 1), nn.Linear(6, 3)
        self.turned = nn.ConvTranspose2d(6, 4, 2)
        self.unused = nn.Conv2d(6, 2, 1)
        generator = torch.Generator().manual_seed(1)
        for norm in (self.stem_norm, self.wide_norm):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.data = torch.rand(len(tensor), generator=generator) + 0.2

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.wide_norm(self.wide(x)))
        small = self.depthwise(x)
        ends = self.linear(x.mean(dim=(2, 3))), self.turned(x)
        return self.head(x), self.head(small), *ends, self.unused(x)


Change = Callable[[nn.Module], object]


def graph_of(recipe: Recipe, change: Change) -> tuple[QuantizedGraph, Tensor]:
    torch.manual_seed(0)
    net = Net().to("cuda")
    x = torch.randn(2, 3, 12, 12).to("cuda")
    graph = prepare(net, recipe)
    net.eval()
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        graph(x)
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    net.train()
    change(net)
    return graph, x


def step(recipe: Recipe, phase: Phase, change: Change) -> list[Tensor]:
    """Return outputs, gradients, and the outputs after the weights have changed."""
    graph, x = graph_of(recipe, change)
    set_phase(graph.quantizers, phase)
    found = []
    for _ in range(2):
        *outputs, _ = graph(x)
        sum(y.square().sum() for y in outputs).backward()
        named = list(graph.root.named_parameters())
        found += [y.detach() for y in outputs]
        found += [p.grad for _, p in named if p.grad is not None]
        found.append(torch.tensor([p.grad is None for _, p in named], device="cuda"))
        with torch.no_grad():
            for _, p in named:
                if p.grad is not None:
                    p.sub_(0.001 * p.grad)
                    p.grad = None
    return found


def frozen(root: nn.Module) -> None:
    for module in root.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def without_gradients(root: nn.Module) -> None:
    frozen(root)
    root.stem.requires_grad_(False)
    root.stem_norm.requires_grad_(False)


INT8 = replace(preset("int8"), observer="moving_average")
LSQ = replace(INT8, learned="lsq")
AFFINE = replace(INT8.weight, signed=False, symmetric=False, narrow=False)
CASES = {
    "norms of the batch": (INT8, Phase.TRAIN, lambda _: None),
    "frozen norms": (INT8, Phase.FROZEN, frozen),
    "layers that do not train": (INT8, Phase.TRAIN, without_gradients),
    "affine": (replace(INT8, weight=AFFINE), Phase.TRAIN, lambda _: None),
    "powers of two": (replace(preset("int8_power2"), observer="min_max"), Phase.TRAIN, frozen),
    "channels last": (
        INT8,
        Phase.TRAIN,
        lambda root: root.to(memory_format=torch.channels_last),
    ),
    "learned": (LSQ, Phase.TRAIN, lambda _: None),
    "learned, resting": (LSQ, Phase.FROZEN, frozen),
    "one learned scale": (
        replace(LSQ, weight=replace(INT8.weight, channel_axis=None)),
        Phase.TRAIN,
        lambda _: None,
    ),
}


def run(name: str, *, together: bool) -> tuple[list[Tensor], Gpu]:
    if not native.is_there():
        pytest.skip("there are no kernels for a CPU to compute with")
    apart = mock.patch.object(weights_together, "_is_on_gpu", return_value=False)
    with pretended_gpu(kernels=True) as gpu, nullcontext() if together else apart:
        return step(*CASES[name]), gpu


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if "learned" in n else []) for n in CASES],
)
def test_results_and_gradients_are_equal(name: str) -> None:
    found, gpu = run(name, together=True)
    expected, apart = run(name, together=False)
    assert gpu.launches["dq rounded_weights"] > 0
    assert apart.launches["dq rounded_weights"] == 0
    assert apart.launches["dq rounded_weight"] > gpu.launches["dq rounded_weight"]
    assert gpu.reads == apart.reads
    for x, y in zip(found, expected, strict=True):
        assert isinstance(x, OnGpu)
        assert isinstance(y, OnGpu)
        assert x.values.stride() == y.values.stride()
        torch.testing.assert_close(x.values, y.values, rtol=1e-6, atol=1e-6)


def test_a_step_takes_few_launches_for_all_weights() -> None:
    _, gpu = run("norms of the batch", together=True)
    # Two steps: layers with and without a norm, each computed again for the backward pass.
    assert gpu.launches["dq rounded_weights"] == 2 * 2 * 2
    assert gpu.launches["dq weights_gradients"] == 2 * 2
    # The transposed convolution rounds its own weight, with torch's operators.
    assert gpu.launches["dq rounded_weight"] == 0


def test_rounded_weights_are_not_kept_for_the_backward_pass() -> None:
    kept: list[weakref.ref[Tensor]] = []
    compute = together._rounded

    def recorded(*given: Any) -> list[Tensor]:
        found = compute(*given)
        kept.extend(weakref.ref(x.values) for x in found if isinstance(x, OnGpu))
        return found

    with pretended_gpu(kernels=True), mock.patch.object(together, "_rounded", recorded):
        graph, x = graph_of(INT8, lambda _: None)
        set_phase(graph.quantizers, Phase.TRAIN)
        *outputs, _ = graph(x)
        gc.collect()
        assert len(kept) == 6
        assert not any(ref() is not None for ref in kept)
        sum(y.square().sum() for y in outputs).backward()
    assert len(kept) == 12


def test_learned_scales_of_activations_are_computed_together() -> None:
    def steps(*, together: bool) -> tuple[list[Tensor], int]:
        apart = mock.patch.object(scales, "_joins", return_value=False)
        with pretended_gpu(kernels=True) as gpu, nullcontext() if together else apart:
            graph, x = graph_of(LSQ, lambda _: None)
            set_phase(graph.quantizers, Phase.TRAIN)
            crossed = next(iter(graph.activations().values()))
            with torch.no_grad():
                crossed.learned_scale.neg_()
            with gpu.watched() as step:
                *outputs, _ = graph(x)
                sum(y.square().sum() for y in outputs).backward()
            found = [p.grad for _, p in graph.root.named_parameters() if p.grad is not None]
            return found, step.launches["abs"] + step.launches["clamp"]

    (found, few), (expected, many) = steps(together=True), steps(together=False)
    assert few < many
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.values, y.values)


def test_powers_of_two_of_learned_scales_and_other_classes_stay_with_their_layers() -> None:
    recipe = replace(LSQ, weight=replace(INT8.weight, power_of_two=True))
    with pretended_gpu(kernels=True) as gpu:
        step(recipe, Phase.TRAIN, lambda _: None)
    assert gpu.launches["dq rounded_weights"] == 0


def test_gradients_come_in_parts_of_the_size_that_ranks_exchange() -> None:
    few = mock.patch.object(weights_together, "MOST_BYTES", 100)
    with pretended_gpu(kernels=True) as gpu, few:
        step(*CASES["norms of the batch"])
    assert gpu.launches["dq weights_gradients"] > 2 * 2


def test_on_a_cpu_each_layer_rounds_its_own_weight() -> None:
    graph = prepare(Net().train(), INT8)
    set_phase(graph.quantizers, Phase.TRAIN)
    with mock.patch.object(weights_together, "round_together") as never:
        graph(torch.randn(2, 3, 12, 12))[0].sum().backward()
    assert not never.called


def test_scales_of_all_have_the_values_and_gradients_of_each() -> None:
    least = scales.SMALLEST_SCALE
    raw = (0.5, -2.0, 2 * least, -2 * least, least / 2, 0.0)
    own, others = ([torch.tensor(value, requires_grad=True) for value in raw] for _ in range(2))
    together_found = scales._Scales.apply(*own)
    one_by_one = [positive(parameter, QuantSpec()) for parameter in others]
    assert [s.item() for s in together_found] == [s.item() for s in one_by_one]
    for found, parameters in ((together_found, own), (one_by_one, others)):
        sum((k + 1.0) * s for k, s in enumerate(found) if k != 1).backward()
        assert parameters[1].grad is None
    gradients = [[p.grad for p in ps if p.grad is not None] for ps in (own, others)]
    assert [float(g) for g in gradients[0]] == [float(g) for g in gradients[1]]
    assert float(gradients[0][0]) == 1.0


class Repeated(nn.Module):
    """A norm after two layers, a layer for two levels, one with a norm of its own, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared, self.own, self.plain = (nn.Conv2d(3, 3, 1) for _ in range(5))
        self.twice, self.once = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.b(self.twice(self.a(x))))
        x = self.shared(self.shared(x))
        return self.plain(self.once(self.own(x)))


def test_all_weights_are_rounded_first_but_those_of_a_norm_that_is_called_twice() -> None:
    graph = prepare(Repeated().eval(), Recipe())
    uses = list(weights_together._uses(graph.root, graph.graph))
    assert [(use.layer, use.norm) for use in uses] == [
        ("shared", None), ("own", "once"), ("plain", None)
    ]  # fmt: skip
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    weights_together.round_weights_first_(graph.root, copied)
    nodes = [node for node in copied.nodes if node.op != "placeholder"]
    (call,) = [n for n in nodes if getattr(n.target, "__name__", "") == "rounded_weights"]
    # Before everything that computes something.
    assert all(node.op == "get_attr" for node in nodes[: nodes.index(call)])
    assert len(call.args) == 3
    prepared_for = [node for node in nodes if "prepared" in node.kwargs]
    assert [str(node.target) for node in prepared_for] == [
        "quantizers.own+once",
        "quantizers.plain",
    ]
    number = [node.kwargs["prepared"].args[1] for node in prepared_for]
    assert number == [1, 2]
    assert not any(
        str(node.target) == uses[0].quantizer for node in copied.nodes if node.op == "call_module"
    )

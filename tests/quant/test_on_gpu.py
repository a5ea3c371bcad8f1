"""All that a training does with a model, on a GPU that computes on the CPU.

Each path must run there, give what the CPU gives, and not wait for the GPU within a step. The
reads between steps are listed in docs/gpu.md.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import dq.quant as dq
from dq.dist.equality.digest import digest
from dq.quant.analysis.statistics import quantizer_figures
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.engine.graph import exact_network
from dq.quant.kernels import native
from dq.quant.observers.min_max import MinMaxObserver, MovingAverageObserver
from dq.quant.quantizers.factory import initialise_weights_, regroup_
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.presets import preset
from dq.quant.training.distillation import Distill, Distillation
from dq.quant.training.norm_reestimation import reestimate_norms_
from dq.quant.training.oscillation import Oscillation, OscillationTracker, dampening_loss
from dq.quant.training.weight_average import WeightAverage
from dq.sync import merge_ranges_
from tests.devices.pretended_gpu import Gpu, OnGpu, pretended_gpu
from tests.quant.nets import images

pytestmark = pytest.mark.cpu

RECIPES = {
    "moving_average": replace(preset("int8"), observer="moving_average"),
    "min_max": replace(preset("int8_power2"), observer="min_max"),
    "mse": replace(preset("w4a8"), observer="mse"),
    "percentile": replace(preset("int8"), observer="percentile"),
    "entropy": replace(preset("int8"), observer="entropy"),
    "lsq": replace(preset("int8"), learned="lsq", observer="moving_average"),
    "lsq+": replace(preset("w4a4"), learned="lsq+", observer="moving_average"),
    "pact": replace(preset("int8"), learned="pact", observer="moving_average"),
    "affine weights": replace(
        preset("int8"),
        observer="moving_average",
        weight=replace(preset("int8").weight, signed=False, symmetric=False, narrow=False),
    ),
    "one scale a weight": replace(
        preset("int8"),
        observer="moving_average",
        weight=replace(preset("int8").weight, channel_axis=None),
    ),
}


class Net(nn.Module):
    """Three layers, two of them with a norm, a sum and a function that does not clip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found: Tensor = self.head(x + F.relu(self.norm(self.depthwise(x))))
        return found


QUICK = ("moving_average", "affine weights")
# What the kernels have variants of.
WITH_KERNELS = ("moving_average", "lsq", "lsq+", "affine weights", "one scale a weight")


@contextmanager
def gpu_with(*, kernels: bool) -> Iterator[Gpu]:
    if kernels and not native.is_there():
        pytest.skip("there are no kernels for a CPU to compute with")
    with pretended_gpu(kernels=kernels) as found:
        yield found


def few_images(device: str) -> list[Tensor]:
    return [x[:2].to(device) for x in images(num=16)]


def model_of(recipe: dq.Recipe, device: str) -> tuple[dq.QuantizedModel, list[Tensor]]:
    """Return a prepared and calibrated model, and its images."""
    torch.manual_seed(0)
    net = Net().to(device)
    batches = few_images(device)
    model = dq.prepare(net.eval(), recipe, batches[0])
    dq.calibrate(model, batches)
    initialise_weights_(model.graph.layers())
    return model, batches


def on_both(work: Callable[[str], list[Tensor]]) -> None:
    """Do the same on the CPU and on the GPU; results must be equal."""
    expected, found = work("cpu"), work("cuda")
    assert expected
    for x, y in zip(expected, found, strict=True):
        assert isinstance(y, OnGpu), "a result lies on the CPU"
        # The kernels for a CPU sum gradients of factors and scales in another order.
        torch.testing.assert_close(y.values, x, rtol=1e-5, atol=1e-6)


def state_of(model: torch.nn.Module) -> list[Tensor]:
    return [value for _, value in sorted(model.state_dict().items())]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        pytest.param(name, kernels, marks=[] if name in QUICK else pytest.mark.slow)
        for kernels, names in ((False, RECIPES), (True, WITH_KERNELS))
        for name in names
    ],
)
def test_a_step_reads_nothing(name: str, kernels: bool) -> None:
    reads: list[str] = []

    def train(device: str) -> list[Tensor]:
        model, batches = model_of(RECIPES[name], device)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        regroup_(optimizer, model)
        for phase in (Phase.OBSERVE, Phase.TRAIN, Phase.FROZEN):
            dq.set_phase(model, phase)
            # The first FROZEN forward pass asks once whether there are ranges.
            model(batches[1])
            with gpu.watched() as step:
                model(batches[0]).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                merge_ranges_(list(model.graph.activations().values()))
            reads.extend(step.reads)
        return state_of(model)

    with gpu_with(kernels=kernels) as gpu:
        on_both(train)
    assert reads == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "kernels"), [("moving_average", True), ("moving_average", False), ("pact", False)]
)
def test_a_step_under_autocast(name: str, kernels: bool, dtype: torch.dtype) -> None:
    with gpu_with(kernels=kernels) as gpu:
        model, batches = model_of(RECIPES[name], "cuda")
        model.train()
        dq.set_phase(model, Phase.TRAIN)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
        with gpu.watched() as step:
            with torch.autocast("cuda", dtype=dtype):
                loss = model(batches[0]).float().square().mean()
            scaler.scale(loss).backward()
            merge_ranges_(list(model.graph.activations().values()))
        assert step.reads == []
        # Weights are float32 under autocast too.
        assert bool(gpu.launches["dq rounded_weights"]) == kernels
        # The scaler reads whether a gradient is infinite, as in a float training.
        scaler.step(optimizer)
        scaler.update()
        assert all(isinstance(x, OnGpu) and bool(x.isfinite().all()) for x in state_of(model))


def test_refinements_of_a_training_read_nothing_in_a_step() -> None:
    reads: list[str] = []

    def train(device: str) -> list[Tensor]:
        model, batches = model_of(RECIPES["moving_average"], device)
        graph = model.graph
        distillation = Distillation(graph, Distill(features=("stem*",)))
        average = WeightAverage(graph.root, 0.1)
        tracker = OscillationTracker(graph, Oscillation(momentum=0.5, freeze_above=0.2))
        dq.set_phase(model, Phase.TRAIN)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for x in batches * 2:
            with gpu.watched() as step:
                outputs = distillation(x)
                loss = outputs.square().mean() + sum(distillation.losses().values())
                (loss + 0.1 * dampening_loss(graph)).backward()
                optimizer.step()
                optimizer.zero_grad()
                dq.update_ranges(model)
                tracker.update_()
                average.update_()
            reads.extend(step.reads)
        assert 0.0 <= tracker.share_oscillating() <= 1.0
        with average.in_model():
            averaged = [x.clone() for x in state_of(model)]
        tracker.load_state_dict(tracker.state_dict())
        distillation.load_state_dict(distillation.state_dict())
        return averaged + state_of(model)

    with gpu_with(kernels=False) as gpu:
        on_both(train)
    assert reads == []


@pytest.mark.parametrize("kind", [MovingAverageObserver, MinMaxObserver])
def test_updating_all_ranges_takes_the_launches_of_updating_one(
    kind: type[MinMaxObserver],
) -> None:
    found = []
    for number in (1, 50):
        with pretended_gpu() as gpu:
            quantizers = [ActivationQuantizer(dq.QuantSpec(), kind()) for _ in range(number)]
            for quantizer in quantizers:
                quantizer.to("cuda").phase = Phase.TRAIN
                quantizer(torch.ones(3, device="cuda"))
            with gpu.watched() as update:
                update_scales_(quantizers)
            assert update.reads == []
            found.append(update.launches.total())
    assert found[0] == found[1] <= 70


REPAIRS = {
    "equalize": dq.Repair(steps=("equalize",)),
    "channel_scales": dq.Repair(steps=("channel_scales",)),
    "bias": dq.Repair(steps=("bias",)),
    "adaround": dq.Repair(steps=("adaround",), rounding_steps=3),
    "reconstruct": dq.Repair(steps=("reconstruct",), reconstruction_steps=3),
    "mixed": dq.Repair(mixed=dq.Mixed(max_raised=2, images=4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_repairs(name: str) -> None:
    def repair(device: str) -> list[Tensor]:
        torch.manual_seed(0)
        net = Net().to(device)
        batches = few_images(device)
        recipe = replace(RECIPES["mse"], free_clips=name == "equalize")
        model = dq.prepare(net.eval(), recipe, batches[0])
        dq.calibrate(model, batches, repair=REPAIRS[name])
        with torch.no_grad():
            return [*state_of(model), model(batches[0])]

    with pretended_gpu():
        on_both(repair)


def graph_and_images(device: str) -> tuple[QuantizedGraph, list[Tensor]]:
    model, batches = model_of(RECIPES["moving_average"], device)
    return model.graph, batches


def test_sensitivities_statistics_and_norms() -> None:
    def analyse(device: str) -> list[Tensor]:
        graph, batches = graph_and_images(device)
        found = [entry.sqnr for entry in dq.sensitivities(graph, batches)]
        figures, _ = quantizer_figures(graph, batches, graph)
        assert len(figures) == len(graph.sites)
        assert reestimate_norms_(graph, batches) == len(batches)
        digest(sorted(graph.quantizers.state_dict().items()))
        return [torch.tensor(found, device=device), *state_of(graph.root)]

    with pretended_gpu():
        on_both(analyse)


def test_evaluation_in_float_frozen_and_exactly() -> None:
    def evaluate(device: str) -> list[Tensor]:
        graph, batches = graph_and_images(device)
        with torch.no_grad():
            return [graph(batches[0]), exact_network(graph)(batches[0])]

    with pretended_gpu():
        on_both(evaluate)


@pytest.mark.slow
def test_a_checkpoint_and_back() -> None:
    with pretended_gpu():
        model, batches = model_of(RECIPES["lsq"], "cuda")
        file = io.BytesIO()
        torch.save({name: value.cpu() for name, value in model.state_dict().items()}, file)
        with torch.no_grad():
            expected = model(batches[0])
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert not any(isinstance(value, OnGpu) for value in loaded.values())
        other, _ = model_of(RECIPES["lsq"], "cuda")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        other.load_state_dict(loaded)
        with torch.no_grad():
            assert torch.equal(other(batches[0]), expected)
    # On a CPU the same checkpoint gives the same numbers.
    here, batches = model_of(RECIPES["lsq"], "cpu")
    here.load_state_dict(loaded)
    with torch.no_grad():
        assert torch.equal(here(batches[0]), expected.values)


# What preparation reads: whether the graph computes what the model computes.
PREPARATION = {"graph/comparison.py:_alike"}
# What calibration, a change of phase and an evaluation read, between steps; see docs/gpu.md.
BETWEEN_STEPS = {
    *PREPARATION,
    "observers/range_search.py:search",
    "observers/range_search.py:best",
    "ptq/weight_clipping.py:clip_weights_",
    "quantizers/fake_quantize.py:has_range",
    "quantizers/fake_quantize.py:is_uninitialised",
    "integer/bias_overflow.py:fit_biases_",
    "integer/engine/graph.py:_is_redundant",
    "integer/engine/layer_calls.py:has_integer_kernel",
    "integer/engine/layers.py:_exact_dtype",
}


def test_reads_between_steps_are_those_of_the_list() -> None:
    with pretended_gpu() as gpu:
        for name in ("moving_average", "mse", "entropy"):
            net = Net().to("cuda")
            batches = few_images("cuda")
            with gpu.watched() as preparation:
                model = dq.prepare(net.eval(), RECIPES[name], batches[0])
            assert _files(preparation.reads) == PREPARATION
            dq.calibrate(model, batches)
            dq.set_phase(model, Phase.TRAIN)
            dq.set_phase(model, Phase.FROZEN)
            model(batches[0])
            with gpu.watched() as evaluation:
                model(batches[0])
            assert evaluation.reads == []
        exact_network(model.graph)
    found = _files(gpu.reads)
    assert "quantizers/fake_quantize.py:has_range" in found
    assert found <= BETWEEN_STEPS


def _files(reads: list[str]) -> set[str]:
    return {read.removeprefix("dq/quant/") for read in reads}


def test_a_tensor_of_the_cpu_is_refused_and_a_read_is_found() -> None:
    with pretended_gpu() as gpu:
        x = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert gpu.reads == []
        for read in (lambda: float(x.sum()), lambda: bool((x > 0).all()), x.cpu, x.tolist,
                     lambda: x[x > 0], x.nonzero, lambda: torch.equal(x, x)):  # fmt: skip
            with gpu.watched() as watched:
                read()
            assert len(watched.reads) >= 1
        model, batches = model_of(RECIPES["moving_average"], "cuda")
        model.graph.root.head.weight = nn.Parameter(torch.ones(4, 8, 1, 1))
        with pytest.raises(RuntimeError, match="same device"):
            model(batches[0])

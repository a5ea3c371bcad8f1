import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from dq.quant.graph.prepare import prepare
from dq.quant.kernels import native
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.trained import prepared

# Each compilation takes one to two seconds.
FAST = [(True, None), (False, "lsq+")]
OTHERS = [(True, "lsq+"), (True, "pact"), (False, None), (False, "pact")]


@pytest.mark.parametrize(
    ("native_kernels", "learned"),
    [*FAST, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)],
)
@pytest.mark.parametrize("phase", [Phase.TRAIN, Phase.FROZEN])
def test_gradients_are_those_of_the_statistics_before_the_step(
    phase: Phase, learned: str | None, native_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile might recompute the fold factor after the norm has updated its statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    # A large momentum, so that the statistics before and after the step differ much.
    model[1].momentum = 0.9
    if not native_kernels:
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    graph = prepare(model, Recipe(learned=learned))
    set_phase(model, Phase.CALIBRATE)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        graph(x)
    update_scales_(list(graph.activations().values()))
    set_phase(model, phase)
    before = copy.deepcopy(model.state_dict())
    torch._dynamo.reset()
    # The partitioner of inductor, without its code generation.
    compiled = torch.compile(graph, backend="aot_eager_decomp_partition", fullgraph=True)
    gradients, records = [], []
    for run in (graph, compiled):
        model.load_state_dict(before)
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        records.append([q.observer.batch_max.clone() for q in graph.activations().values()])
        for quantizer in graph.activations().values():
            quantizer.observer.batch_max.fill_(-torch.inf)
    for eager, other in zip(*gradients, strict=True):
        assert torch.allclose(eager, other, rtol=1e-4, atol=1e-4)
    for eager, other in zip(*records, strict=True):
        assert torch.allclose(eager, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("native_kernels", "learned"), [(True, "lsq+"), (False, None), (False, "lsq"), (False, "pact")]
)
def test_sizes_stay_symbolic(
    learned: str | None, native_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native_kernels:
        monkeypatch.setattr(native, "takes", lambda *tensors: False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = prepared(model, learned, torch.randn(2, 3, 8, 8))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(graph, backend=counter, dynamic=True, fullgraph=True)
    counts = []
    for size in (8, 12, 17):
        x = torch.randn(2, 3, size, size + 3)
        results = []
        for run in (graph, compiled):
            model.zero_grad()
            run(x).square().sum().backward()
            results.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(eager, other, rtol=1e-3, atol=1e-3)
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1], counts

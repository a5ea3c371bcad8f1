"""The native kernels give the results of torch's operators that they replace."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.kernels import native
from dq.quant.kernels.rounding import (
    NO_CLIP,
    fake_quantize_activation,
    fake_quantize_learned,
    fake_quantize_weight,
)
from dq.quant.numerics.affine import fake_quantize, range_over, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.batch_norm_fold import unfold
from dq.quant.quantizers.learned_step import learned_fake_quantize
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from tests.quant.specs import specs
from tests.quant.trained import kept, prepared

EXAMPLES = settings(max_examples=80, deadline=None)
CLIPS = {NO_CLIP: lambda x: x, (0.0, torch.inf): F.relu, (0.0, 6.0): F.relu6}
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _there() -> None:
    assert native.library() is not None, "the machine that runs the tests has a compiler"


def values(seed: int, shape: tuple[int, ...], odd: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 10.0 ** (seed % 5 - 2)
    if odd and x.numel() > 8:
        x.view(-1)[:8] = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 6.0, 1e30, -1e-42])
    return x


@EXAMPLES
@given(
    specs(),
    st.sampled_from([(), (1,), (7,), (40,), (2, 3, 5, 7), (3, 70_000)]),
    st.sampled_from(list(CLIPS)),
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_an_activation_is_clipped_recorded_and_quantized_like_torch(
    spec: QuantSpec,
    shape: tuple[int, ...],
    clip: tuple[float, float],
    seed: int,
    odd: bool,
    in_place: bool,
    threads: int,
) -> None:
    x = values(seed, shape, odd)
    scale, zero_point = scale_and_zero_point(*range_over(x.nan_to_num(1, 9, -9), None), spec)
    gradient = values(seed + 1, shape, odd=False)
    wanted_in = x.clone().requires_grad_()
    active = CLIPS[clip](wanted_in)
    wanted = fake_quantize(active, scale, zero_point, spec)
    wanted.backward(gradient)
    got_in = x.clone().requires_grad_()
    record = (torch.tensor(INF), torch.tensor(-INF))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = fake_quantize_activation(
            got_in * 1.0,
            scale,
            zero_point,
            spec,
            clip=clip,
            record=record,
            in_place=in_place,
        )
        got.backward(gradient)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, wanted)
    # Both kinds of zero are zero; torch multiplies the gradient by the mask.
    assert torch.equal(got_in.grad, wanted_in.grad)
    low, high = range_over(active.detach(), None)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        assert (float(record[0]), float(record[1])) == (float(low), float(high))
    else:
        assert (float(record[0]), float(record[1])) == (INF, -INF)


@pytest.mark.parametrize("clip", CLIPS)
def test_without_quantization_the_tensor_is_only_clipped(clip: tuple[float, float]) -> None:
    x = values(3, (2, 3, 8, 8), odd=False)
    record = (torch.tensor(-0.25), torch.tensor(0.25))
    leaf = x.clone().requires_grad_()
    got = fake_quantize_activation(leaf, None, None, QuantSpec(), clip=clip, record=record)
    wanted_leaf = x.clone().requires_grad_()
    wanted = CLIPS[clip](wanted_leaf)
    got.sum().backward()
    wanted.sum().backward()
    assert torch.equal(got, wanted)
    assert torch.equal(leaf.grad, wanted_leaf.grad)
    # Earlier records of the same step are kept.
    assert float(record[0]) == min(-0.25, float(wanted.detach().min()))
    assert float(record[1]) == max(0.25, float(wanted.detach().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("other", [torch.contiguous_format, torch.channels_last])
def test_memory_layouts_of_value_and_gradient_may_differ(
    layout: torch.memory_format, other: torch.memory_format
) -> None:
    spec = QuantSpec(bits=4)
    x = values(2, (2, 3, 4, 5), odd=False).contiguous(memory_format=layout).requires_grad_()
    gradient = values(5, (2, 3, 4, 5), odd=False).contiguous(memory_format=other)
    scale, zero_point = torch.tensor(0.5), torch.tensor(3, dtype=torch.int32)
    got = fake_quantize_activation(x, scale, zero_point, spec)
    assert got.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(got, x, gradient)
    (wanted,) = torch.autograd.grad(fake_quantize(x, scale, zero_point, spec), x, gradient)
    assert torch.equal(grad, wanted)
    (expanded,) = torch.autograd.grad(fake_quantize_activation(x, scale, zero_point, spec).sum(), x)
    (same,) = torch.autograd.grad(fake_quantize(x, scale, zero_point, spec).sum(), x)
    assert torch.equal(expanded, same)


@EXAMPLES
@given(
    specs(),
    st.sampled_from([(9,), (2, 3, 5, 7), (3, 70_000)]),
    st.sampled_from(list(CLIPS)),
    st.integers(0, 1000),
    st.booleans(),
)
def test_learned_fake_quantization_has_the_gradients_of_the_composition(
    spec: QuantSpec,
    shape: tuple[int, ...],
    clip: tuple[float, float],
    seed: int,
    learns_offset: bool,
) -> None:
    x, gradient = values(seed, shape, odd=False), values(seed + 1, shape, odd=False)
    scale, zero_point = scale_and_zero_point(*range_over(0.7 * x, None), spec)
    results = []
    for native_one in (False, True):
        leaf, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
        offset = torch.zeros(()).requires_grad_() if learns_offset else None
        if native_one:
            y = fake_quantize_learned(leaf, s, offset, zero_point, spec, clip=clip, factor=0.1)
        else:
            y = learned_fake_quantize(
                CLIPS[clip](leaf).double(), s, zero_point, spec, offset=offset, factor=0.1
            ).float()
        y.backward(gradient)
        results.append((y.detach(), leaf.grad, s.grad, None if offset is None else offset.grad))
    (y, dx, ds, do), (got, got_dx, got_ds, got_do) = results
    limit = float(gradient.abs().max()) * x.numel() * spec.quant_max * 1e-6
    assert torch.equal(got, fake_quantize(CLIPS[clip](x), scale, zero_point, spec))
    assert torch.equal(got_dx, dx)
    torch.testing.assert_close(got_ds, ds, rtol=1e-5, atol=limit)
    if do is not None:
        torch.testing.assert_close(got_do, do, rtol=1e-5, atol=limit)


@EXAMPLES
@given(
    st.data(),
    st.sampled_from([(4, 3, 3, 3), (6, 1, 3, 3), (5, 33), (1, 40_000), (3, 1, 1, 1)]),
    st.sampled_from([None, 0]),
    st.sampled_from(["none", "fold", "unfold"]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_a_weight_is_folded_quantized_and_unfolded_like_torch(
    data: st.DataObject,
    shape: tuple[int, ...],
    axis: int | None,
    kind: str,
    given_scale: bool,
    seed: int,
) -> None:
    spec = data.draw(specs(channel_axis=axis))
    weight, gradient = values(seed, shape, odd=False), values(seed + 1, shape, odd=False)
    factor = values(seed + 2, (shape[0],), odd=False)
    if data.draw(st.booleans()):
        factor[0] = 0.0  # A dead channel.
    if data.draw(st.booleans()):
        weight.view(-1)[0] = data.draw(st.sampled_from([NAN, INF, 1e30, 0.0]))
    spread = factor.reshape(-1, *[1] * (len(shape) - 1))
    folded = weight if kind == "none" else weight * spread
    own = scale_and_zero_point(*range_over(folded, axis), spec)
    results = []
    for native_one in (False, True):
        w, f = weight.clone().requires_grad_(), factor.clone().requires_grad_()
        s = (own[0] * 0.6).requires_grad_()
        product = w if kind == "none" else w * f.reshape(spread.shape)
        if native_one:
            y = fake_quantize_weight(
                w,
                None if kind == "none" else f,
                spec,
                scale=s if given_scale else None,
                zero_point=own[1] if given_scale else None,
                unfolds=kind == "unfold",
                scale_factor=0.5,
            )
        else:
            if given_scale:
                rounded = learned_fake_quantize(product, s, own[1], spec, factor=0.5)
            else:
                rounded = fake_quantize(product, *own, spec)
            y = unfold(rounded, w, f.reshape(spread.shape)) if kind == "unfold" else rounded
        y.backward(gradient)
        results.append((y.detach(), w.grad, f.grad, s.grad))
    (y, dw, df, ds), (got, got_dw, got_df, got_ds) = results
    assert torch.equal(got.nan_to_num(7e7), y.nan_to_num(7e7))
    if not bool(y.isfinite().all() & weight.isfinite().all()):
        return  # The gradients of a NaN weight do not matter.
    torch.testing.assert_close(got_dw, dw, rtol=1e-5, atol=0)
    large = float(gradient.abs().max()) * max(float(weight.abs().max()), 1.0)
    if kind != "none":
        alive = [abs(f) for f in factor.tolist() if abs(f) > 1e-12]
        divisor = min(alive, default=1.0) if kind == "unfold" else 1.0
        limit = large * weight[0].numel() * 1e-6 / min(divisor, 1.0)
        torch.testing.assert_close(got_df, df, rtol=1e-4, atol=limit)
        if given_scale:
            limit *= spec.quant_max
            torch.testing.assert_close(got_ds, ds, rtol=1e-4, atol=limit)
    elif given_scale:
        limit = large * weight.numel() * spec.quant_max * 1e-6
        torch.testing.assert_close(got_ds, ds, rtol=1e-4, atol=limit)


class Net(nn.Module):
    """Each kind of place that the graph fuses: ReLU, ReLU6, sums, a tensor with two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.right = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.last = nn.Conv2d(16, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = self.left(x) + self.right(x)
        return self.last(torch.cat([self.relu(both), both], 1))


@pytest.mark.parametrize("learned", [None, "lsq", "lsq+", "pact"])
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("frozen_norms", [False, True])
def test_a_whole_training_step_is_that_of_torch(
    learned: str | None, phase: Phase, frozen_norms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Net()
    x = torch.randn(4, 3, 9, 9)
    graph = prepared(model, learned, x, phase)
    if frozen_norms:
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.eval()
    before = copy.deepcopy(model.state_dict())
    results = []
    for switch in (True, False):
        monkeypatch.setattr(native, "takes", native.takes if switch else lambda *tensors: False)
        model.load_state_dict(before)
        model.zero_grad()
        images = x.clone().requires_grad_()
        y = graph(images)
        y.square().sum().backward()
        records = [q.observer.batch_min.clone() for q in graph.activations().values()]
        records += [q.observer.batch_max.clone() for q in graph.activations().values()]
        for quantizer in graph.activations().values():
            quantizer.observer.batch_min.fill_(INF)
            quantizer.observer.batch_max.fill_(-INF)
        gradients = [images.grad, *(p.grad for p in model.parameters())]
        results.append((y.detach(), records, gradients, copy.deepcopy(model.state_dict())))
    (y, records, gradients, state), (other_y, other_records, other_gradients, other) = results
    assert torch.equal(y, other_y)
    for one, two in zip(records, other_records, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(gradients, other_gradients, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=2e-4, atol=2e-4)
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


def test_a_hook_sees_the_values_of_the_unfused_graph() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    graph = prepare(model, Recipe())
    seen: list[Tensor] = []
    name = next(n for n in graph.activations() if n.startswith("stem/2"))
    quantizer = graph.quantizers[name]
    handle = quantizer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        graph(torch.randn(1, 3, 9, 9))
        handle.remove()
        graph(torch.randn(1, 3, 9, 9))
    assert len(seen) == 1
    assert float(seen[0].min()) >= 0  # After ReLU6, not before it.


def test_the_fused_graph_saves_one_tensor_and_one_mask_per_layer() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers)
    x = torch.randn(2, 8, 32, 32)
    size = x.numel() * 4

    def size_of(result: Tensor) -> int:
        return sum(n for n in kept(result).values() if n >= size // 4)

    plain = size_of(model(x))
    graph = prepare(model, Recipe())
    set_phase(model, Phase.TRAIN)
    assert size_of(graph(x)) <= plain + 5 * size // 4 + size  # One mask each; the quantized input.


@pytest.mark.slow
def test_without_a_compiler_results_are_the_same_with_a_warning(tmp_path) -> None:
    code = (
        "import logging, torch; logging.basicConfig()\n"
        "from dq.quant.kernels import native\n"
        "print(native.takes(torch.zeros(3)))"
    )
    environment = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
    assert "no native kernels" in done.stderr
    assert "g++ is not on PATH" in done.stderr

"""SyncBatchNorm: ranks together compute what one process computes on the whole batch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.dist.exchange import collectives
from dq.dist.exchange.collectives import all_gather_objects, all_reduce_, collective_count
from dq.dist.norm.sync_batch_norm import (
    SyncBatchNorm,
    convert_sync_batch_norm,
    revert_sync_batch_norm,
)
from tests.processes.ranks import run_ranks

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "double": {"dtype": torch.float64},
    "uneven": {"sizes": (1, 4, 2), "dtype": torch.float64},
    "one rank empty": {"sizes": (3, 0, 2), "dtype": torch.float64},
    "two ranks empty": {"sizes": (0, 0, 5)},
    "one sample each": {"sizes": (1, 1, 1), "shape": (), "layer": nn.BatchNorm1d},
    "sequence": {"shape": (7,), "layer": nn.BatchNorm1d},
    "volume": {"shape": (3, 2, 4), "layer": nn.BatchNorm3d, "dtype": torch.float64},
    "no affine": {"affine": False, "dtype": torch.float64},
    "cumulative": {"momentum": None, "dtype": torch.float64},
    "no running statistics": {"track_running_stats": False},
    "channels last": {"memory_format": torch.channels_last},
    "torch's own": {"layer": nn.SyncBatchNorm},
    "half": {"dtype": torch.bfloat16, "layer_dtype": torch.float32},
    "far from zero": {"offset": 1e4, "dtype": torch.float64, "tolerance": 1e-9},
}


def compare(
    sizes: tuple[int, ...] = (2, 2, 2),
    shape: tuple[int, ...] = (3, 5),
    dtype: torch.dtype = torch.float32,
    layer: type[nn.Module] = nn.BatchNorm2d,
    layer_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    offset: float = 0.0,
    tolerance: float | None = None,
    **settings: Any,
) -> list[str]:
    """Name the differences, on any rank, between three ranks and one process; empty if none."""
    generator = torch.Generator().manual_seed(5)
    rank, channels = collectives.rank(), 4
    whole = torch.randn(2, sum(sizes), channels, *shape, generator=generator, dtype=torch.float64)
    whole = (whole * 3 + offset).to(dtype)
    target = torch.randn(whole.shape, generator=generator, dtype=torch.float64).to(dtype)
    reference_class = nn.BatchNorm2d if layer is nn.SyncBatchNorm else layer
    settings |= {"dtype": layer_dtype or dtype}
    reference: Any = reference_class(channels, **settings)
    synced: Any = layer(channels, **settings)
    if reference.affine:
        nn.init.normal_(reference.weight, generator=generator)
        nn.init.normal_(reference.bias, generator=generator)
    synced.load_state_dict(reference.state_dict())
    synced = convert_sync_batch_norm(synced)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    wrong: list[str] = []
    bound = tolerance or TOLERANCE[dtype]

    def expect(name: str, got: Tensor | None, wanted: Tensor | None) -> None:
        if got is None or wanted is None:
            equal = got is wanted
        else:
            error = (got.double() - wanted.double()).abs().max() if got.numel() else 0.0
            scale = wanted.double().abs().max().clamp(min=1.0) if wanted.numel() else 1.0
            equal = got.dtype == wanted.dtype and bool(error <= bound * scale)
        if not equal:
            wrong.append(f"rank {rank}: {name}")

    for step in range(2):
        full = whole[step].clone().requires_grad_()
        part = whole[step, own].clone()
        if part.dim() == 4:
            part = part.contiguous(memory_format=memory_format)
        part.requires_grad_()
        output = reference(full)
        (output * target[step]).sum().backward()
        before = collective_count()
        part_output = synced(part)
        (part_output * target[step, own]).sum().backward()
        if collective_count() - before != 2:
            wrong.append(f"{collective_count() - before} collectives")
        expect("output", part_output, output[own])
        expect("gradient of the input", part.grad, full.grad[own])
        expect("running mean", synced.running_mean, reference.running_mean)
        expect("running variance", synced.running_var, reference.running_var)
        expect("batches", synced.num_batches_tracked, reference.num_batches_tracked)
    for name in ("weight", "bias") if reference.affine else ():
        gradient = getattr(synced, name).grad.clone()
        expect(f"gradient of {name}", all_reduce_(gradient), getattr(reference, name).grad)
    if reference.track_running_stats:
        expect("evaluation", synced.eval()(whole[0, own]), reference.eval()(whole[0])[own])
    return [line for lines in all_gather_objects(wrong) for line in lines]


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"momentum": None}, [1.0, 1 / 2, 1 / 3]),
        ({"momentum": 0.2}, [0.2, 0.2, 0.2]),
        ({"momentum": None, "track_running_stats": False}, [0.0, 0.0, 0.0]),
    ],
)
def test_a_batch_has_torchs_weight_in_torchs_own_kernels(
    settings: dict[str, Any], weights: list[float]
) -> None:
    """They run on a GPU alone, where the layer only says how much a batch counts."""
    layer = SyncBatchNorm(2, **settings)
    assert [layer._count_batch() for _ in weights] == weights


def compare_all() -> dict[str, list[str]]:
    return {name: compare(**case) for name, case in CASES.items()}


def test_three_ranks_equal_one_process_with_the_whole_batch() -> None:
    for got in run_ranks(compare_all, 3):
        assert got == {name: [] for name in CASES}


def lone_sample() -> str:
    samples = 1 if collectives.rank() == 0 else 0
    try:
        SyncBatchNorm(2)(torch.zeros(samples, 2))
    except ValueError as error:
        return str(error)
    return "accepted"


def test_one_sample_over_all_ranks_is_refused_on_every_rank() -> None:
    for got in run_ranks(lone_sample, 2):
        assert "more than one sample of a channel over all ranks" in got


def evaluate_apart() -> tuple[int, list[float]]:
    frozen = SyncBatchNorm(1).eval()
    if collectives.rank() == 0:
        frozen(torch.zeros(1, 1, 2, 2))  # Only this rank: nobody waits.
    subgroups = [torch.distributed.new_group([0]), torch.distributed.new_group([1])]
    own = convert_sync_batch_norm(nn.BatchNorm2d(1), subgroups[collectives.rank()])
    own(torch.full((1, 1, 2, 2), float(collectives.rank())))
    return collective_count(), own.running_mean.tolist()


def test_evaluation_and_a_group_of_one_issue_no_collective() -> None:
    (count_0, mean_0), (count_1, mean_1) = run_ranks(evaluate_apart, 2)
    assert count_0 == count_1 == 0
    assert mean_0 == [0.0]
    assert mean_1 == pytest.approx([0.1])


class OwnForward(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return input


class Renamed(nn.BatchNorm2d):
    pass


def build() -> nn.Sequential:
    shared = nn.BatchNorm2d(3)
    return nn.Sequential(
        shared,
        nn.Sequential(nn.BatchNorm1d(3, affine=False), shared),
        nn.BatchNorm3d(3, momentum=None).eval(),
        nn.SyncBatchNorm(3),
        Renamed(3, track_running_stats=False),
        OwnForward(3),
        nn.GroupNorm(1, 3),
    )


def test_convert_and_revert_keep_parameters_buffers_sharing_mode_and_exact_class() -> None:
    model = build()
    layers = list(model.modules())
    classes = [type(layer) for layer in layers]
    modes = [layer.training for layer in layers]
    tensors = dict(model.state_dict(keep_vars=True))
    attributes = [set(vars(layer)) for layer in layers]

    assert convert_sync_batch_norm(model) is model
    norms = (model[0], model[1][0], model[2], model[3], model[4])
    assert all(type(layer) is SyncBatchNorm for layer in norms)
    assert type(model[5]) is OwnForward
    assert model[1][1] is model[0]
    assert [layer.training for layer in model.modules()] == modes
    assert all(value is tensors[name] for name, value in model.state_dict(keep_vars=True).items())
    assert convert_sync_batch_norm(model) is model
    twin = revert_sync_batch_norm(copy.deepcopy(model))

    assert revert_sync_batch_norm(model) is model
    assert [type(layer) for layer in model.modules()] == classes
    assert [type(layer) for layer in twin.modules()] == classes
    assert [set(vars(layer)) for layer in model.modules()] == attributes
    assert list(model.modules()) == layers
    assert all(value is tensors[name] for name, value in model.state_dict(keep_vars=True).items())


def test_a_bare_layer_is_converted_and_an_optimizer_still_trains_it() -> None:
    layer = nn.BatchNorm1d(2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    convert_sync_batch_norm(layer)
    layer(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).sum().backward()
    optimizer.step()
    assert layer.bias.tolist() == [-2.0, -2.0]
    assert type(revert_sync_batch_norm(layer)) is nn.BatchNorm1d


def test_a_lazy_layer_and_a_flat_input_are_refused() -> None:
    with pytest.raises(ValueError, match="run one batch, then convert"):
        convert_sync_batch_norm(nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match=r"needs \(N, C, \*\), got \(3,\)"):
        SyncBatchNorm(3)(torch.zeros(3))


def test_a_layer_built_as_synchronized_reverts_to_batch_norm_2d() -> None:
    assert type(revert_sync_batch_norm(SyncBatchNorm(3))) is nn.BatchNorm2d


def compile_whole() -> list[str]:
    """Train a convolution and a synchronized norm for two steps, compiled and not compiled."""
    torch.manual_seed(7)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    convert_sync_batch_norm(plain)
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    generator = torch.Generator().manual_seed(collectives.rank())
    wrong = []
    for step in range(2):
        x = torch.randn(2 + collectives.rank(), 3, 6, 6, generator=generator)
        for network in (plain, compiled):
            before = collective_count()
            network(x).square().sum().backward()
            if collective_count() - before != 4:
                wrong.append(f"step {step}: {collective_count() - before} collectives")
    wanted = {**dict(plain.named_buffers()), **{n: p.grad for n, p in plain.named_parameters()}}
    found = {**dict(other.named_buffers()), **{n: p.grad for n, p in other.named_parameters()}}
    wrong += [n for n in wanted if not torch.allclose(wanted[n], found[n], rtol=1e-5, atol=1e-6)]
    return wrong


@pytest.mark.slow
def test_torch_compile_keeps_it_whole_with_the_same_gradients_and_statistics() -> None:
    assert run_ranks(compile_whole, 2) == [[], []]

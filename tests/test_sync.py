"""Ranks with different data round with the same ranges."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import wrap
from dq.dist.norm.sync_batch_norm import convert_sync_batch_norm, revert_sync_batch_norm
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.fixed import FixedObserver
from dq.quant.observers.min_max import MovingAverageObserver
from dq.quant.observers.range_search import MseObserver
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from dq.sync import (
    calibrate_on_one_rank,
    check_equal_on_ranks,
    merge_ranges_,
    merge_records_,
    sensitivities_over_ranks,
    share_channel_scales_,
    weight_scales,
)
from tests.processes.ranks import run_ranks

pytestmark = pytest.mark.cpu


class Net(nn.Module):
    """Two convolutions with batch norms, a residual addition and a head."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.function(self.first_norm(self.first(x)))
        b = self.function(a + self.second_norm(self.second(a)))
        out: Tensor = self.head(b)
        return out


def prepared(
    converted: bool = False, target: str = "int8", observer: str | None = None
) -> tuple[Net, QuantizedGraph]:
    torch.manual_seed(0)
    net = Net() if target == "int8" else Net(F.silu)
    if converted:
        convert_sync_batch_norm(net)
    recipe = preset(target)
    return net, prepare(net, recipe if observer is None else replace(recipe, observer=observer))


def batches(number: int) -> Tensor:
    """A global batch of 4 images; the scales of its halves differ by a factor of four."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    return x * torch.tensor([1.0, 1.0, 4.0, 4.0]).reshape(4, 1, 1, 1)


def calibrate(graph: QuantizedGraph) -> None:
    graph.root.eval()
    set_phase(graph.quantizers, Phase.CALIBRATE)
    for number in range(3):
        graph(batches(100 + number))
        update_scales_(list(graph.activations().values()))


def calibrate_and_compare(rank: int) -> tuple[str, list[float]]:
    _, graph = prepared()
    calls = []

    def work() -> None:
        calls.append(collectives.rank())
        calibrate(graph)

    proof = calibrate_on_one_rank(graph, work, rank=rank)
    assert calls == ([rank] if collectives.rank() == rank else [])
    return proof, [float(q.scale) for q in graph.activations().values()]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_calibrates_and_all_have_its_ranges(rank: int) -> None:
    (first, scales), (second, others) = run_ranks(calibrate_and_compare, 2, rank)
    _, graph = prepared()
    calibrate(graph)
    assert first == second
    assert scales == others == [float(q.scale) for q in graph.activations().values()]


def tamper_and_prove() -> str:
    _, graph = prepared()
    calibrate(graph)
    if collectives.rank() == 1:
        name = next(n for n in graph.activations() if "head" in n)
        graph.activations()[name].scale.mul_(1 + 1e-6)
    try:
        check_equal_on_ranks(graph, "in this test")
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_differing_quantizer_is_named_on_every_rank() -> None:
    for message in run_ranks(tamper_and_prove, 2):
        assert "ranges differ between ranks in this test: 1 quantizer, first head" in message


def train_steps(
    ranks: int,
    converted_first: bool = False,
    target: str = "int8",
    observer: str = "moving_average",
) -> tuple[dict[str, Tensor], list[float], int]:
    net, graph = prepared(converted_first, target, observer)
    calibrate(graph)
    net.train()
    convert_sync_batch_norm(net)
    net.__dict__["forward"] = graph
    set_phase(graph.quantizers, Phase.TRAIN)
    model = wrap(net, device=torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    quantizers = list(graph.activations().values())
    share = 4 // ranks
    begin = collectives.rank() * share
    agreed = 0
    for number in range(20):
        optimizer.zero_grad()
        x = batches(number)[begin : begin + share]
        model(x).square().mean().backward()
        optimizer.step()
        before = collectives.collective_count()
        merge_ranges_(quantizers)
        agreed += collectives.collective_count() - before
    check_equal_on_ranks(graph, "after training")
    return net.state_dict(), [float(q.scale) for q in quantizers], agreed


@pytest.mark.parametrize(
    ("target", "observer", "collectives_in_all"),
    [
        ("int8", "moving_average", 20),  # One a step.
        ("onnxruntime", "moving_average", 20),
        # Training keeps ranges that were searched for.
        ("int8", "weighted_mse", 0),
        ("onnxruntime", "mse", 0),
    ],
)
def test_training_on_two_ranks_equals_one_process_with_the_whole_batch(
    target: str, observer: str, collectives_in_all: int
) -> None:
    alone, scales, none = train_steps(1, target=target, observer=observer)
    both = run_ranks(train_steps, 2, 2, False, target, observer)
    (first, first_scales, issued), (second, second_scales, _) = both
    assert none == 0
    assert issued == collectives_in_all
    assert first_scales == second_scales
    torch.testing.assert_close(first_scales, scales, rtol=1e-4, atol=1e-6)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(first[name], second[name]), name


def test_norms_converted_before_or_after_preparing_train_alike_and_revert() -> None:
    after, before = run_ranks(train_steps, 2, 2), run_ranks(train_steps, 2, 2, True)
    for one, other in zip(after, before, strict=True):
        assert one[1] == other[1]
        assert one[0].keys() == other[0].keys()
        assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    net, _ = prepared(converted=True)
    plain, _ = prepared()
    revert_sync_batch_norm(net)
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(net.state_dict())


def rank_of_its_own_and_scales(power_of_two: bool, learned: str | None) -> tuple[list[str], str]:
    """Let the norms' statistics differ between ranks, as they do without synchronization."""
    recipe = Recipe(learned=learned)
    recipe = replace(recipe, weight=replace(recipe.weight, power_of_two=power_of_two))
    torch.manual_seed(0)
    net = Net()
    graph = prepare(net, recipe)
    calibrate(graph)
    with torch.no_grad():
        net.first_norm.running_var.mul_(1.0 + 8.0 * collectives.rank())
    if learned:
        initialise_weights_(graph.layers())
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dq.sync").addHandler(handler)
    try:
        return messages, check_equal_on_ranks(graph, "here")
    except RuntimeError as error:
        return [str(error)], ""


@pytest.mark.parametrize(("power_of_two", "learned"), [(False, None), (True, None), (True, "lsq")])
def test_weight_scales_of_single_ranks_are_shown(power_of_two: bool, learned: str | None) -> None:
    found = run_ranks(rank_of_its_own_and_scales, 2, power_of_two, learned)
    for messages, proof in found:
        assert len(messages) == 1
        assert "first+first_norm" in messages[0]
        if learned:
            assert "ranges differ between ranks here: 1 quantizer" in messages[0]
        else:
            assert "1 weight has other scales on other ranks here" in messages[0]
            assert "--sync-bn" in messages[0]
            # The norms' deviations differ by the root of 9.
            factor = float(messages[0].partition("by a factor of up to ")[2].split()[0])
            assert factor == pytest.approx(4.0 if power_of_two else 3.0, rel=0.34)
            assert proof == found[0][1], "what is equal is still proven"


def test_the_digest_sees_the_scale_of_a_weight_that_is_no_state() -> None:
    net, graph = prepared()
    calibrate(graph)
    before = check_equal_on_ranks(graph, "here")
    scales = weight_scales(graph)
    assert len(scales) == len(list(graph.layers()))
    assert not any(scale.requires_grad for scale in scales.values())
    with torch.no_grad():
        net.first.weight.mul_(1.5)
    assert check_equal_on_ranks(graph, "here") != before


def observe_after_calibration() -> str:
    _, graph = prepared()
    calibrate_on_one_rank(graph, lambda: calibrate(graph), rank=0)
    # Like DDP when it wraps a model, which also sets buffers that no checkpoint has.
    collectives.broadcast_coalesced_(list(graph.root.buffers()))
    graph.root.train()
    for phase in (Phase.OBSERVE, Phase.TRAIN):
        set_phase(graph.quantizers, phase)
        for number in range(2):
            graph(batches(collectives.rank() + 2 * number))
            merge_ranges_(list(graph.activations().values()))
        check_equal_on_ranks(graph, f"in the phase {phase.value}")
    return "equal"


def test_ranks_continue_alike_after_calibration_on_one_rank() -> None:
    assert run_ranks(observe_after_calibration, 2) == ["equal"] * 2


def observe_apart() -> tuple[list[Tensor], list[int]]:
    """Observe other values on each rank; return the merged records, and how many collectives."""
    average, counted, fixed = (
        MovingAverageObserver(),
        MseObserver(),
        FixedObserver(0, 1, QuantSpec()),
    )
    own = batches(0).chunk(collectives.world_size())[collectives.rank()]
    for x in own:
        average.observe(x)
        counted.observe(x)
    # An observer of a user may have a record that asks for a gradient; merging it needs none.
    average.batch_min.requires_grad_()
    issued = []
    for observers in ([fixed], [average, fixed], [fixed, counted, average]):
        before = collectives.collective_count()
        # A record that is merged already stays as it is, except for sums.
        merge_records_(observers)
        issued.append(collectives.collective_count() - before)
    names = ("batch_min", "batch_max", "batch_counts")
    return [
        getattr(o, n).detach() for o in (average, counted) for n in names if hasattr(o, n)
    ], issued


def test_records_of_all_kinds_are_merged_with_one_collective_for_extremes_and_one_for_sums() -> (
    None
):
    wanted, none = observe_apart()
    assert none == [0, 0, 0]
    assert int(wanted[-1].sum()) == batches(0).numel()
    for found, issued in run_ranks(observe_apart, 2):
        assert issued == [0, 1, 2]
        assert len(found) == 5
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)
    assert wanted[0] < 0 < wanted[1]


def test_alone_records_are_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph = prepared()
    monkeypatch.setattr("dq.sync._flat", None)
    set_phase(graph.quantizers, Phase.OBSERVE)
    graph.root.train()
    graph(batches(0))
    merge_ranges_(list(graph.activations().values()))
    assert all(q.has_range for q in graph.activations().values())


def test_all_that_wait_for_work_wait_a_day() -> None:
    for function in (calibrate_on_one_rank, run_on_rank, wait_for_all_ranks):
        limit = inspect.signature(function).parameters["limit_s"].default
        assert limit == 24 * 3600, function.__name__


def test_the_main_rank_is_the_one_that_has_calibrated_by_default() -> None:
    for function, name in (
        (calibrate_on_one_rank, "rank"),
        (share_channel_scales_, "source"),
        (sensitivities_over_ranks, "source"),
    ):
        assert inspect.signature(function).parameters[name].default == 0, function.__name__

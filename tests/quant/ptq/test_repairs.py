"""Calibration with repairs: in their order, on the first images, and undone where they harm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.ptq import adaround, bias_correction, equalization, repairs
from dq.quant.ptq.repairs import (
    Calibration,
    calibrate_and_repair_,
    chosen_steps,
    first_images,
)
from dq.quant.ptq.settings import Mixed, Repair, RepairStep, Samples
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe
from tests.quant.nets import Separable, images

W4 = replace(INT8_WEIGHT, bits=4)
CPU = torch.device("cpu")


def prepared(recipe: Recipe) -> QuantizedGraph:
    torch.manual_seed(0)
    return prepare(Separable(unequal=False).eval(), recipe)


def repaired(
    graph: QuantizedGraph, repair: Repair | None = None, **more: Any
) -> tuple[tuple[str, ...], list[Tensor]]:
    """Return what calibration returned, and the batches that it ran."""
    ran = []

    def run(batch: Tensor) -> int:
        ran.append(batch)
        graph(batch)
        return len(batch)

    found = calibrate_and_repair_(graph, images(), run, CPU, repair=repair, **more)
    return found, ran


def weights(graph: QuantizedGraph) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in graph.root.named_parameters() if "quant" not in n}


@pytest.mark.parametrize(
    ("asked", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (99, [4, 4, 2])]
)
def test_the_first_images_are_taken(asked: int, sizes: list[int]) -> None:
    batches = torch.arange(10.0).split(4)
    found = first_images(batches, asked)
    assert [len(batch) for batch in found] == sizes
    assert torch.cat(found).tolist() == list(range(sum(sizes)))


def test_without_repairs_all_batches_are_observed_and_no_weight_changes() -> None:
    graph = prepared(Recipe())
    before = weights(graph)
    raised, ran = repaired(graph)
    assert raised == ()
    assert len(ran) == 4
    assert all(torch.equal(p, before[n]) for n, p in weights(graph).items())
    assert all(q.phase is Phase.FROZEN for q in graph.activations().values())


@pytest.mark.parametrize(
    ("step", "function"),
    [("equalize", "equalize_"), ("bias", "correct_bias_"), ("adaround", "adaround_")],
)
def test_each_step_runs_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, step: str, function: str
) -> None:
    called: list[str] = []
    for module, name in (
        (equalization, "equalize_"),
        (repairs, "calibrate_"),
        (bias_correction, "correct_bias_"),
        (adaround, "adaround_"),
    ):
        real = getattr(module, name)

        def wrapped(*given: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            called.append(name)
            return real(*given, **more)

        monkeypatch.setattr(module, name, wrapped)
    graph = prepared(Recipe(weight=W4, free_clips=True))
    before = weights(graph)
    repaired(graph, Repair(steps=(step,), rounding_steps=3))
    first = step == "equalize"
    assert called == ([function, "calibrate_"] if first else ["calibrate_", function])
    assert any(not torch.equal(p, before[n]) for n, p in weights(graph).items()) or not first


def test_steps_keep_their_order_and_adaround_includes_bias_correction() -> None:
    found = chosen_steps(Repair(steps=("adaround", "bias", "equalize")))
    assert found == [equalization.REPAIR, adaround.REPAIR]
    assert chosen_steps(Repair(steps=("bias",))) == [bias_correction.REPAIR]


def test_a_repair_sees_the_first_images_and_all_are_observed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Tensor] = []
    monkeypatch.setattr(
        bias_correction, "correct_bias_", lambda graph, batches: given.extend(batches)
    )
    _, ran = repaired(prepared(Recipe()), Repair(steps=("bias",), images=12))
    assert len(ran) == 4
    assert torch.equal(torch.cat(given), torch.cat(ran[:2]))  # Whole batches, at least as many.


@pytest.mark.parametrize("harm", [True, False])
def test_a_repair_that_makes_the_outputs_worse_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: bool
) -> None:
    def change(graph: QuantizedGraph, batches: Iterable[Tensor]) -> None:
        with torch.no_grad():
            graph.root.head.bias.add_(3.0 if harm else 0.0)

    monkeypatch.setattr(bias_correction, "correct_bias_", change)
    graph = prepared(Recipe(weight=W4))
    before = weights(graph)
    repaired(graph, Repair(steps=("bias",)))
    assert all(torch.equal(p, before[n]) for n, p in weights(graph).items())
    assert ("made the outputs worse and is undone" in caplog.text) is harm


def test_a_repair_that_makes_the_outputs_nan_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def change(graph: QuantizedGraph, batches: Iterable[Tensor]) -> None:
        with torch.no_grad():
            graph.root.head.bias.add_(1.0)

    noises = iter((0.1, float("nan")))
    monkeypatch.setattr(bias_correction, "correct_bias_", change)
    monkeypatch.setattr(repairs, "noise", lambda *_: next(noises))
    graph = prepared(Recipe(weight=W4))
    before = weights(graph)
    repaired(graph, Repair(steps=("bias",)))
    assert all(torch.equal(p, before[n]) for n, p in weights(graph).items())
    assert "made the outputs worse and is undone" in caplog.text


@pytest.mark.parametrize("steps", [(), ("bias",), ("equalize", "adaround"), ("reconstruct",)])
def test_the_original_weights_give_the_float_model_again(steps: tuple[str, ...]) -> None:
    graph = prepared(Recipe(weight=W4))
    batch = images()[0]
    with in_phase(graph.quantizers, Phase.OFF), torch.no_grad():
        wanted = graph(batch)
    repair = Repair(steps=steps, rounding_steps=5, reconstruction_steps=5)
    calibration = Calibration(
        graph, lambda b: len(graph(b)), CPU, weight_range="mse", repair=repair
    )
    calibration.find_ranges_(images())
    calibration.finish_()
    originals = calibration.originals()
    now = graph.root.state_dict()
    assert originals
    assert all(not torch.equal(value, now[name]) for name, value in originals.items())
    with in_phase(graph.quantizers, Phase.OFF), torch.no_grad():
        clipped = graph(batch)
        graph.root.load_state_dict(originals, strict=False)
        restored = graph(batch)
    assert float((clipped - wanted).norm()) > 1e-3 * float(wanted.norm())
    torch.testing.assert_close(restored, wanted)


def test_without_clipping_and_repairs_nothing_has_an_original() -> None:
    graph = prepared(Recipe(weight=W4))
    calibration = Calibration(graph, lambda b: len(graph(b)), CPU)
    calibration.find_ranges_(images())
    calibration.finish_()
    assert calibration.originals() == {}


def test_clipped_weights_of_raised_quantizers_are_restored() -> None:
    narrow = replace(INT8_WEIGHT, bits=3)
    clipped = prepared(Recipe(weight=narrow))
    before = weights(clipped)
    repaired(clipped, weight_range="mse")
    changed = {n for n, p in weights(clipped).items() if not torch.equal(p, before[n])}
    assert len(changed) > 3
    graph = prepared(Recipe(weight=narrow))
    raised, _ = repaired(graph, Repair(mixed=Mixed(max_raised=3)), weight_range="mse")
    assert 0 < len(raised) <= 3
    sites = {site.name: site.module for site in graph.sites}
    restored = {f"{sites[name]}.weight" for name in raised} & changed
    assert restored
    for name, weight in weights(graph).items():
        assert torch.equal(weight, before[name]) is (name not in changed - restored)
    assert {graph.quantizers[n].weight.spec.bits for n in raised if "out" not in n} == {16}


@pytest.mark.parametrize("bits", [8, 12])
def test_wide_activations_get_headroom_and_histograms_stop(bits: int) -> None:
    recipe = Recipe(activation=QuantSpec(bits=bits), observer="percentile", percentile=100.0)
    graph = prepared(recipe)
    _, ran = repaired(graph)
    quantizer = graph.activations()["x/out"]
    assert isinstance(quantizer.observer, HistogramObserver)
    assert not quantizer.observer.collects
    top = float(torch.cat(ran).max())
    wanted = top * (1.5 if bits >= 12 else 1.0)
    assert float(quantizer.observer.range_max) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("in_parts", [True, False])
def test_first_steps_repair_the_parts_that_they_can_repair(
    in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = prepared(Recipe())
    part = SimpleNamespace()
    graph.parts = {"head": part}  # type: ignore[dict-item]
    ran: list[tuple[Any, list[Any]]] = []

    def step(given: Any, samples: Samples, settings: Repair) -> None:
        ran.append((given, list(samples.rounded)))

    monkeypatch.setattr(
        repairs,
        "chosen_steps",
        lambda repair: [RepairStep(apply=step, changes_ranges=True, in_parts=in_parts)],
    )
    monkeypatch.setattr(repairs, "calibrate_", lambda graph, batches, run: list(batches))
    calibration = repairs.Calibration(graph, len, CPU)
    calibration.find_ranges_(images())
    assert [given for given, _ in ran] == ([graph, part] if in_parts else [graph])
    assert torch.equal(ran[0][1][0], images()[0])
    assert len(ran[0][1]) == 1
    assert [samples for _, samples in ran[1:]] == ([[]] if in_parts else [])
    assert calibration.part_calls == {}


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("runner", [True, False])
def test_parts_are_run_if_there_are_any_and_somebody_can(
    parts: bool, runner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = prepared(Recipe())
    if parts:
        graph.parts = {"head": SimpleNamespace()}  # type: ignore[dict-item]
    asked: list[int] = []

    def part_inputs(graph: Any, runner: Any, batches: list[Tensor]) -> Any:
        asked.append(sum(map(len, batches)))
        return SimpleNamespace(plain={"head": [], "other": [1]})

    monkeypatch.setattr(repairs, "part_inputs", part_inputs)
    monkeypatch.setattr(repairs, "calibrate_", lambda graph, batches, run: list(batches))
    repair = Repair(mixed=Mixed(images=3), images=30)
    calibration = repairs.Calibration(
        graph,
        len,
        CPU,
        repair=repair,
        parts=object() if runner else None,  # type: ignore[arg-type]
    )
    calibration.find_ranges_(images())
    assert asked == ([16] if parts and runner else [])
    assert calibration.part_calls == ({"other": [1]} if parts and runner else {})
    assert [len(batch) for batch in calibration.few_images] == [3]


def test_learned_scales_are_chosen_anew_after_weights_were_clipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    initialise = repairs.initialise_weights_
    monkeypatch.setattr(
        repairs, "initialise_weights_", lambda layers: (calls.append(1), initialise(layers))
    )
    for weight, weight_range, wanted in (
        (INT8_WEIGHT, "min_max", 0),
        (replace(INT8_WEIGHT, bits=3), "mse", 1),
        (replace(INT8_WEIGHT, bits=16), "mse", 0),
    ):
        calls.clear()
        repaired(prepared(Recipe(weight=weight)), weight_range=weight_range)
        assert len(calls) == wanted, weight_range


def test_an_error_that_stays_is_no_reason_to_undo_and_the_log_names_the_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph = prepared(Recipe())
    errors: list[float] = []
    monkeypatch.setattr(repairs, "noise", lambda *given: errors.pop(0))
    before = weights(graph)
    for first, second, part in ((0.5, 0.5, ""), (0.5, 0.25, "head"), (0.5, 0.6, "head")):
        errors[:] = [first, second]
        caplog.clear()
        with caplog.at_level("INFO"), repairs._undone_if_worse(graph, [], [], part):
            graph.root.head.bias.data.add_(1.0)
        where = "head on calibration images" if part else "SQNR on calibration images"
        assert where in caplog.text
        assert ("outputs of head worse" in caplog.text) == (second > first)
    change = weights(graph)["head.bias"] - before["head.bias"]
    torch.testing.assert_close(change, torch.full_like(change, 2.0))


def test_batches_pass_on_and_as_many_are_kept_as_have_the_images() -> None:
    for asked, kept in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (99, 3)):
        source = [torch.arange(4), torch.arange(4), torch.arange(2)]
        keeper = repairs._KeepFirst(source, asked)
        assert list(keeper) == source
        assert len(keeper.batches) == kept

"""A search tries cheap candidates first and returns the cheapest that meets the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dq.quant.ptq.settings import Mixed, Repair
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from dq.quant.search.candidate import (
    Candidate,
    first_candidates,
    with_channel_scales,
    with_reconstruction,
    with_rounding,
    without_zero_points,
)
from dq.quant.search.ladder import Search, TimeUpError, Tried, pareto_front

NAMES = tuple(f"layer{number}" for number in range(20))


def search(
    value: Callable[[Candidate], float], *, least: float, batches: int = 99, most: int = 20
) -> tuple[Search, list[int]]:
    """Return a search over made-up values, and the sizes of the batches it measures."""
    sizes: list[int] = []

    def measure(candidates: Sequence[Candidate]) -> list[float]:
        if len(sizes) >= batches:
            raise TimeUpError
        sizes.append(len(candidates))
        return [value(candidate) for candidate in candidates]

    return Search(
        least=least, measure=measure, rank=lambda candidate: NAMES, max_raised=most
    ), sizes


def by_raised(start: float, gain: float) -> Callable[[Candidate], float]:
    """Return a value that grows with each raised quantizer."""
    return lambda candidate: start + gain * candidate.num_raised


def test_nothing_is_raised_if_a_way_to_calibrate_meets_the_limit() -> None:
    here, _ = search(lambda c: 0.9 if c.name == "weighted mse" else 0.5, least=0.8)
    outcome = here.run(Recipe(), Repair())
    assert outcome.meets_limit
    assert outcome.chosen.candidate.name == "weighted mse"
    assert outcome.chosen.candidate.recipe.observer == "weighted_mse"
    assert {tried.candidate.num_raised for tried in outcome.tried} == {0}
    assert "adaround" not in [s for t in outcome.tried for s in t.candidate.repair.steps]


def test_channel_scales_come_before_learned_rounding_with_each_searched_range() -> None:
    def value(candidate: Candidate) -> float:
        return 0.9 if "channel_scales" in candidate.repair.steps else 0.5

    here, _ = search(value, least=0.8)
    outcome = here.run(Recipe(observer="percentile"), Repair(steps=("bias",)))
    scaled = [t.candidate for t in outcome.tried if "channel_scales" in t.candidate.repair.steps]
    assert [c.recipe.observer for c in scaled] == ["percentile", "weighted_mse", "mse"]
    assert all(c.repair.steps == ("bias", "channel_scales") for c in scaled)
    assert outcome.meets_limit
    assert "adaround" not in [s for t in outcome.tried for s in t.candidate.repair.steps]
    # Learned rounding keeps them.
    rounded = with_rounding(scaled[0])
    assert rounded is not None
    assert set(rounded.repair.steps) == {"channel_scales", "adaround"}
    # A config that has them gets no other.
    assert with_channel_scales(scaled[0]) == []


def test_learned_rounding_comes_before_more_bits() -> None:
    here, _ = search(lambda c: 0.9 if "adaround" in c.repair.steps else 0.5, least=0.8)
    outcome = here.run(Recipe(), Repair())
    assert "adaround" in outcome.chosen.candidate.repair.steps
    assert outcome.chosen.candidate.num_raised == 0


def test_block_reconstruction_of_the_best_comes_last_before_more_bits() -> None:
    def value(candidate: Candidate) -> float:
        return 0.5 + 0.1 * len(set(candidate.repair.steps) & {"channel_scales", "reconstruct"})

    here, _ = search(value, least=0.65)
    wide = here.run(Recipe(), Repair())
    assert "reconstruct" not in {s for t in wide.tried for s in t.candidate.repair.steps}
    here, _ = search(value, least=0.65)
    outcome = here.run(preset("w4a8"), Repair())
    last = outcome.tried[-1].candidate
    assert last == outcome.chosen.candidate
    assert set(last.repair.steps) >= {"channel_scales", "reconstruct"}
    assert last.num_raised == 0
    assert "adaround" in outcome.tried[-2].candidate.repair.steps
    assert with_reconstruction(last) is None


@pytest.mark.parametrize("needed", range(1, 21))
def test_the_smallest_number_of_raised_quantizers_is_found(needed: int) -> None:
    here, sizes = search(by_raised(0.5, 0.01), least=0.5 + 0.01 * needed - 1e-9)
    here.together = 3
    outcome = here.run(Recipe(), Repair())
    assert outcome.meets_limit
    assert outcome.chosen.candidate.recipe.raised == NAMES[:needed]
    counts = [tried.candidate.num_raised for tried in outcome.tried]
    raised = [count for count in counts if count]
    assert len(raised) == len(set(raised)), "none is tried twice"
    assert len(raised) <= 12
    # Several ranks share out a batch.
    assert max(sizes) == 3


def test_a_limit_that_cannot_be_met_returns_the_best() -> None:
    here, _ = search(by_raised(0.5, 0.01), least=0.99, most=7)
    outcome = here.run(Recipe(), Repair())
    assert not outcome.meets_limit
    assert not outcome.ended_early
    assert outcome.chosen.candidate.num_raised == 7


@pytest.mark.parametrize("batches", [1, 3, 5, 7])
@pytest.mark.parametrize("together", [1, 2])
def test_a_search_without_time_returns_the_best_so_far(batches: int, together: int) -> None:
    here, sizes = search(by_raised(0.5, 0.01), least=0.68, batches=batches)
    here.together = together
    outcome = here.run(Recipe(), Repair())
    assert outcome.ended_early
    assert not outcome.meets_limit
    # Nothing that was measured is lost, and no more is measured at once than is asked for.
    assert len(outcome.tried) == sum(sizes)
    assert len(sizes) == batches
    assert max(sizes) <= together
    most = max(tried.candidate.num_raised for tried in outcome.tried)
    assert outcome.chosen.candidate.num_raised == most


def test_a_search_without_any_time_is_an_error() -> None:
    here, _ = search(by_raised(0.5, 0.01), least=0.68, batches=0)
    with pytest.raises(TimeUpError):
        here.run(Recipe(), Repair())


def test_the_users_recipe_is_tried_first_and_nothing_twice() -> None:
    recipe = Recipe(observer="mse", weight_range="mse")
    found = first_candidates(recipe, Repair(steps=("bias",), mixed=Mixed(), images=7))
    assert found[0].name == "as configured"
    assert found[0].repair.mixed is None
    assert found[1].name == "as configured, without bias"
    assert found[1].repair == replace(found[0].repair, steps=())
    assert {c.repair.images for c in found} == {7}
    assert len({(c.recipe, c.repair) for c in found}) == len(found) == 6
    assert [c.recipe.free_clips for c in found if "equalize" in c.repair.steps] == [True]
    rounded = with_rounding(found[-1])
    assert rounded is not None
    assert rounded.repair.steps == ("equalize", "adaround")
    assert with_rounding(rounded) is None


def test_an_engine_that_zero_points_slow_down_is_tried_without_them_first() -> None:
    recipe = preset("openvino")
    names = [c.name for c in without_zero_points(recipe, Repair(steps=("channel_scales",)))]
    assert names == ["no zero points", "no zero points + bias"]
    corrected = without_zero_points(recipe, Repair(steps=("channel_scales", "bias")))
    assert [c.name for c in corrected] == ["no zero points", "no zero points, without bias"]
    assert [c.repair.steps for c in corrected] == [("channel_scales", "bias"), ("channel_scales",)]
    assert not any(c.recipe.zero_points for c in corrected)
    for other in (preset("onnxruntime"), replace(recipe, zero_points=False)):
        assert without_zero_points(other, Repair()) == []


@pytest.mark.parametrize(("loss", "chosen"), [(0.05, "no zero points"), (0.3, "as configured")])
def test_zero_points_are_left_out_where_the_limit_allows_it(loss: float, chosen: str) -> None:
    def value(candidate: Candidate) -> float:
        return 0.7 - (0.0 if candidate.recipe.zero_points else loss)

    here, _ = search(value, least=0.6)
    outcome = here.run(preset("openvino"), Repair())
    assert outcome.meets_limit
    assert outcome.chosen.candidate.name == chosen
    assert [t.candidate.recipe.zero_points for t in outcome.tried[:2]] == [False, False]
    front = [t.candidate.recipe.zero_points for t in pareto_front(outcome.tried)]
    assert front == ([False] if loss < 0.1 else [False, True])


def test_the_pareto_front_has_what_nothing_beats() -> None:
    def tried(count: int, value: float) -> Tried:
        recipe = Recipe(raised=NAMES[:count])
        return Tried(
            candidate=Candidate(name=f"{count} {value}", recipe=recipe, repair=Repair()),
            value=value,
        )

    front = pareto_front(
        [tried(4, 0.6), tried(0, 0.5), tried(2, 0.6), tried(0, 0.4), tried(8, 0.7)]
    )
    assert [(t.candidate.num_raised, t.value) for t in front] == [(0, 0.5), (2, 0.6), (8, 0.7)]

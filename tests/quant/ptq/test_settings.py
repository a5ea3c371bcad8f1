"""Settings of repairs: what is allowed, up to its limits, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dq.quant.ptq.settings import STEPS, Mixed, Repair

ALL = tuple(STEPS)


def test_nothing_is_repaired_unless_asked_for() -> None:
    assert (Repair().steps, Repair().mixed) == ((), None)
    assert (Repair().images, Repair().rounding_steps) == (64, 200)
    assert (Mixed().max_raised, Mixed().target_sqnr, Mixed().images) == (5, None, 8)


@pytest.mark.parametrize(
    ("kind", "allowed", "refused", "said"),
    [
        (Mixed, {"max_raised": 0}, {"max_raised": -1}, "max_raised of 0 or more"),
        (Mixed, {"images": 1}, {"images": 0}, "images of 1 or more"),
        (Repair, {"images": 1}, {"images": 0}, "repair_images must be 1 or more"),
        (Repair, {"rounding_steps": 0}, {"rounding_steps": -1}, "rounding_steps, .* 0 or more"),
        (Repair, {"most_scaled": 0}, {"most_scaled": -1}, "most_scaled and .* 0 or more"),
        (
            Repair,
            {"reconstruction_steps": 0},
            {"reconstruction_steps": -1},
            "reconstruction_steps 0 or more",
        ),
        (
            Repair,
            {"steps": ALL},
            {"steps": ("equalise",)},
            "'equalise' does not.*equalize",
        ),
        (Repair, {"steps": ALL[::-1]}, {"steps": ("bias", "ada")}, "'ada' does not exist"),
    ],
)
def test_limits(kind: Any, allowed: dict[str, Any], refused: dict[str, Any], said: str) -> None:
    kind(**allowed)
    with pytest.raises(ValueError, match=said):
        kind(**refused)

"""The tracking benchmark separates steps from the work between epochs."""

from __future__ import annotations

import pytest

from benchmarks.tracking import WARM_UP, seconds_of_a_row, speed_of


def test_steps_are_separated_from_the_work_between_epochs() -> None:
    lines, seconds, tracking = [], 0.0, 0.0
    for epoch in (0, 1):
        seconds += 3.0 if epoch else 0.0
        tracking += 2.0 if epoch else 0.0
        for step in range(10):
            # The first steps are slow and must not count.
            seconds += 5.0 if not epoch and step < WARM_UP else 0.25
            tracking += 0.01
            lines.append(f"{epoch},{seconds},{seconds / 2},{tracking}\n")
    speed = speed_of(lines)
    assert speed.step_s == pytest.approx(0.25)
    assert speed.cpu_s == pytest.approx(0.125)
    assert speed.between_s == pytest.approx(3.25)
    assert speed.tracking_s == pytest.approx(0.01)
    assert speed.figures_s == pytest.approx(2.01)
    assert speed.whole_s == pytest.approx((13 * 0.25 + 3.25) / 14)


def test_the_cost_of_a_row_is_measured() -> None:
    assert 0.0 < seconds_of_a_row() < 1.0

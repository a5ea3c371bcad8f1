"""Values of the ``guards`` section that are no numbers are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dq.detector.step.guards import Guards


@pytest.mark.parametrize("given", ["300", None, [300.0]])
def test_a_limit_is_a_number(given: Any) -> None:
    with pytest.raises(ValueError, match=r"guards\.quiet_s is .*; it must be more than 0"):
        Guards(quiet_s=given)

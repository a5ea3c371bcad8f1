"""The message about a hook that does not fit names the hook and says what to do with it."""

from __future__ import annotations

import pytest

from dq.detector.training.hook_checks import _need


@pytest.mark.parametrize(
    ("other", "mend"),
    [("", "; remove this hook"), ("a B", "; use a B, or remove this hook")],
)
def test_the_mend_is_an_order_that_can_be_followed(other: str, mend: str) -> None:
    with pytest.raises(ValueError, match=f"MyHook needs absent, which object lacks{mend}"):
        _need(object(), "absent", "MyHook", other)

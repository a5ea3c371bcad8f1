"""Refinements of QAT are read from the config, and misspelt ones are refused."""

from __future__ import annotations

from typing import Any

import pytest

from dq.quant.training.refinements import Refinements
from launcher.config import quant_settings


def test_without_a_section_nothing_is_on() -> None:
    assert quant_settings(None).refinements == Refinements()
    assert quant_settings({"ema": None}).refinements.ema is None
    assert quant_settings({"oscillation": {}}).refinements.oscillation is not None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"distil": {}}, r"quant\.distil is not a setting; did you mean distill\?"),
        ({"distill": {"feature": ["x"]}}, "did you mean features?"),
        ({"ema": True}, r"quant\.ema must be a dict or None, not True"),
        ({"ema": {"momentum": 2.0}}, r"quant\.ema\.momentum is 2.0"),
        ({"learned": "LSQ"}, "known are lsq"),
        ({"learned_lr": -1}, r"quant\.learned_lr is -1"),
        ({"schedule": {"round_after": {"step": 3}}}, r"quant\.schedule\.round_after is"),
    ],
)
def test_a_mistake_is_named_with_the_mend(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quant_settings(section)

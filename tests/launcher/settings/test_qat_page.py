"""docs/qat.md has the same settings and defaults as the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from dq.quant.recipes.recipe import Recipe
from dq.quant.training.distillation import Distill
from dq.quant.training.oscillation import Oscillation
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import Ema
from launcher.config import quant_settings

PAGE = Path(__file__).resolve().parents[3] / "docs/qat.md"
KINDS = {"schedule": Schedule, "oscillation": Oscillation, "ema": Ema, "distill": Distill}


def stated() -> dict[str, str]:
    return dict(re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE))


def test_every_setting_is_there_with_its_default() -> None:
    expected = {"learned": repr(Recipe().learned), "learned_lr": repr(Refinements().learned_lr)}
    for section, kind in KINDS.items():
        for name in (field.name for field in fields(kind)):
            expected[f"{section}.{name}"] = repr(getattr(kind(), name))
    assert stated() == expected


def test_the_pages_example_is_a_valid_section() -> None:
    code = re.search(r"```python\n(quant = .*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    found: dict[str, object] = {}
    exec(code[1], found)
    settings = quant_settings(found["quant"])  # type: ignore[arg-type]
    assert settings.recipe.learned == "lsq+"
    assert settings.schedule.round_after == {"iteration": 100}
    assert settings.refinements.ema == Ema(momentum=0.001)
    assert settings.refinements.distill == Distill(features=("neck.*",))
    assert settings.refinements.oscillation == Oscillation(freeze_above=0.02)

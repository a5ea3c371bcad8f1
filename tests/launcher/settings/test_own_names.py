"""A config names an observer and a target of the user's own, from modules in custom_imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.dist.files.checkpoint import load_checkpoint
from dq.quant.recipes.presets import PRESETS
from dq.quant.recipes.recipe import OBSERVERS
from dq.quant.targets.registry import TARGETS
from tests.launcher.conftest import ROOT, Launch
from tests.quant.registered import names_stay

MODULES = ["custom_observer", "custom_target"]


@pytest.fixture(autouse=True)
def _registered_here_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(ROOT / "examples")
    with names_stay():
        yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_detector_is_calibrated_with_them(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"_base_ = [{str(config)!r}]\nquant = dict(preset='own_engine', observer='deviations')\n"
    Path("own.py").write_text(f"{text}custom_imports = dict(imports={MODULES})\n")
    Path("without.py").write_text(text)
    Path("plain.py").write_text(f"_base_ = [{str(config)!r}]\n")
    given = ("--checkpoint", "runs/plain/float/float.pth")
    assert launch("train", "plain.py")[0] == 0
    # Not registered yet.
    code, _, said = launch("calibrate", "without.py", *given)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: quant.preset 'own_engine' does not exist; ")
    assert launch("calibrate", "own.py", *given)[0] == 0
    calibrated = "runs/own/calibrated/calibrated.pth"
    recipe = load_checkpoint(calibrated)["quantization"]["recipe"]
    assert (recipe["target"], recipe["observer"]) == ("own_engine", "deviations")
    # The names are unknown again, as in a new process.
    with names_stay():
        del OBSERVERS["deviations"], TARGETS["own_engine"], PRESETS["own_engine"]
        code, _, said = launch("eval", "plain.py", "--checkpoint", calibrated)
        assert (code, said.count("\n")) == (2, 1)
        assert "add the module that registers it to custom_imports" in said

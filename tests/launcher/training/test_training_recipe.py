"""Recipes by name and the control, through files and commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, on_ranks

pytestmark = pytest.mark.slow
# A rate that some layers and learned scales do not bear; they get a lower one.
CONFIG = """
_base_ = [{base!r}]
optimizer = dict(_delete_=True, type='AdamW', lr=0.02)
lr_config = dict(warmup_iters=2)
runner = dict(max_epochs=4)
quant = dict(
    _delete_=True, recipe='qat-w4a8', passes=0.5, {more}
    schedule=dict(calibration_batches=2, calibration_batch_size=4))
"""


@pytest.fixture
def recipe(config: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(CONFIG.format(base=str(config), more="ema=dict(),"))
    return path


def state_of(path: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(path)
    return {**content["state_dict"], **content["quantization"]["state"]}


def test_a_recipe_gives_all_numbers_and_resumes_with_them(
    launch: Launch, recipe: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    given = ("--checkpoint", float_checkpoint, "--work-dir", tmp_path / "w", "--threads", 1)
    code, out, err = launch("qat", recipe, *given, "--no-validate")
    assert code == 0, err
    # Half of four epochs of six steps, at a fifth of the float rate.
    assert re.search(r"qat-w4a8: 2 epochs \(12 steps\), learning rate 0.004 falling to", out)
    # The user's average has no momentum, so it gets the recipe's.
    assert "; weights averaged with 0.5 a step" in out
    assert "12 steps are few for W4A8" in out
    for what in ("layers", "quantizer parameters"):
        assert re.search(rf"a lower learning rate for \d+ of \d+ {what}", out)
    folder = tmp_path / "w/qat"
    meta = load_checkpoint(folder / "epoch_1.pth")["meta"]
    assert (meta["numbers"]["length"], meta["numbers"]["steps"]) == (2, 12)
    assert meta["layer_rates"]
    assert any(name.startswith("quantizers.") for name in meta["layer_rates"])
    assert all(0 < factor < 1 for factor in meta["layer_rates"].values())
    # Resumed from the middle it ends with the same bits, with the same groups and numbers.
    whole = state_of(folder / "qat.pth")
    for name in ("qat.pth", "epoch_2.pth", "step_12.pth", "latest.pth"):
        (folder / name).unlink(missing_ok=True)
    code, out, err = launch("qat", recipe, *given, "--no-validate", "--resume")
    assert code == 0, err
    assert "resumed from" in out
    again = state_of(folder / "qat.pth")
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    # On two ranks the checkpoint's numbers count, not those of the new number of images a step.
    done = on_ranks(2, "qat", recipe, *given, "--no-validate", "--resume", folder / "epoch_1.pth")
    assert "2 epochs (12 steps)" in done.stdout, done.stderr


def test_4_bit_weights_are_not_averaged_by_a_hook_of_the_config_either(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.py"
    hooks = "\ncustom_hooks = [dict(type='ExpMomentumEMAHook', momentum=0.0001)]\n"
    given = ("--checkpoint", float_checkpoint, "--no-validate", "--threads", 1)
    for more, averages in (("", False), ("ema=dict(momentum=0.25),", True)):
        path.write_text(CONFIG.format(base=str(config), more=more) + hooks)
        folder = tmp_path / str(averages)
        code, out, err = launch("qat", path, *given, "--work-dir", folder)
        assert code == 0, err
        text = "; weights averaged with 0.25 a step" if averages else "; weights are not averaged"
        assert text in out
        left_out = "ExpMomentumEMAHook(momentum=0.0001) is left out: averages of 4-bit weights"
        assert (left_out in out) != averages
        companions = load_checkpoint(folder / "qat/epoch_2.pth")["companions"]
        assert ("average" in companions) == averages


def test_a_wrong_recipe_is_one_line(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    wrong = {
        "recipe='qat-w4a88'": "quant.recipe 'qat-w4a88' does not exist",
        "recipe='qat-int8', rate=-1": "quant.rate is -1; it is a share",
        "recipe='qat-int8', passes=float('inf')": "quant.passes is inf; it is a share",
        "recipe='qat-int8', passes=1e9": "quant.passes is 1000000000.0; it is a share",
        "recipe='qat-int8', passes=True": "quant.passes is True; use a number",
        "recipe='qat-int8', rate='0.1'": "quant.rate is '0.1'; use a number",
        "rate=0.1": "quant.rate is a setting of a training recipe, and none is named",
    }
    for number, (text, line) in enumerate(wrong.items()):
        path = tmp_path / f"{number}.py"
        path.write_text(f"_base_ = [{str(config)!r}]\nquant = dict({text})\n")
        code, _, err = launch("qat", path, "--checkpoint", float_checkpoint)
        assert code == 2
        assert line in err
        assert len(err.strip().splitlines()) == 1


def test_the_control_is_in_the_table_the_comparison_and_the_log(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "control.py"
    quant = "dict(ema=dict(), schedule=dict(freeze_norm_after=0.0))"
    path.write_text(f"_base_ = [{str(config)!r}]\nquant = {quant}\n")
    done = on_ranks(2, "run", path, "--work-dir", tmp_path / "w", "--control", "--no-validate")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"\| float +\| int8 calibrated +\| int8 QAT +\| float, trained on", done.stdout
    )
    assert "points from the float detector trained on by the same steps" in done.stdout
    folder = tmp_path / "w/control"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["stage"], summary["bits"]) == ("control", "float32")
    content = load_checkpoint(folder / "control.pth")
    assert "quantization" not in content
    # The images of a step are known for the rates of later trainings.
    for stage in ("float", "calibrated", "qat", "control"):
        meta = load_checkpoint(tmp_path / f"w/{stage}/{stage}.pth")["meta"]
        assert meta["images_per_step"] == 8
    assert re.search(r"qat - control, COCO's mAP: [+-]", done.stdout)
    before = load_checkpoint(tmp_path / "w/float/float.pth")["state_dict"]
    moved = [n for n, v in content["state_dict"].items() if not torch.equal(v, before[n])]
    # Trained on from the float detector; its norms were fixed, as in the quantized training.
    assert any(name.endswith("conv1.weight") for name in moved)
    assert not any("running_mean" in name for name in moved)
    code, out, err = launch("compare", tmp_path / "w")
    assert code == 0, err
    assert "Acc float on" in out
    # A second command finds all stages done.
    again = on_ranks(1, "run", path, "--work-dir", tmp_path / "w", "--control", "--no-validate")
    assert again.returncode == 0, again.stderr
    assert "control is done already" in again.stdout
    code, _, err = launch("qat", path, "--checkpoint", folder / "control.pth", "--control",
                          "--images", tmp_path)  # fmt: skip
    assert code == 2
    assert "--control trains the float detector on annotations" in err

"""A compiled training has the same losses as one that is not, with all other features on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.training.test_resume import losses

pytestmark = pytest.mark.slow

EVERYTHING = """
_base_ = [{base!r}]
log_config = dict(interval=1)
runner = dict(max_epochs={epochs})
quant = dict(
    learned='lsq',
    oscillation=dict(dampening=1e-4),
    ema=dict(momentum=0.1),
    schedule=dict({schedule}),
    training={{'optimizer.lr': 1e-3, 'runner.max_epochs': {epochs}}})
{more}
"""
# The rate is low: at four times of it, one weight that is rounded the other way moves the loss by
# 2 % within three steps.
# Each phase is compiled separately, which takes long with inductor.
PHASES = {
    2: "round_after=dict(iteration=2), freeze_norm_after=0.8, freeze_ranges_after=0.9",
    1: "freeze_norm_after=1.0, freeze_ranges_after=1.0",
}


def trained(
    config: Path, checkpoint: Path, folder: Path, ranks: int, epochs: int, more: str
) -> dict[int, dict[str, float]]:
    folder.mkdir()
    path = folder / "everything.py"
    path.write_text(
        EVERYTHING.format(base=str(config), epochs=epochs, schedule=PHASES[epochs], more=more)
    )
    done = on_ranks(ranks, "qat", path, "--checkpoint", checkpoint, "--work-dir", folder,
                    "--sync-bn", "on")  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "recompile_limit" not in done.stderr
    assert ("the network is compiled" in done.stdout) is ("compile" in more)
    return losses(folder / "qat")


@pytest.mark.parametrize(
    ("ranks", "backend", "fp16", "epochs"),
    # Each rank compiles the network for itself: with inductor, and with fp16, one is enough.
    [(2, "aot_eager", False, 2), (1, "aot_eager", True, 1), (1, "inductor", False, 1)],
)
def test_the_losses_are_those_of_a_training_that_is_not_compiled(
    config: Path,
    float_checkpoint: Path,
    tmp_path: Path,
    ranks: int,
    backend: str,
    fp16: bool,
    epochs: int,
) -> None:
    more = "fp16 = dict(loss_scale='dynamic')" if fp16 else ""
    plain = trained(config, float_checkpoint, tmp_path / "plain", ranks, epochs, more)
    found = trained(
        config, float_checkpoint, tmp_path / "compiled", ranks, epochs,
        f"{more}\ncompile = dict(backend={backend!r})",
    )  # fmt: skip
    assert plain.keys() == found.keys()
    assert len(plain) == 6 // ranks * epochs
    # Last digits matter, because a weight at a rounding border may be rounded either way.
    tolerance = 0.05 if fp16 else 0.01
    for step, row in plain.items():
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=tolerance), step


def test_what_does_not_go_together_is_refused(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "both.py"
    path.write_text(f"_base_ = [{str(config)!r}]\ncompile = True\nquant = dict(distill=dict())\n")
    code, _, err = launch("qat", path, "--checkpoint", float_checkpoint, "--work-dir", tmp_path)
    assert code == 2
    assert "compile and quant.distill do not go together" in err
    for setting, words in (
        ("dict(mod='default')", "compile.mod is not a setting; there are backend, mode, dynamic"),
        ("dict(mode='fast')", "compile.mode is 'fast'; use one of default"),
        ("'yes'", "compile must be True, False, a dict or None"),
    ):
        path.write_text(f"_base_ = [{str(config)!r}]\ncompile = {setting}\n")
        code, _, err = launch("train", path, "--work-dir", tmp_path / "w")
        assert (code, words in err) == (2, True), err

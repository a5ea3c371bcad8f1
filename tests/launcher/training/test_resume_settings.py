"""Resume with other settings or with files of other trainings: applied, refused or consented."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.failures.test_errors import only_error

pytestmark = pytest.mark.slow
STEP = "checkpoint_config.steps=1"


@pytest.fixture(scope="module")
def stopped(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float training that was stopped after a step of its second epoch."""
    work = tmp_path_factory.mktemp("stopped")
    path = work / "stopping.py"
    path.write_text(
        f"_base_ = [{str(config)!r}]\n"
        "custom_imports = dict(imports=['dq.detector.survey.stop_hook'],"
        " allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='StopOnceHook')]\n"
        "runner = dict(max_epochs=2)\n"
    )
    done = on_ranks(1, "train", path, "--work-dir", work, "--no-validate")
    assert done.returncode == 75, done.stdout + done.stderr
    assert (work / "float/step_1.pth").is_file()
    return work


@pytest.fixture
def train(launch: Launch, stopped: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Return a function that resumes a copy of the stopped training with further arguments."""
    work = Path(shutil.copytree(stopped, tmp_path / "work"))

    def go_on(*words: object, command: str = "train", more: str = "") -> tuple[int, str, str]:
        path = tmp_path / "changed.py"
        path.write_text(f"_base_ = [{str(stopped / 'stopping.py')!r}]\n{more}\n")
        return launch(command, path, "--work-dir", work, "--no-validate", *words)

    go_on.folder = work / "float"  # type: ignore[attr-defined]
    return go_on


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optimizer.lr=0.004"], "optimizer.lr 0.01 -> 0.004"),
        (["optimizer.type=Adam"], "optimizer.type 'SGD' -> 'Adam'"),
        (["data.samples_per_gpu=8"], "data.train_dataloader.samples_per_gpu 4 -> 8"),
        (["lr_config.warmup_iters=3"], "lr_config.warmup_iters 2 -> 3"),
        (["accumulate=2"], "accumulate not set -> 2"),
        (["model.bbox_head.num_classes=11"], "model.bbox_head.num_classes 10 -> 11"),
        (["fp16.loss_scale=512."], "fp16.loss_scale not set -> 512.0"),
    ],
)
def test_what_decides_a_training_is_refused_with_what_changed(  # type: ignore[no-untyped-def]
    train, options: list[str], said: str
) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in train.folder.iterdir()}
    command = "run" if options == ["accumulate=2"] else "train"
    error = only_error(train("--resume", "--cfg-options", *options, command=command))
    assert re.search(r"step_1\.pth was made with other settings", error)
    # The values are taken from the tiny config itself.
    name, arrow, now = said.rpartition(" -> ")
    assert name.split()[0] in error
    assert f"{arrow}{now}" in error
    assert f"--resume-with {name.split()[0]}" in error
    assert {p.name: p.stat().st_mtime_ns for p in train.folder.iterdir()} == before


def test_seed_and_norms_are_settings_too(train) -> None:  # type: ignore[no-untyped-def]
    error = only_error(train("--resume", "--seed", "4", "--sync-bn", "off"))
    assert "seed 0 -> 4" in error
    assert "sync_bn 'auto' -> 'off'" in error


def test_a_new_rate_is_applied_where_it_is_asked_for(train) -> None:  # type: ignore[no-untyped-def]
    words = ("--resume", "--cfg-options", "optimizer.lr=0.004", "log_config.interval=1")
    code, out, err = train(*words, "--resume-with", "optimizer.lr")
    assert code == 0, err + out
    assert re.search(r"continuing with other settings than step_1\.pth: .*optimizer\.lr", out)
    assert "log_config.interval 2 -> 1" in out
    group = load_checkpoint(train.folder / "epoch_2.pth")["optimizer"]["param_groups"][0]
    assert group["initial_lr"] == 0.004
    # The new checkpoint contains the new settings.
    code, out, err = train(*words)
    assert code == 0, err + out
    assert "other settings" not in out
    assert "nothing is left to train: 2 epochs are done" in out


@pytest.mark.parametrize(
    ("consent", "more", "said"),
    [
        ("optimizer", "optimizer = dict(_delete_=True, type='SGD', lr=0.001)", "starts again"),
        ("data", "data = dict(samples_per_gpu=8)", "an epoch has 3 steps, not 6"),
        ("accumulate", "accumulate = 2", "an epoch has 3 steps, not 6"),
    ],
)
def test_consented_changes_restart_the_optimizer_or_the_epoch(  # type: ignore[no-untyped-def]
    train, consent: str, more: str, said: str
) -> None:
    code, out, err = train("--resume", "--resume-with", consent, more=more)
    assert code == 0, err + out
    assert said in out


def test_length_is_free_and_an_end_that_is_reached_is_said(  # type: ignore[no-untyped-def]
    train,
) -> None:
    code, out, err = train("--resume", "--cfg-options", "runner.max_epochs=1")
    assert code == 0, err + out
    assert "runner.max_epochs 2 -> 1" in out
    code, out, err = train("--resume", "--cfg-options", "runner.max_epochs=1")
    assert code == 0, err + out
    assert re.search(r"nothing is left to train: 1 epoch is done in .*epoch_1\.pth", out)
    assert out.splitlines()[-1].startswith("float: mAP ")


def test_consent_is_for_settings_of_a_training_that_goes_on(  # type: ignore[no-untyped-def]
    train,
) -> None:
    assert "--resume-with goes with --resume" in only_error(train("--resume-with", "optimizer"))
    error = only_error(train("--resume", "--resume-with", "optimiser.lr"))
    assert "did you mean optimizer?" in error


def test_a_file_goes_to_the_training_it_belongs_to(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--no-validate", "--cfg-options", STEP)
    whole = tmp_path / "whole"
    code, out, err = launch("run", config, "--work-dir", whole, *options)
    assert code == 0, err + out
    floats, quantized = whole / "float/step_5.pth", whole / "qat/step_5.pth"
    error = only_error(launch("train", config, "--work-dir", tmp_path / "a", *options,
                              "--resume", quantized))  # fmt: skip
    assert "is of a quantized training, which `train` is not" in error
    assert f"`qat --resume {quantized}`" in error
    error = only_error(launch("qat", config, "--work-dir", tmp_path / "a", *options,
                              "--checkpoint", float_checkpoint, "--resume", floats))  # fmt: skip
    assert "is of a float training, which `qat` is not" in error
    assert f"--checkpoint {floats}" in error
    assert not list(tmp_path.glob("a/*/*.pth"))

    code, out, err = launch("run", config, "--work-dir", tmp_path / "b", *options,
                            "--resume", floats)  # fmt: skip
    assert code == 0, err + out
    assert f"resumed from {floats}" in out
    assert "is of a float training; the quantized one does not resume from it" in out
    code, out, err = launch("run", config, "--work-dir", whole, *options, "--resume", quantized)
    assert code == 0, err + out
    assert out.count("is done already") == 3


def test_a_job_started_again_goes_on_from_its_newest_whatever_file_it_was_given(  # type: ignore[no-untyped-def]
    train, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = train.folder / "step_1.pth"
    code, out, err = train("--resume", file, "--cfg-options", "runner.max_epochs=1")
    assert code == 0, err + out
    assert f"resumed from {file}" in out
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, out, err = train("--resume", file, "--cfg-options", "runner.max_epochs=1")
    assert code == 0, err + out
    assert re.search(r"resumed from \S*/epoch_1\.pth", out)
    # Without --resume another job's newest checkpoint is not used.
    code, out, err = train("--cfg-options", "runner.max_epochs=1", "optimizer.lr=0.02")
    assert code == 75, err + out  # Stopped after its first step, as the config says.
    assert "is of another config, so a new training starts" in out
    assert "resumed from" not in out

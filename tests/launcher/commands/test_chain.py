"""The main job on two ranks: float -> calibrated -> QAT -> evaluation, as a user starts it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mmcv.runner
import pytest
import torch
from mmdet.models import build_detector

from tests.launcher.conftest import Launch, on_ranks, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished chain of the tiny detector on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = torchrun(2, "run", config, "--work-dir", folder, "--seed", "5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "console.txt").write_text(done.stdout)
    return folder


def metrics_of(text: str) -> dict[str, str]:
    """Return what `launcher eval` prints: names and values with all digits."""
    return dict(re.findall(r"^(mAP|AP50) (\S+)$", text, re.MULTILINE))


def test_chain_prints_table_and_places(experiment: Path) -> None:
    text = (experiment / "console.txt").read_text()
    assert re.search(r"\| mAP, % \| float +\| int8 calibrated +\| int8 QAT +\|", text)
    for stage in ("float", "calibrated", "qat"):
        assert f"{experiment}/{stage}/{stage}.pth" in text
        summary = json.loads((experiment / stage / "summary.json").read_text())
        assert summary["world_size"] == 2
        assert 0.0 <= summary["value"] <= 1.0
    assert (experiment / "plots/training.png").stat().st_size > 5000
    assert (experiment / "results.md").read_text().strip() in text


def test_chain_proves_that_ranges_are_equal(experiment: Path) -> None:
    logs = [(experiment / "logs" / f"rank_{rank}.log").read_text() for rank in (0, 1)]
    for pattern in (r"ranks have the same ranges, digest (\w+)", r"after epoch|digest (\w+)"):
        found = [re.findall(pattern, log) for log in logs]
        assert found[0]
        assert found[0] == found[1]
    calibrations = [log.count("calibrated 25 quantizers") for log in logs]
    assert sum("calibrated" in log and " images in " in log for log in logs) == 1, calibrations


def test_second_run_reuses_every_stage(config: Path, experiment: Path) -> None:
    before = (experiment / "qat/qat.pth").stat().st_mtime_ns
    done = on_ranks(2, "run", config, "--work-dir", experiment, "--seed", "5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is done already") == 3
    assert (experiment / "qat/qat.pth").stat().st_mtime_ns == before


def test_evaluation_is_the_same_on_one_two_and_three_ranks(
    config: Path, experiment: Path, tmp_path: Path
) -> None:
    # 11 images cannot be divided evenly among several ranks.
    for stage in ("float", "qat"):
        results = []
        for ranks in (1, 2, 3):
            done = on_ranks(
                ranks, "eval", config, "--checkpoint", experiment / stage / f"{stage}.pth",
                "--work-dir", tmp_path / f"{stage}{ranks}",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            results.append(metrics_of(done.stdout))
        assert results[0]
        assert results[0] == results[1] == results[2]
        recorded = json.loads((experiment / stage / "summary.json").read_text())["metrics"]
        assert {k: float(v) for k, v in results[0].items()} == recorded


def test_quantized_checkpoint_loads_into_plain_mmdet(config: Path, experiment: Path) -> None:
    read = mmcv.Config.fromfile(str(config))
    for stage in ("float", "calibrated", "qat"):
        plain = build_detector(read.model)
        path = str(experiment / stage / f"{stage}.pth")
        content = mmcv.runner.load_checkpoint(plain, path, map_location="cpu", strict=True)
        assert tuple(content["meta"]["CLASSES"])[:2] == ("zero", "one")
        loaded = plain.state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in content["state_dict"].items())


def test_float_checkpoint_begins_qat_alone_without_a_calibration_before(
    launch: Launch, config: Path, experiment: Path, tmp_path: Path
) -> None:
    code, out, err = launch(
        "qat", config, "--checkpoint", experiment / "float/float.pth", "--work-dir", tmp_path
    )
    assert code == 0, err
    assert re.search(r"calibrated \d+ quantizers on 8 images", out)
    assert (tmp_path / "qat/qat.pth").exists()
    assert (tmp_path / "qat/epoch_1.pth.sha256").exists()


def test_quantize_flag_decides_without_a_command(
    launch: Launch, config: Path, experiment: Path, tmp_path: Path
) -> None:
    path = tmp_path / "flag.py"
    path.write_text(
        f"_base_ = [{str(config)!r}]\nquantize = 'calibration'\n"
        f"load_from = {str(experiment / 'float/float.pth')!r}\n"
    )
    code, out, err = launch(path, "--work-dir", tmp_path)
    assert code == 0, err
    assert (tmp_path / "calibrated/calibrated.pth").exists()
    assert out.splitlines()[-1].startswith("calibrated: mAP ")


def test_chain_with_another_config_does_not_go_on_from_the_old_checkpoints(
    launch: Launch, config: Path, experiment: Path, tmp_path: Path
) -> None:
    import shutil

    work = Path(shutil.copytree(experiment / "float", tmp_path / "work" / "float")).parent
    words = ("--work-dir", work, "--seed", "6", "--resume", "--no-validate")
    code, out, err = launch("run", config, *words)
    assert code == 0, err
    assert "is of another config, so a new training starts" in out
    assert "Epoch [1][" in out
    assert "resumed from" not in out


def test_error_on_one_rank_ends_the_job_and_is_printed_once(
    config: Path, experiment: Path, tmp_path: Path
) -> None:
    # One rank reads a broken image, and no rank waits for it.
    import shutil

    digits = Path(mmcv.Config.fromfile(str(config)).data_root)
    own = Path(shutil.copytree(digits, tmp_path / "own"))
    name = (own / "ImageSets/Main/test.txt").read_text().split()[1]
    (own / "JPEGImages" / f"{name}.jpg").write_bytes(b"no picture")
    done = torchrun(
        2, "eval", config, "--checkpoint", experiment / "qat/qat.pth", "--work-dir", tmp_path / "w",
        "--cfg-options", f"data_root={own}", limit_s=90,
    )  # fmt: skip
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: rank 1: image ")
    assert f"{name}.jpg" in errors[0]
    assert re.search(r"exitcode\s*: 2 ", done.stderr)

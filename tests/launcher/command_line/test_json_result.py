"""``--json`` and ``--quiet``: a script reads one object, and people read the rest on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.command_line.json_result import json_result
from tests.launcher.conftest import Launch


def test_only_the_main_rank_prints_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qat").mkdir()
    (tmp_path / "qat/summary.json").write_text('{"value": 0.5}')
    (tmp_path / "float").mkdir()
    (tmp_path / "float/summary.json").write_text('{"value": 0.')  # Being written.
    for prints in (True, False):
        with json_result(tmp_path, wanted=True, prints=prints) as own:
            print("for people")
            own["files"] = ["a.onnx"]
        out, err = capsys.readouterr()
        assert err == "for people\n"
        wanted = {
            "experiment": str(tmp_path),
            "stages": {"qat": {"value": 0.5}},
            "files": ["a.onnx"],
        }
        assert not prints or json.loads(out) == wanted
        assert prints or out == ""


def test_nothing_is_printed_after_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(RuntimeError),
        json_result(tmp_path, wanted=True, prints=True),
    ):
        raise RuntimeError
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_commands_print_one_object(config: Path, tmp_path: Path, launch: Launch) -> None:
    words = ["--work-dir", tmp_path, "--wandb", "disabled"]
    code, out, err = launch("train", config, "--json", "--quiet", "--no-validate", *words)
    assert code == 0, err
    (found,) = json.loads(out)["stages"].values()
    assert found["stage"] == "float"
    assert "float: mAP" in err  # The result, for people.
    assert "rank 0 of 1" not in err
    assert "rank 0 of 1" in (tmp_path / "logs/rank_0.log").read_text()
    checkpoint = tmp_path / "float" / found["checkpoint"]
    for command in ("calibrate", "eval"):
        code, out, err = launch(command, config, "--json", "--checkpoint", checkpoint, *words)
        assert code == 0, err
        assert "rank 0 of 1" in err
    stages = json.loads(out)["stages"]
    assert list(stages) == ["calibrated", "eval", "float"]
    assert stages["eval"]["metrics"]["mAP"] == stages["float"]["metrics"]["mAP"]
    code, out, err = launch("eval", config, "--json", "--checkpoint", tmp_path / "none", *words)
    assert (code, out) == (2, "")

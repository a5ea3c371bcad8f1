"""The GPU check, tried on a CPU."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.parts import FULL, REHEARSAL, Part, build_mmcv, parts
from tests.conftest import ROOT


def python(name: str, code: str, limit_s: float = 60.0, **rest: object) -> Part:
    return Part(name=name, words=["-c", code], limit_s=limit_s, **rest)  # type: ignore[arg-type]


def test_the_tests_that_it_runs_are_there() -> None:
    for scale in (FULL, REHEARSAL):
        assert scale.tests
        assert all((ROOT / path).exists() for path in scale.tests)


@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_part_that_does_not_exist_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path), "--device", "cpu", "--only", "digits", option, "digts"]
    assert gpu.main(words) == 2
    assert "no part begins with digts; did you mean digits" in capsys.readouterr().err


def test_a_part_tells_how_it_ended(tmp_path: Path) -> None:
    good = gpu.run_part(python("good", "print('| 1 |')"), tmp_path, 60.0)
    assert good["ended"] == "passed"
    assert good["last_lines"][-1] == "| 1 |"
    bad = gpu.run_part(python("bad one", "raise SystemExit(3)"), tmp_path, 60.0)
    assert bad["ended"] == "failed with exit code 3"
    assert (tmp_path / "bad_one.log").exists()
    slow = gpu.run_part(python("slow", "import time; time.sleep(60)", 0.5), tmp_path, 60.0)
    assert slow["ended"] == "out of time"
    assert gpu.run_part(python("late", ""), tmp_path, 3.0)["ended"] == "no time left"


def test_the_page_has_tables_and_counted_tests(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="3"/></testsuites>'
    )
    (tmp_path / "speed.md").write_text("| ms |\n")
    found = [
        {"name": "tests", "ended": "passed", "seconds": 3.0, "files": ["tests.xml"]},
        {"name": "speed", "ended": "passed", "files": ["speed.md", "missing.md"]},
        {"name": "chain", "ended": "passed", "files": [], "last_lines": ["text", "| mAP |"]},
    ]
    page = gpu.page({"gpu": "-"}, found, tmp_path)
    assert "4 passed, 2 failed, 3 skipped" in page
    assert "## speed\n| ms |" in page
    assert "## chain\n| mAP |" in page
    assert "| tests | passed | 3.0 |" in page


@pytest.mark.parametrize("scale", [FULL, REHEARSAL])
def test_every_part_is_a_command_of_its_own(tmp_path: Path, scale: object) -> None:
    made = parts(tmp_path, "cuda", scale)  # type: ignore[arg-type]
    assert len({part.name for part in made}) == len(made)
    assert made[0].name == "digits", "the chain needs data"
    for part in made:
        assert part.command()[:2] == [sys.executable, "-m"]
    assert (ROOT / build_mmcv().command()[1]).exists()


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "use --device cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    code = gpu.main(["--out", str(tmp_path), "--device", "cpu", "--only", "digits", "tests"])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert code == 0, results
    assert [part["name"] for part in results["parts"]] == ["digits", "tests"]
    assert " passed, 0 failed, 0 skipped" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_launches_are_counted() -> None:
    from benchmarks import launches

    given = argparse.Namespace(
        sides=["float", "observing"], size=64, batch=2, device="cpu",
        compile=False, amp=False, channels_last=False, target="int8",
    )  # fmt: skip
    plain, composed, ours = rows = launches.measure("ssd_mobilenet", given)
    assert plain["operators"] < ours["operators"] < composed["operators"] / 4
    assert ours["operators"] < 1.5 * plain["operators"]
    assert ours["waits"] == plain["waits"], "a step of QAT reads the device where float does not"
    counts = {"ssd_mobilenet": launches.num_quantizers("ssd_mobilenet", 64)}
    assert launches.table(rows, counts).count("\n") == 5

"""The comparison of experiments: all table formats, differences, the report in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dq.tracking.pictures.drawing import draw_pair
from dq.tracking.pictures.predictions import (
    Picture,
    Predictions,
    difference,
    lost_objects,
    most_different,
    read_predictions,
    write_predictions,
)
from dq.tracking.record.json_file import write_json
from dq.tracking.record.latency import write_latency
from dq.tracking.record.run import Run
from dq.tracking.record.stage_summary import StageSummary, read_summary, write_summary
from dq.tracking.reports.comparison import (
    HEADS,
    as_json,
    cells,
    comma_separated,
    differences,
    groups_of,
    lines_of,
    markdown,
)
from dq.tracking.reports.experiments import Experiment, find_experiments
from dq.tracking.reports.html_report import html_report
from dq.tracking.tracker import FolderTracker

VALUES = {"float": 0.80, "calibrated": 0.70, "qat": 0.79}


def make(folder: Path, gain: float = 0.0, **config: object) -> Path:
    """Write an experiment in the launcher's format."""
    for stage, value in VALUES.items():
        run = Run(id=f"{folder.name}-{stage}", experiment=folder.name, stage=stage, config=config)
        tracker = FolderTracker(folder / stage, run)
        for step in range(1, 21):
            tracker.log("train", step, {"epoch": step / 10, "loss": 3.0 / step, "lr": 0.1})
        for epoch in (1, 2):
            tracker.log("val", 10 * epoch, {"epoch": epoch, "mAP": value * epoch / 2})
        rows = [
            {"name": f"{kind}{i}", "module": "m", "kind": kind, "bits": 8, "low": -1.0, "high": 1.0,
             "scale": 0.1, "seen_low": -1.2, "seen_high": 1.1, "clipped": 0.01, "sqnr": 30.0 + i,
             "network_sqnr": 20.0 + i if kind == "activation" else None, "histogram": [1]}
            for i in range(5) for kind in ("weight", "activation")
        ]  # fmt: skip
        if stage != "float":
            tracker.table(20, 2, "end", rows)
        tracker.finish(0)
        write_summary(
            folder / stage,
            StageSummary(
                stage=stage, key="k", metric="mAP", value=value + gain, seconds=1800.0,
                world_size=2, sha256=f"{folder.name}{stage}", bits="int8", model_bytes=2_000_000,
                images_per_s=50.0, classes={"cat": value, "dog": value / 2},
                parent=None if stage == "float" else f"{folder.name}float",
            ),
        )  # fmt: skip
    picture = Image.new("RGB", (120, 80), "#446688")
    picture.save(folder / "one.png")
    one = Picture(
        name="one.png", path=str(folder / "one.png"),
        truth=[[10, 10, 40, 40, 0], [60, 20, 100, 70, 1]],
        found=[[10, 10, 40, 40, 0.9, 0]],
        reference=[[10, 10, 40, 40, 0.9, 0], [60, 20, 100, 70, 0.8, 1]],
    )  # fmt: skip
    write_predictions(folder / "qat", Predictions(classes=["cat", "dog"], pictures=[one]))
    draw_pair(one, ["cat", "dog"], folder / "qat/samples/one.jpg", bits="int8")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Experiment]:
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "a", lr=0.1)
    make(folder / "b", gain=0.05, lr=0.2)
    return find_experiments([folder])


def test_the_best_comes_first_with_drop_and_cost(two: list[Experiment]) -> None:
    lines = lines_of(two)
    assert [line.name for line in lines] == ["b", "a"]
    last = lines[1]
    assert (last.acc_float, last.acc_qat) == pytest.approx((80.0, 79.0))
    assert last.drop_calibrated == pytest.approx(10.0)
    assert last.rank_hours == pytest.approx(3.0)
    text = markdown(lines)
    for head in ("Acc Float", "Acc 8bit Calib", "Acc 8bit QAT", "bits", "model MB", "images/s"):
        assert head in text.splitlines()[0]
    rows = list(csv.DictReader(io.StringIO(comma_separated(lines))))
    assert float(rows[0]["acc_qat"]) == pytest.approx(84.0)
    content = json.loads(as_json(lines, differences(two)))
    assert content["differences"] == {"lr": {"a": 0.1, "b": 0.2}}
    assert content["experiments"][0]["model_bytes"] == 2_000_000


def test_an_experiment_without_a_run_differs_in_nothing(tmp_path: Path) -> None:
    make(tmp_path / "a", lr=0.1, depth=18)
    make(tmp_path / "b", lr=0.2, depth=18)
    make(tmp_path / "c", lr=0.3, depth=18)
    (tmp_path / "c/qat/run.json").unlink()
    assert differences(find_experiments([tmp_path])) == {"lr": {"a": 0.1, "b": 0.2}}


def test_the_exported_model_s_speed_has_a_column(tmp_path: Path) -> None:
    make(tmp_path / "timed")
    make(tmp_path / "not_timed")
    for name in ("eval_onnxruntime", "eval_openvino", "eval_torch_int"):
        (tmp_path / "timed" / name).mkdir()
        write_json(tmp_path / "timed" / name / "summary.json", {"metric": "mAP"})
    (tmp_path / "timed/export").mkdir()
    write_latency(tmp_path / "timed/export", "net.onnx", {"times_as_fast": {"median": 1.904}})
    # A folder with an evaluation of an exported model is no experiment of its own.
    lines = {line.name: line for line in lines_of(find_experiments([tmp_path]))}
    assert {name: line.times_as_fast for name, line in lines.items()} == {
        "timed": 1.904,
        "not_timed": None,
    }
    place = list(HEADS).index("times_as_fast")
    shown = {name: cells(line)[place] for name, line in lines.items()}
    assert shown == {"timed": "1.90", "not_timed": ""}


def test_experiments_are_found_by_any_folder_and_named_apart(tmp_path: Path) -> None:
    make(tmp_path / "x/same")
    make(tmp_path / "y/same")
    assert {e.name for e in find_experiments([tmp_path])} == {"x/same", "y/same"}
    assert [e.name for e in find_experiments([tmp_path / "x/same/qat"])] == ["same"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no run in it"):
        find_experiments([tmp_path / "empty"])
    with pytest.raises(ValueError, match="is not a folder"):
        find_experiments([tmp_path / "nowhere"])


def test_a_shared_float_checkpoint_serves_others_and_open_stages_are_named(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    shutil.rmtree(tmp_path / "b/float")
    for stage in ("calibrated", "qat"):
        content = json.loads((tmp_path / "b" / stage / "summary.json").read_text())
        (tmp_path / "b" / stage / "summary.json").write_text(
            json.dumps({**content, "parent": "afloat"})
        )
    (tmp_path / "a/qat/summary.json").unlink()
    lines = {line.name: line for line in lines_of(find_experiments([tmp_path]))}
    assert lines["b"].acc_float == pytest.approx(80.0)
    assert lines["a"].acc_qat is None
    assert lines["a"].state == "qat finished"


def test_lost_objects_are_counted_by_class(two: list[Experiment]) -> None:
    found = read_predictions(two[0].folder / "qat")
    assert found is not None
    assert lost_objects(found) == {
        "cat": {"cat": 1, "dog": 0, "missed": 0},
        "dog": {"cat": 0, "dog": 0, "missed": 1},
    }
    picture = found.pictures[0]
    assert difference(picture) == pytest.approx(0.8)
    same = replace(picture, reference=picture.found)
    both = replace(found, pictures=[same, picture])
    assert most_different(both, 1) == [picture]


def test_the_report_needs_nothing_else_and_shows_all_in_a_browser(
    two: list[Experiment], tmp_path: Path
) -> None:
    text = html_report(lines_of(two), two, differences(two))
    assert "<script" not in text
    assert "http" not in text.split("</style>")[1]
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome")
                    if shutil.which(b)), None)  # fmt: skip
    if browser is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    # The browser counts what it could display: decoded pictures have a width.
    probe = (
        "<script>addEventListener('load',()=>{document.title=JSON.stringify({"
        "plots:[...document.querySelectorAll('img.plot')].filter(i=>i.naturalWidth>300)"
        ".map(i=>i.alt),samples:[...document.querySelectorAll('img.sample')]"
        ".filter(i=>i.naturalWidth>100).length,rows:document.querySelectorAll('.results tbody tr')"
        ".length,differences:document.querySelectorAll('#differences tbody tr').length,"
        "wide:document.documentElement.scrollWidth>innerWidth})})</script>"
    )
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", f"{probe}</body>"))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u",
         "--window-size=1200,900", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    seen = json.loads(title)
    one = ["sqnr", "ranges", "classes", "confusion"]
    assert seen["plots"] == ["curves", *one, *one]
    assert seen["samples"] == 2
    assert seen["rows"] == 2
    assert seen["differences"] == 1
    assert not seen["wide"]


def test_names_with_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.cli import main

    for name in ("[lr=0.1]", "[bold]y", "plain"):
        make(tmp_path / name)
    assert main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name in ("[lr=0.1]", "[bold]y", "plain"):
        assert name in shown


def test_other_metrics_and_data_sets_are_ranked_separately(two: list[Experiment]) -> None:
    lines = lines_of(two)
    others = [replace(line, name=f"other {line.name}", metric="bbox_mAP") for line in lines[:1]]
    elsewhere = [replace(line, name=f"far {line.name}", data="1a2b3c4d") for line in lines[:1]]
    groups = groups_of([*lines, *others, *elsewhere])
    assert [len(group) for group in groups.values()] == [2, 1, 1]
    assert any("1a2b3c4d" in title for title in groups)
    assert markdown([*lines, *others]).count("| experiment") == 2
    report = html_report([*lines, *others], [], {})
    assert report.count("is best") == 2


@pytest.mark.parametrize("stage", ["float", "calibrated"])
@pytest.mark.parametrize("how", ["bbox_mAP", "other annotations"])
def test_a_stage_that_was_measured_otherwise_has_no_number(
    tmp_path: Path, stage: str, how: str
) -> None:
    make(tmp_path / "a")
    summary = read_summary(tmp_path / "a" / stage)
    assert summary is not None
    if how == "other annotations":
        for name in VALUES:
            run = json.loads((tmp_path / "a" / name / "run.json").read_text())
            run["source"]["test_sha256"] = "1" * 64 if name == stage else "2" * 64
            (tmp_path / "a" / name / "run.json").write_text(json.dumps(run))
    else:
        write_summary(tmp_path / "a" / stage, replace(summary, metric=how))
    (line,) = lines_of(find_experiments([tmp_path / "a"]))
    assert line.state == f"{stage} measured by {how}"
    assert (line.metric, line.acc_qat) == ("mAP", 79.0)
    left = {"float": line.acc_float, "calibrated": line.acc_calibrated}
    assert left.pop(stage) is None
    assert None not in left.values()
    assert line.drop_calibrated is None  # It needs both.


def test_a_nan_does_not_disturb_the_order(two: list[Experiment]) -> None:
    runs = []
    for number, value in enumerate([0.1, float("nan"), 0.5, float("nan"), 0.3, float("inf"), 0.4]):
        stages = {k: replace(s, value=value) for k, s in two[0].stages.items()}
        runs.append(replace(two[0], name=f"run{number}", stages=stages))
    assert [line.name for line in lines_of(runs)][:4] == ["run2", "run6", "run4", "run0"]


@pytest.mark.parametrize("name", ["a\nb", "a|b", "a\r\n| b"])
def test_a_row_of_markdown_is_one_line(two: list[Experiment], name: str) -> None:
    lines = [replace(line, name=name) for line in lines_of(two)]
    rows = markdown(lines).splitlines()
    assert len(rows) == 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_summary_that_cannot_be_read_is_not_a_finished_stage(tmp_path: Path) -> None:
    make(tmp_path / "cut")
    (tmp_path / "cut/qat/summary.json").write_text('{"stage": "qa')
    (experiment,) = find_experiments([tmp_path / "cut"])
    (line,) = lines_of([experiment])
    assert line.state == "qat with an unreadable summary"
    assert line.acc_qat is None


def test_json_has_no_nan(two: list[Experiment]) -> None:
    broken = [replace(line, acc_qat=float("nan")) for line in lines_of(two)]
    text = as_json(broken, {"lr": {"a": float("inf")}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    assert found["experiments"][0]["acc_qat"] is None
    assert found["differences"] == {"lr": {"a": None}}

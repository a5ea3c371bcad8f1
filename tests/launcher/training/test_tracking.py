"""Tracking through commands: two ranks, a stop by signal, resuming, with a stub of W&B's server."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from dq.tracking.record.rows import METRICS, read_rows, rows_of_kind
from dq.tracking.record.run import Run, read_run, write_run
from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.training.test_resume import FAULT, rich
from tests.tracking.wandb_stub import stub_server

pytestmark = pytest.mark.slow


def test_two_ranks_make_one_run_that_a_signal_ends_and_resumption_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = FAULT.format(what="SIGTERM", rank=0, step=4, marker=str(tmp_path / "struck"))
    path = rich(config, tmp_path, steps=0, more=more)
    folder = tmp_path / "work/float"
    with stub_server() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        words = ("train", path, "--work-dir", tmp_path / "work", "--wandb", "online")
        stub.at_finish = "hangs"
        # After a signal the command does not wait for a server that hangs.
        assert on_ranks(2, *words, limit_s=120).returncode == 75
        assert stub.exit_codes() == []
        stopped = read_run(folder)
        assert stopped is not None
        assert (stopped.status, stopped.exit_code) == ("stopped", 75)
        assert stopped.training == {"first": 0, "steps": 6}
        stub.at_finish = None
        done = on_ranks(2, *words, "--resume", "auto")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert stub.run_ids() == {stopped.id}
        assert (stub.exit_codes()[0], stub.exit_codes()[-1]) == (75, 0)
        assert stub.summary()["test/mAP"] >= 0.0
    run = read_run(folder)
    assert run is not None
    assert (run.id, run.status) == (stopped.id, "finished")
    assert run.training["steps"] == 6
    # The ranks agree on a step to stop at, which may be the last one.
    assert 0 < run.training["first"] <= 6
    assert run.source["world_size"] == 2
    assert run.source["dataset_sha256"]
    assert run.config["optimizer.lr"] == 0.01
    train = rows_of_kind(folder / METRICS, "train")
    assert [row["step"] for row in train] == [2, 5]
    for name in ("loss", "lr", "grad_norm", "images_per_s", "loading_share", "memory_mib", "phase"):
        assert train[-1][name] is not None
    assert [row["step"] for row in rows_of_kind(folder / METRICS, "val")] == [3, 6]
    assert len(rows_of_kind(folder / METRICS, "test")) == 1


def test_a_quantized_run_keeps_lineage_figures_and_pictures(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    code, _, err = launch("run", config, "--work-dir", tmp_path / "w")
    assert code == 0, err
    runs = {stage: read_run(tmp_path / "w" / stage) for stage in ("float", "calibrated", "qat")}
    assert runs["qat"].parent == runs["calibrated"].id  # type: ignore[union-attr]
    assert runs["calibrated"].parent == runs["float"].id  # type: ignore[union-attr]
    summary = json.loads((tmp_path / "w/qat/summary.json").read_text())
    floating = json.loads((tmp_path / "w/float/summary.json").read_text())
    assert summary["parent_run"] == runs["calibrated"].id  # type: ignore[union-attr]
    assert floating["model_bytes"] > 3 * summary["model_bytes"]
    assert summary["images_per_s"] > 0
    assert summary["classes"]
    tables = list(read_rows(tmp_path / "w/qat/quantizers.jsonl"))
    assert [t["when"] for t in tables] == ["epoch", "end"]
    rows = [dict(zip(tables[0]["columns"], r, strict=True)) for r in tables[-1]["rows"]]
    assert len(rows) == summary["num_quantizers"]
    for row in rows:
        assert row["low"] <= 0.0 <= row["high"]
        assert 0.0 <= row["clipped"] <= 1.0
        assert row["sqnr"] is None or row["sqnr"] > 0.0  # Rounding adds less noise than the signal.
    assert list((tmp_path / "w/qat/samples").glob("*.jpg"))
    kept = json.loads(gzip.decompress((tmp_path / "w/qat/predictions.json.gz").read_bytes()))
    assert len(kept["pictures"]) == 11
    assert all(picture["reference"] is not None for picture in kept["pictures"])
    code, out, err = launch("compare", tmp_path / "w", "--html", tmp_path / "r.html")
    assert code == 0, err
    assert "Acc 8bit QAT" in out.replace("\n", " ") or "8bit" in out
    assert (tmp_path / "r.html").stat().st_size > 100_000


def test_a_read_only_disk_is_one_line(launch: Launch, config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        (disk / "begun/float").mkdir(parents=True)
        write_run(disk / "begun/float", Run(id="abcd1234", experiment="begun", stage="float"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("new", "begun"):
            code, _, err = launch("train", config, "--work-dir", disk / name)
            assert code == 2, err
            assert err == (
                f"error: work dir {disk / name}/logs cannot be written: Read-only file system;"
                " choose another --work-dir\n"
            )
        code, out, err = launch("compare", disk / "begun", "--json", disk / "table.json")
        assert code == 2
        assert "float running" in out
        assert err == (
            f"error: {disk}/table.json cannot be written: Read-only file system; give another"
            " file\n"
        )
        assert launch("compare", disk / "begun", "--json", tmp_path / "table.json")[0] == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_is_mistyped_is_one_line(launch: Launch, config: Path, tmp_path: Path) -> None:
    code, _, err = launch("train", config, "--wandb", "onlin", "--work-dir", tmp_path)
    assert code == 2
    assert err == "error: --wandb onlin is not known; use online, offline, disabled\n"
    words = ("--cfg-options", "tracking.projekt=x", "--work-dir", tmp_path)
    code, _, err = launch("train", config, *words)
    assert code == 2
    assert "tracking.projekt is not a setting; did you mean project?" in err

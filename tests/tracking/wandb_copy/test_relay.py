"""A separate process feeds W&B: what arrives, and what happens in every kind of failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dq.tracking.record.rows import METRICS, rows_of_kind
from dq.tracking.record.run import Run, read_run
from dq.tracking.reports.experiments import find_experiments
from dq.tracking.tracker import FolderTracker, Resumed
from dq.tracking.wandb_copy.mirror import Limits
from dq.tracking.wandb_copy.relay import children
from dq.tracking.wandb_copy.relay_process import Relay
from dq.tracking.wandb_copy.send_offline import (
    _reports_failure,
    mark_sent,
    number_piece,
    pending_runs,
    send,
)
from tests.tracking.wandb_stub import Stub, stub_server

pytestmark = pytest.mark.slow
RUN = Run(id="abcd1234", experiment="exp", stage="qat", config={"optimizer.lr": 0.5})
LIMITS = Limits(init_s=3.0, finish_s=4.0)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    with stub_server() as server:
        use(monkeypatch, server.url, tmp_path)
        yield server


def use(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def wait_for(what: object, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def train(folder: Path, relay: Relay, *, first: int = 1, last: int = 5) -> FolderTracker:
    resumed = Resumed(step=first - 1) if first > 1 else None
    tracker = FolderTracker(folder, RUN, resumed=resumed, relay=relay)
    for step in range(first, last + 1):
        tracker.log("train", step, {"loss": 10.0 - step, "epoch": step / 5})
    return tracker


def ended(relay: Relay, tracker: FolderTracker, code: int = 0) -> list[str]:
    """End the run and return the relay's messages; it must end within its limit."""
    said = relay.listen()
    tracker.finish(code)
    began = time.monotonic()
    process = relay.process
    assert process is not None
    relay.close()
    assert time.monotonic() - began < LIMITS.finish_s + 30
    assert process.poll() is not None
    return said


def test_an_online_run_arrives_with_values_best_and_exit_code(tmp_path: Path, stub: Stub) -> None:
    folder = tmp_path / "exp/qat"
    relay = Relay("online", tmp_path / "wandb.log", Limits(init_s=20, finish_s=20))
    tracker = train(folder, relay)
    tracker.log("val", 5, {"mAP": 0.5, "epoch": 1})
    tracker.log("val", 6, {"mAP": 0.4, "epoch": 2})
    tracker.table(6, 2, "epoch", [{"name": "a", "kind": "weight", "sqnr": 30.0, "clipped": 0.0}])
    (folder / "qat.pth").write_bytes(b"weights")
    tracker.log("checkpoint", 6, {"file": "qat.pth", "sha256": "0" * 64})
    tracker.finish(75)
    relay.close()
    history = stub.history()
    assert [r["train/loss"] for r in history if "train/loss" in r][-1] == 5.0
    assert [r["val/mAP"] for r in history if "val/mAP" in r] == [0.5, 0.4]
    assert stub.summary()["best/mAP"] == 0.5
    # The stub has no artifacts, so the table itself does not arrive; the rest must.
    assert stub.summary()["quantizers/sqnr_mean"] == 30.0
    assert stub.run_ids() == {RUN.id}
    assert stub.exit_codes() == [75]
    assert pending_runs([tmp_path]) == []
    assert "0.5" in str([q for q in stub.queries if "UpsertBucket" in q.get("query", "")])


def test_a_server_that_refuses_or_hangs_leaves_an_offline_run_that_sync_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("refuses", "hangs"):
        caplog.clear()
        stub.hangs = name == "hangs"
        use(monkeypatch, stub.url if stub.hangs else "http://127.0.0.1:9", tmp_path)
        folder = tmp_path / name / "qat"
        relay = Relay("online", tmp_path / f"{name}.log", LIMITS)
        ended(relay, train(folder, relay))
        assert len(rows_of_kind(folder / METRICS, "train")) == 5
        assert caplog.text.count("launcher sync") == 1, caplog.text
        assert list((folder / "wandb").glob("offline-run-*")), name
        stub.hangs = False
    use(monkeypatch, stub.url, tmp_path)
    runs = pending_runs([tmp_path / "refuses"])
    assert runs
    assert [send(run, limit_s=60) for run in runs] == [None] * len(runs)
    assert [r["train/loss"] for r in stub.history() if "train/loss" in r][-1] == 5.0
    assert pending_runs([tmp_path / "refuses"]) == []


def test_a_server_that_dies_midway_delays_the_end_within_its_limit_alone(
    tmp_path: Path, stub: Stub
) -> None:
    stub.dies_after = 1
    folder = tmp_path / "exp/qat"
    relay = Relay("online", tmp_path / "wandb.log", LIMITS)
    tracker = train(folder, relay)
    wait_for(lambda: stub.streams)
    tracker.log("train", 6, {"loss": 4.0})
    ended(relay, tracker)
    assert len(rows_of_kind(folder / METRICS, "train")) == 6
    stub.dies_after = None
    for run in pending_runs([tmp_path]):
        assert send(run, limit_s=60) is None
    assert {4.0} <= {r.get("train/loss") for r in stub.history()}


def test_a_server_that_dies_at_the_end_leaves_a_run_that_sync_sends(
    tmp_path: Path, stub: Stub
) -> None:
    stub.at_finish = "dies"
    folder = tmp_path / "exp/qat"
    relay = Relay("online", tmp_path / "wandb.log", LIMITS)
    ended(relay, train(folder, relay))
    assert stub.is_dead, "the end of the run never came to the server"
    assert stub.exit_codes() == []
    run = read_run(folder)
    assert run is not None
    assert (run.status, run.exit_code) == ("finished", 0)
    assert len(rows_of_kind(folder / METRICS, "train")) == 5
    stub.at_finish, stub.is_dead = None, False
    assert [send(run, limit_s=60) for run in pending_runs([tmp_path])] == [None]
    assert stub.exit_codes() == [0]
    assert [r["train/loss"] for r in stub.history() if "train/loss" in r][-1] == 5.0


def test_after_a_stop_the_relay_is_left_to_itself_and_the_next_waits_for_its_turn(
    tmp_path: Path, stub: Stub
) -> None:
    stub.at_finish = "hangs"
    folder = tmp_path / "exp/qat"
    limits = Limits(init_s=20.0, finish_s=20.0)
    first = Relay("online", tmp_path / "wandb.log", limits)
    train(folder, first, last=3).finish(75)
    left = first.process
    assert left is not None
    first.close(hurry_s=0.5)
    assert left.poll() is None
    second = Relay("online", tmp_path / "wandb.log", limits)
    tracker = train(folder, second, first=4, last=6)
    time.sleep(1.5)
    uploads = len([q for q in stub.queries if "UpsertBucket" in q.get("query", "")])
    assert left.poll() is None
    stub.at_finish = None
    assert left.wait(30.0) == 0
    assert stub.exit_codes()[0] == 75
    ended(second, tracker)
    assert len([q for q in stub.queries if "UpsertBucket" in q.get("query", "")]) > uploads
    assert stub.exit_codes()[-1] == 0
    losses = [r["train/loss"] for r in stub.history() if "train/loss" in r]
    assert losses == sorted(set(losses), reverse=True), "a row was sent twice or out of order"
    assert losses[-1] == 4.0
    assert stub.run_ids() == {RUN.id}


def test_pieces_of_a_resumed_run_join_under_one_id(tmp_path: Path, stub: Stub) -> None:
    folder = tmp_path / "exp/qat"
    for first, last in ((1, 3), (3, 5)):
        relay = Relay("offline", tmp_path / "wandb.log", LIMITS)
        ended(relay, train(folder, relay, first=first, last=last))
        time.sleep(1.1)  # W&B names its folders by the second.
    runs = pending_runs([tmp_path])
    assert len(runs) == 2
    assert [send(run, limit_s=60) for run in runs] == [None, None]
    assert stub.run_ids() == {RUN.id}
    assert [row["step"] for row in rows_of_kind(folder / METRICS, "train")] == [1, 2, 3, 4, 5]


def test_pieces_are_in_order_and_sent_once_whatever_the_clock_said(tmp_path: Path) -> None:
    place = tmp_path / "exp/qat/wandb"
    # The clock is set back before the second piece, and again before the third.
    names = [f"offline-run-2026{day}_101010-abcd" for day in ("0505", "0303", "0404")]
    for name in names:
        (place / name).mkdir(parents=True)
        (place / name / "run-abcd.wandb").write_bytes(b"rows")
        number_piece(place / name)
    assert [run.name for run in pending_runs([tmp_path])] == names
    mark_sent(place / names[1])
    os.utime(place / names[1] / "run-abcd.wandb", (4e9, 4e9))
    assert [run.name for run in pending_runs([tmp_path])] == [names[0], names[2]]
    with (place / names[1] / "run-abcd.wandb").open("ab") as file:
        file.write(b"more")  # It was incomplete when it was sent.
    os.utime(place / names[1] / "run-abcd.wandb", (1, 1))
    assert [run.name for run in pending_runs([tmp_path])] == names


def test_the_death_of_wandbs_service_ends_nothing(tmp_path: Path, stub: Stub) -> None:
    folder = tmp_path / "exp/qat"
    relay = Relay("offline", tmp_path / "wandb.log", LIMITS)
    tracker = train(folder, relay)
    wait_for(lambda: list(folder.glob("wandb/offline-run-*/*.wandb")))
    assert relay.process is not None
    for pid in children(relay.process.pid):
        os.kill(pid, signal.SIGKILL)
    for step in range(6, 14):
        tracker.log("val", step, {"mAP": 0.1})
    ended(relay, tracker)
    assert len(rows_of_kind(folder / METRICS, "val")) == 8


def test_a_killed_training_loses_no_row_and_its_relay_ends(tmp_path: Path, stub: Stub) -> None:
    folder = tmp_path / "exp/qat"
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, '.')\n"
        "from tests.tracking.wandb_copy.test_relay import train, Relay, LIMITS\n"
        "relay = Relay('offline', Path(sys.argv[1]) / 'wandb.log', LIMITS)\n"
        "train(Path(sys.argv[1]) / 'exp/qat', relay, last=50)\n"
        "print(relay.process.pid, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    relay_pid = int(child.stdout.readline())
    assert find_experiments([tmp_path])[0].open_stages == {"qat": "running"}
    child.kill()
    child.wait()
    assert find_experiments([tmp_path])[0].open_stages == {"qat": "died"}
    assert len(rows_of_kind(folder / METRICS, "train")) == 50
    wait_for(lambda: not Path(f"/proc/{relay_pid}").exists()
             or "Z" in Path(f"/proc/{relay_pid}/stat").read_text().split()[2])  # fmt: skip
    runs = pending_runs([tmp_path])
    assert [send(run, limit_s=60) for run in runs] == [None]
    assert [r["train/loss"] for r in stub.history() if "train/loss" in r][-1] == -40.0
    assert stub.exit_codes() == [137]


@pytest.mark.parametrize(
    ("line", "is_failure"),
    [
        ("wandb: ERROR Failed to upload", True),
        ("error: api key not configured", True),
        ("Skipping: /runs/error_cases/fail/wandb/offline-run-1 (no data)", False),
        ("Syncing: http://host/me/p/runs/a ... done.", False),
        ("run 'no error at all' was sent", False),
        ("wandb: uploaded /data/error.log", False),
        ("upload failed for /runs/x", True),
    ],
)
def test_folder_names_are_not_taken_for_failures(line: str, is_failure: bool) -> None:
    assert _reports_failure(line) is is_failure


def test_no_temporary_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    relay = Relay("offline", tmp_path / "log", LIMITS)
    tracker = train(tmp_path / "exp/qat", relay)
    assert list(place.iterdir())
    ended(relay, tracker)
    assert list(place.iterdir()) == []


def test_secrets_reach_neither_the_run_nor_the_server(tmp_path: Path, stub: Stub) -> None:
    config = {"hub.token": "s3cr3t-value", "optimizer.lr": 0.5}
    relay = Relay("online", tmp_path / "wandb.log", Limits(init_s=20, finish_s=20))
    tracker = FolderTracker(tmp_path / "exp/qat", replace(RUN, config=config), relay=relay)
    tracker.log("train", 1, {"loss": 1.0})
    tracker.finish(0)
    relay.close()
    assert "s3cr3t-value" not in (tmp_path / "exp/qat/run.json").read_text()
    assert stub.history()
    assert "s3cr3t-value" not in str(stub.queries)

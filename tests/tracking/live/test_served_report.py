"""The served report: only it is served, it follows its runs, and a browser shows it anew."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dq.tracking.live.served_report import HOST, LiveReport, open_port
from dq.tracking.record.run import Run
from dq.tracking.reports.experiments import Experiment, find_experiments
from dq.tracking.tracker import FolderTracker

# What a browser on another page, or a curious user, may ask for.
REFUSED = (
    "/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/run/qat/run.json",
    "/index.html/..", "/version/", "/.", "/favicon.ico", "http://127.0.0.1/etc/passwd", "/\\..\\x",
)  # fmt: skip


def made(experiments: list[Experiment]) -> str:
    rows = sum((e.folder / "qat/metrics.jsonl").read_text().count("\n") for e in experiments)
    return f"<html><body><h1>{rows} rows</h1></body></html>"


@contextmanager
def served(folder: Path, interval_s: float = 0.05) -> Iterator[int]:
    report = LiveReport(lambda: find_experiments([folder]), made, interval_s)
    with open_port(0, report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def asked(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def tracker(tmp_path: Path) -> FolderTracker:
    run = Run(id="a", experiment="run", stage="qat")
    return FolderTracker(tmp_path / "runs/run/qat", run)


def wait_for(port: int, path: str, words: str, status: int = 200) -> str:
    found = (0, "")
    for _ in range(200):
        found = asked(port, path)
        if words in found[1] and found[0] == status:
            return found[1]
        threading.Event().wait(0.05)
    raise AssertionError(found)


def test_a_browser_that_closes_its_connection_prints_no_traceback(
    tracker: FolderTracker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path / "runs") as port:
        with socket.create_connection((HOST, port)) as connection:
            # Closing then resets the connection, as a browser does that is not interested any more.
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall(b"GET / HT")
        threading.Event().wait(0.3)  # The thread of that connection notices it meanwhile.
        assert asked(port, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_only_the_report_is_served(tracker: FolderTracker, tmp_path: Path) -> None:
    with served(tmp_path / "runs") as port:
        status, page = asked(port, "/")
        assert status == 200
        assert "<h1>0 rows</h1>" in page
        assert asked(port, "/index.html?x=1") == (200, page)
        assert asked(port, "/", "HEAD") == (200, "")
        version = asked(port, "/version")[1]
        assert version in page
        for path in REFUSED:
            assert asked(port, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert asked(port, "/", method)[0] == 501
        for name, status in (("evil.example:80", 403), ("localhost:99", 200), (HOST, 200)):
            assert asked(port, "/", Host=name)[0] == status
        # Only this machine's own address is listened on.
        others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), port)} - {HOST}
        for address in others:
            with pytest.raises(OSError):  # noqa: PT011 (refused, or no such address)
                socket.create_connection((address, port), timeout=2).close()


def test_the_report_follows_its_runs(tracker: FolderTracker, tmp_path: Path) -> None:
    with served(tmp_path / "runs") as port:
        version = asked(port, "/version")[1]
        assert asked(port, "/version")[1] == version
        tracker.log("train", 1, {"loss": 1.0})
        wait_for(port, "/", "1 rows")
        assert asked(port, "/version")[1] != version
        # A further run, and one that vanishes while it is shown.
        other = FolderTracker(tmp_path / "runs/b/qat", Run(id="b", experiment="b", stage="qat"))
        other.log("train", 1, {"loss": 1.0})
        wait_for(port, "/", "2 rows")
        shutil.move(tmp_path / "runs", tmp_path / "moved")
        wait_for(port, "/", "is not a folder", status=503)
        assert asked(port, "/version")[0] == 200
        shutil.move(tmp_path / "moved", tmp_path / "runs")
        wait_for(port, "/", "2 rows")


def test_a_port_that_cannot_be_had_is_a_line(tracker: FolderTracker, tmp_path: Path) -> None:
    report = LiveReport(lambda: find_experiments([tmp_path / "runs"]), made, 1.0)
    with open_port(0, report) as first:
        port = first.server_address[1]
        with pytest.raises(ValueError, match=f"--port {port} is in use; give another, or 0"):
            open_port(port, report)
    for port in (-1, 65536):
        with pytest.raises(ValueError, match=f"--port {port} is no port"):
            open_port(port, report)


def test_a_browser_loads_the_page_again_when_a_run_has_changed(
    tracker: FolderTracker, tmp_path: Path
) -> None:
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome")
                    if shutil.which(b)), None)  # fmt: skip
    if browser is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    # It looks at each request, because the browser's clock runs ahead of this one.
    report = LiveReport(lambda: find_experiments([tmp_path / "runs"]), made, 0.0)
    page_of = report.page

    def page() -> object:
        found = page_of()
        if tracker.last_step == 0:  # The browser gets the first report; then the run goes on.
            tracker.log("train", 1, {"loss": 1.0})
        return found

    report.page = page  # type: ignore[method-assign, assignment]
    with open_port(0, report) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            done = subprocess.run(
                [browser, "--headless", "--no-sandbox", "--disable-gpu",
                 f"--user-data-dir={tmp_path}/u", "--virtual-time-budget=8000", "--dump-dom",
                 f"http://{HOST}:{server.server_address[1]}/"],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        finally:
            server.shutdown()
            thread.join()
    assert "<h1>1 rows</h1>" in done.stdout, json.dumps([done.stdout[-500:], done.stderr[-500:]])
    assert 'id="live"' in done.stdout
    assert "live, made at " in done.stdout

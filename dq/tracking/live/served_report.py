"""The report of a comparison on a local port; it is made again when its runs have changed."""

from __future__ import annotations

import errno
import hashlib
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from dq.tracking.pictures.predictions import FILE_NAME as PREDICTIONS
from dq.tracking.record.rows import METRICS, QUANTIZERS
from dq.tracking.record.run import FILE_NAME as RUN
from dq.tracking.record.stage_summary import FILE_NAME as SUMMARY
from dq.tracking.reports.experiments import Experiment

HOST = "127.0.0.1"
# The names by which a browser on this machine, or at the other end of an ssh tunnel, calls it.
# Other names are refused: a page from elsewhere could make a browser ask under its own name.
_NAMES = (HOST, "localhost")
_FILES = (RUN, SUMMARY, METRICS, QUANTIZERS, PREDICTIONS, "latency.json")
_PAGES = ("/", "/index.html")
_VERSION = "/version"
_LIVE = """<script>
(() => {{
  const note = document.createElement("p");
  note.id = "live";
  note.style.cssText = "position:fixed;right:14px;bottom:10px;margin:0;padding:4px 10px;"
    + "border-radius:8px;font-size:12.5px;background:#1d2433;color:#fff;opacity:.85";
  const say = text => {{ note.textContent = text; }};
  say("live, made at {when}");
  document.body.append(note);
  setInterval(async () => {{
    try {{
      const answer = await fetch("version", {{cache: "no-store"}});
      if ((await answer.text()) !== "{version}") location.reload();
      else say("live, made at {when}");
    }} catch {{ say("launcher compare has ended; this is its last report"); }}
  }}, {milliseconds});
}})();
</script>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report that was made.

    Attributes:
        html: The page, with the script that asks for a newer one.
        version: Different for every other state of the runs.
        status: HTTP status of the answer.
    """

    html: str
    version: str
    status: HTTPStatus = HTTPStatus.OK


class LiveReport:
    """The report; it is made again if it is asked for and the runs have changed.

    Args:
        find: Returns the experiments as they are now.
        make: Returns the report of these experiments as HTML.
        interval_s: Seconds between two looks at the runs' files.

    Raises:
        ValueError: There are no experiments.
    """

    def __init__(
        self,
        find: Callable[[], list[Experiment]],
        make: Callable[[list[Experiment]], str],
        interval_s: float,
    ) -> None:
        self.find, self.make, self.interval_s = find, make, interval_s
        # Requests come from several threads, and plots are drawn by one at a time.
        self._lock = threading.Lock()
        self._page = self._made(find())
        self._looked = time.monotonic()

    def page(self) -> Page:
        """Return the current report; the runs' files are checked at most once per interval."""
        with self._lock:
            if time.monotonic() - self._looked >= self.interval_s:
                self._page = self._newest()
                self._looked = time.monotonic()
            return self._page

    def _newest(self) -> Page:
        try:
            found = self.find()
            return self._page if _version(found) == self._page.version else self._made(found)
        except (ValueError, OSError) as error:
            # A run may be removed; another look may find it again.
            text = f"<!doctype html><html><body><p>{escape(str(error))}</p></body></html>"
            version = hashlib.sha256(text.encode()).hexdigest()
            return self._with_script(text, version, HTTPStatus.SERVICE_UNAVAILABLE)

    def _made(self, found: list[Experiment]) -> Page:
        # Files that change while it is made count as changed at the next look.
        version = _version(found)
        return self._with_script(self.make(found), version, HTTPStatus.OK)

    def _with_script(self, html: str, version: str, status: HTTPStatus) -> Page:
        script = _LIVE.format(
            version=version,
            when=time.strftime("%H:%M:%S"),
            milliseconds=max(200, round(1000 * self.interval_s)),
        )
        head, end, tail = html.rpartition("</body>")
        return Page(html=f"{head}{script}{end}{tail}", version=version, status=status)


def _version(experiments: Iterable[Experiment]) -> str:
    """Return a digest of the files that the report is made of, and of which runs live."""
    seen: list[object] = []
    for experiment in experiments:
        seen.append((str(experiment.folder), sorted(experiment.open_stages.items())))
        for name in _FILES:
            for path in sorted(experiment.folder.glob(f"*/{name}")):
                seen.append((str(path), *_stamp(path)))
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, report: LiveReport) -> None:
        self.report = report
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Print the traceback of an error, but not if the browser has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "dq-launcher", ""
    # Of a client that connects and says nothing.
    timeout = 30.0

    def do_GET(self) -> None:
        """Answer with the report or its version; there is nothing else."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        """Print nothing for each request."""

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get("Host", HOST).partition(":")[0] not in _NAMES:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        path = self.path.partition("?")[0]
        if path not in (*_PAGES, _VERSION):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        page = self.server.report.page()
        is_page = path in _PAGES
        content = (page.html if is_page else page.version).encode()
        self.send_response(page.status if is_page else HTTPStatus.OK)
        kind = "text/html" if is_page else "text/plain"
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def open_port(port: int, report: LiveReport) -> _Server:
    """Return a server that listens on this machine's own address only; close it at the end.

    Args:
        port: The port; 0 takes any that is free.
        report: What it serves.

    Raises:
        ValueError: The port is in use, reserved, or no port.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port {port} is no port; give a number from 0 to 65535")
    try:
        return _Server(port, report)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "is in use" if error.errno == errno.EADDRINUSE else "is reserved"
        raise ValueError(f"--port {port} {reason}; give another, or 0 for any") from error

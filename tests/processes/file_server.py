"""A small HTTP server of files that fails in every known way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    """Serve `files`; `trouble` lists what to do to each request, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.trouble: list[str] = []
        self.asked: list[tuple[str, str | None]] = []

    def url(self, filename: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{filename}"


class Handler(BaseHTTPRequestHandler):
    """Answer GET with or without a range: whole, cut in half, without ranges or with an error."""

    server: Server

    def do_GET(self) -> None:
        filename, asked = self.path.lstrip("/"), self.headers["Range"]
        self.server.asked.append((filename, asked))
        trouble = self.server.trouble.pop(0) if self.server.trouble else "none"
        content = self.server.files.get(filename)
        if trouble.isdigit() or content is None:
            self.send_error(int(trouble) if trouble.isdigit() else 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and start >= len(content):
            self.send_error(416)
            return
        if asked and trouble != "no ranges":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if trouble == "cut" else content)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server; what asks for its files uses no proxy."""
    with pytest.MonkeyPatch.context() as patch, Server() as server:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)

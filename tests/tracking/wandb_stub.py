"""A small server that answers W&B's client and records what it was sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub(ThreadingHTTPServer):
    """The server.

    Attributes:
        streams: Bodies sent to ``file_stream``, in order.
        queries: Bodies of GraphQL requests.
        hangs: If true, requests are never answered.
        dies_after: Number of stream posts after which connections are closed; None for never.
        at_finish: ``dies`` (for good) or ``hangs``: what happens to the post that ends a run.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.streams: list[dict[str, Any]] = []
        self.queries: list[dict[str, Any]] = []
        self.hangs = False
        self.dies_after: int | None = None
        self.at_finish: str | None = None
        self.is_dead = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has gone."""

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of history that were received."""
        rows = []
        for body in self.streams:
            for name, piece in (body.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    rows += [json.loads(line) for line in piece["content"]]
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the last summary that was received."""
        found: dict[str, Any] = {}
        for body in self.streams:
            for name, piece in (body.get("files") or {}).items():
                if name == "wandb-summary.json":
                    found = json.loads(piece["content"][-1])
        return found

    def exit_codes(self) -> list[int]:
        return [body["exitcode"] for body in self.streams if body.get("exitcode") is not None]

    def run_ids(self) -> set[str]:
        found = set()
        for query in self.queries:
            if "UpsertBucket" in query.get("query", ""):
                found.add(str((query.get("variables") or {}).get("name")))
        return found


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            pieces = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                pieces += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return pieces
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        stub = self.server
        while stub.hangs:
            time.sleep(0.2)
        body = self._body()
        content = json.loads(body or b"{}")
        if content.get("exitcode") is not None:
            while stub.at_finish == "hangs":
                time.sleep(0.1)
            stub.is_dead = stub.at_finish == "dies"
        if stub.is_dead:
            self.close_connection = True
            self.connection.close()
            return
        if self.path.endswith("/file_stream"):
            with stub.lock:
                if stub.dies_after is not None and len(stub.streams) >= stub.dies_after:
                    self.close_connection = True
                    self.connection.close()
                    return
                stub.streams.append(content)
            self._answer({})
            return
        with stub.lock:
            stub.queries.append(content)
        query, variables = content.get("query", ""), content.get("variables") or {}
        if "mutation UpsertBucket" in query:
            name = variables.get("name") or "x"
            bucket = {"id": "r", "name": name, "displayName": name, "config": "{}", "project": {
                "name": variables.get("project") or "p", "entity": {"name": "e"}}}  # fmt: skip
            self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        elif "CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{stub.url}/put/{n}"} for n in variables["files"]]
            answer = {"runID": "r", "uploadHeaders": [], "files": files}
            self._answer({"data": {"createRunFiles": answer}})
        elif "upsertView" in query:
            given = {k: variables.get(k) for k in ("name", "displayName", "description", "spec")}
            project = {"id": "p", "name": "p", "entityName": "e"}
            view = {"id": "v1", "type": "runs", "project": project, **given}
            times = {"createdAt": "2026-01-01", "updatedAt": "2026-01-01"}
            self._answer({"data": {"upsertView": {"view": view | times, "inserted": True}}})
        elif "internalId" in query:
            self._answer({"data": {"project": {"internalId": "p"}}})
        elif "GetProjects" in query:
            node = {"id": "p", "name": "dq-launcher", "entityName": "e", "user": None,
                    "createdAt": "2026-01-01", "isBenchmark": False}  # fmt: skip
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            self._answer({"data": {"models": {"pageInfo": page, "edges": [{"node": node}]}}})
        elif "viewer" in query.lower():
            viewer = {"id": "u", "entity": "e", "username": "u", "flags": "{}"}
            self._answer({"data": {"viewer": viewer}})
        else:
            self._answer({"data": {}})


@contextmanager
def stub_server() -> Iterator[Stub]:
    """Run a server until the end of the body."""
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hangs, server.at_finish = False, None
        server.shutdown()
        server.server_close()

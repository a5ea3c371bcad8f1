"""A wrong MASTER_ADDR or MASTER_PORT is one line with the address, without a C++ stack."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes.ports import free_port


@contextmanager
def another_service() -> Iterator[int]:
    """Yield the port of a service that is not a store and answers with another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def nobody() -> Iterator[int]:
    """Yield a port without a listener."""
    yield free_port()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "host", "there"),
    [
        (1, "127.0.0.1", another_service),
        (1, "127.0.0.1", nobody),
        (1, "no.such.host.invalid", nobody),
        (0, "127.0.0.1", another_service),
        (0, "no.such.host.invalid", nobody),
    ],
)
def test_a_wrong_address_is_one_line(
    rank: int, host: str, there: object, config: Path, tmp_path: Path
) -> None:
    """The main rank holds the store, so the address of another node also misleads itself."""
    with there() as port:  # type: ignore[operator]
        place = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "RANK": str(rank)}
        place |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        place["WORLD_SIZE"] = "2"
        environ = {**os.environ, **place, "GROUP_WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "launcher", "train", str(config), "--device", "cpu"]
        done = subprocess.run(
            [*command, "--work-dir", str(tmp_path / "w"), "--arrival-timeout", "3"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1, done.stderr[-2000:]
    (line,) = done.stderr.strip().splitlines()
    named = f"rank {rank} of 2 found no process group at MASTER_ADDR:MASTER_PORT"
    assert line.startswith(f"error: {f'rank {rank}: ' if rank else ''}{named}")
    assert f"{host}:{port}" in line

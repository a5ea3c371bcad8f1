"""Two hosts on one machine: network namespaces with an address each and a virtual cable."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launcher.conftest import ROOT

PORT = 29411


@dataclass(frozen=True, slots=True)
class Node:
    """A host.

    Attributes:
        name: Name of its namespace.
        address: Address at which the other host reaches it.
        interface: The network interface of this address.
    """

    name: str
    address: str
    interface: str

    def start(
        self, meet: Node, *words: object, output: Path, nodes: str = "2", ranks: int = 1,
        options: tuple[str, ...] = (), conf: str = "",
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        """Start torchrun with the launcher here, as a user does on each host.

        Args:
            meet: The host of the rendezvous.
            words: The launcher's command line.
            output: A file for all output.
            nodes: torchrun's ``--nnodes``.
            ranks: Number of ranks on this host.
            options: More options of torchrun.
            conf: More of its ``--rdzv-conf``.
        """
        command = [
            *("ip", "netns", "exec", self.name),
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", nodes, "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"{meet.address}:{PORT}", "--rdzv-id", "two-nodes"),
            # torchrun would look up its own host name, which does not depend on the namespace.
            *("--rdzv-conf", ",".join(filter(None, [f"is_host={int(self == meet)}", conf]))),
            *("--local-addr", self.address, *options, "-m", "launcher", *map(str, words)),
        ]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.interface}
        # Without it a host that joins later never gets an answer (torch 2.14).
        environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with output.open("wb") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT
            )

    def processes(self) -> list[int]:
        """Return the processes that run on this host."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]

    def lose_power(self) -> None:
        """Kill all processes here at once, also torchrun's agent."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pull_cable(self) -> None:
        """Disconnect the host without notice to the other."""
        _ip("-n", self.name, "link", "set", self.interface, "down")


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Create two hosts, and remove them with all their processes.

    Skips the test if this process may not create network namespaces.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("two hosts are network namespaces, which need root and iproute2's ip")
    mark = uuid.uuid4().hex[:6]
    first, second = (
        Node(f"dq-{side}-{mark}", f"10.203.77.{number}", f"v{side}{mark}")
        for number, side in enumerate("ab", start=1)
    )
    made = subprocess.run(
        ["ip", "netns", "add", first.name], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a network namespace cannot be made here: {made.stderr.strip()}")
    try:
        _ip("netns", "add", second.name)
        _ip("link", "add", first.interface, "netns", first.name, "type", "veth",
            "peer", "name", second.interface, "netns", second.name)  # fmt: skip
        for node in (first, second):
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.interface)
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "link", "set", node.interface, "up")
        yield first, second
    finally:
        for node in (first, second):
            node.lose_power()
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

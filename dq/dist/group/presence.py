"""Detect whether another rank's process is alive, independent of that rank's Python interpreter.

Each rank has a listening socket to which the others connect. While it works it accepts nothing and
sends nothing: the kernel keeps the connection and closes it when the process ends, for whatever
reason. A machine that vanishes is detected by TCP keepalive probes. If a rank ends with an error
that has been printed, it first sends its exit code, so that the others need not print theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator

from torch.distributed import DistError, ProcessGroup
from torch.distributed.distributed_c10d import Store, _get_default_group

from dq.dist.exchange import collectives
from dq.dist.rendezvous.store import open_store
from dq.proc import boot_id

CONNECT_S, AGAIN_S = 3.0, 30.0
# Keepalive: idle time, interval and number of probes. A machine counts as gone after 90 seconds.
PROBES = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
LOCAL = "127.0.0.1"


class Presence:
    """This rank's socket and its connections to other ranks; they live as long as the group.

    Args:
        store: A client that only this object uses.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connections: dict[int, Connection] = {}
        self._watchers: list[socket.socket] = []
        self._socket = _listener(collectives.world_size())
        # A forked process that outlives this one would keep the socket open, as if it still lived.
        mine = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close(mine()))
        port = self._socket.getsockname()[1]
        place = {"machine": _machine(), "address": _own_address(), "port": port}
        try:
            store.set(str(collectives.rank()), json.dumps(place))
        except BaseException:
            self.close()  # Nobody has this object, so nobody else could.
            raise

    def of(self, rank: int) -> Connection:
        """Return the connection to another rank, always the same object."""
        if rank not in self._connections:
            self._connections[rank] = Connection(self._store, rank)
        return self._connections[rank]

    def tell_reported(self, code: int) -> None:
        """Tell all ranks that watch this one that the error has been printed; waits for nobody.

        Args:
            code: The exit code that goes with it, 1 to 255.
        """
        self._socket.setblocking(False)
        while True:
            try:
                watcher, _ = self._socket.accept()
            except OSError:
                return  # Nobody else has connected, or the socket is closed.
            self._watchers.append(watcher)
            with contextlib.suppress(OSError):
                watcher.setblocking(False)
                watcher.send(bytes([code]))

    def close(self) -> None:
        """Close all sockets."""
        for watcher in self._watchers:
            watcher.close()
        self._socket.close()
        for connection in self._connections.values():
            connection.close()


class Connection:
    """What this rank knows about another rank's process.

    Args:
        store: Has the address.
        rank: The other rank.
    """

    def __init__(self, store: Store, rank: int) -> None:
        self._store, self._rank = store, rank
        self._socket: socket.socket | None = None
        self._gone = False
        self._code: int | None = None
        self._next_try = 0.0

    @property
    def reported_code(self) -> int | None:
        """The exit code of the rank if it has printed its error; the store is not asked."""
        self._read()
        return self._code

    @property
    def is_open(self) -> bool:
        """Whether the process can be watched at all: a network may block connections."""
        return self._socket is not None

    @property
    def is_known_gone(self) -> bool:
        """Whether an open connection says that the process has ended; the store is not asked."""
        self._read()
        return self._gone

    def open(self) -> None:
        """Connect as soon as the other rank can be reached; waits for its address.

        Raises:
            DistError: The store, which has the address, is gone, or the rank has not come.
        """
        self._store.wait([str(self._rank)])
        if self._socket is None:
            self._connect()

    def is_gone(self) -> bool:
        """Whether the process is known to have ended; False if that is unknown.

        Raises:
            DistError: The store, which has the address, is gone.
        """
        if self._socket is None and not self._gone and time.monotonic() >= self._next_try:
            self._connect()
        return self.is_known_gone

    def _read(self) -> None:
        if self._socket is None or self._gone:
            return
        try:
            words = self._socket.recv(16)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if words:
            self._code = words[-1]
        self._gone = not words

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _connect(self) -> None:
        if not self._store.check([str(self._rank)]):
            return  # It will come, or the caller's time limit ends the wait.
        place = json.loads(self._store.get(str(self._rank)))
        same = place["machine"] == _machine()
        address = LOCAL if same else place["address"]
        self._next_try = time.monotonic() + AGAIN_S
        if not address:
            return
        try:
            found = socket.create_connection((address, place["port"]), timeout=CONNECT_S)
        except ConnectionRefusedError:
            # At a private address of another network, a wrong machine may have refused.
            self._gone = same
            return
        except OSError:
            return
        found.setblocking(False)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES:
            with contextlib.suppress(AttributeError, OSError):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket = found


_presences: weakref.WeakKeyDictionary[ProcessGroup, Presence] = weakref.WeakKeyDictionary()


def presence() -> Presence:
    """Return this rank's presence in the group, created at the first call.

    Raises:
        ValueError: There is no process group.
        DistError: The store is gone.
    """
    group = _get_default_group()
    if group not in _presences:
        _presences[group] = Presence(open_store("presence"))
    return _presences[group]


@contextlib.contextmanager
def watchable() -> Iterator[None]:
    """Let others watch this process until the body ends."""
    here = presence()
    try:
        if not collectives.is_main_rank():
            # Open before anything can go wrong, so the main rank's last word reaches this one.
            here.of(0).open()
        yield
    finally:
        here.close()


def read_key(store: Store, key: str, limit_s: float = 3.0) -> bytes | None:
    """Read a key from a store that may be gone together with the rank that was watched.

    A client tries for long to reach a dead server, so a new client is used, in a thread.

    Args:
        store: Where the rank would have written it.
        key: The key.
        limit_s: Seconds to wait for the answer.

    Returns:
        None if the key or the store does not exist.
    """
    found: list[bytes] = []

    def ask() -> None:
        with contextlib.suppress(DistError, RuntimeError):
            own = store.clone()
            if own.check([key]):
                found.append(own.get(key))

    thread = threading.Thread(target=ask, name="dq-last-word", daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else None


def _close(found: Presence | None) -> None:
    if found is not None:
        found.close()


def _listener(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=backlog)


def _machine() -> list[str]:
    """Return what is equal for two processes that reach each other at the local address."""
    boot = boot_id()
    found = [boot] if boot else []
    with contextlib.suppress(OSError):
        found.append(os.readlink("/proc/self/ns/net"))
    return found if len(found) == 2 else [socket.gethostname(), str(os.getpid())]


def _own_address() -> str:
    """Return the address at which other machines reach this one.

    It is the address this machine uses to reach the store. On the store's own machine that is a
    local address, but the others know that machine by MASTER_ADDR.
    """
    name = os.environ.get("MASTER_ADDR", "")
    if not name:
        return ""
    with contextlib.suppress(OSError, ValueError):
        kind, _, _, _, target = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # A datagram socket: nothing is sent.
            own = str(probe.getsockname()[0])
        return name if own.startswith("127.") or own in ("::1", target[0]) else own
    return ""

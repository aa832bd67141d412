"""Connections of which nothing is left but the socket; all of them in one epoll object.

The loop watches that object as a single reader. An idle connection costs its entry there and
one small object; no task, no transport, no protocol.
"""

import asyncio
import os
import select
import socket
from asyncio.trsock import TransportSocket
from typing import Protocol

from gateway.hub.subscriber import Subscriber
from gateway.hub.writing import count_unacknowledged, write_one

_EVENTS_A_TURN = 1024
_DROPPED_BYTES = 65536
_DROPS = 16  # Reads of unasked input before a close; who sends more than a mebibyte gets a reset.

AVAILABLE = hasattr(select, "epoll")
"""Whether this system can do it: Linux."""

if AVAILABLE:
    # Unasked input is left in the kernel, which bounds it.
    _IDLE = select.EPOLLRDHUP
    _FULL = select.EPOLLRDHUP | select.EPOLLOUT
    _GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Owner(Protocol):
    """What is told about connections: the hub."""

    def writable(self, subscriber: Subscriber) -> None:
        """The connection takes more again."""

    def leave(self, subscriber: Subscriber) -> None:
        """The reader is gone."""


class SocketConnection:
    """One stream's socket, non-blocking and owned by this object; `head` goes out first."""

    __slots__ = ("_head", "_rest", "_sockets", "fd", "subscriber")

    def __init__(self, sockets: "Sockets", fd: int, head: bytes) -> None:
        self.fd = fd
        self.subscriber: Subscriber | None = None
        self._sockets = sockets
        self._head = head
        self._rest: memoryview | None = None

    def write(self, chunk: bytes) -> bool:
        """Take the whole chunk; return whether more is taken at once."""
        if self.fd < 0:
            return False
        if self._head:
            chunk, self._head = self._head + chunk, b""
        assert self._rest is None, "nothing is written while the rest of a chunk is unsent"
        outcome = write_one(self.fd, chunk)
        if outcome == len(chunk):
            return True
        self.keep(chunk, outcome)
        return False

    def keep(self, chunk: bytes, outcome: int) -> None:
        """Go on with a chunk of which `outcome` bytes were written, or which failed."""
        if outcome < 0:
            self._sockets.fail(self)
            return
        # The chunk is shared by all who got it: of the rest there is no copy.
        self._rest = memoryview(chunk)[outcome:]
        self._sockets.watch(self.fd, _FULL)

    def flush(self) -> bool:
        """Write more of the rest; return whether nothing of it is left."""
        if self._rest is None:
            return True
        outcome = write_one(self.fd, self._rest)
        if outcome < 0:
            self._sockets.fail(self)
            return False
        if outcome < len(self._rest):
            self._rest = self._rest[outcome:]
            return False
        self._rest = None
        self._sockets.watch(self.fd, _IDLE)
        return True

    def count_unsent(self) -> int:
        """Return how many bytes the reader has not got yet, here and in the kernel."""
        return (len(self._rest) if self._rest else 0) + count_unacknowledged(self.fd)

    def close(self) -> None:
        """Close the socket; a rest that is unsent is dropped. A second call does nothing."""
        if self.fd >= 0:
            self._sockets.close(self)
            self.fd, self.subscriber, self._rest = -1, None, None

    abort = close


class Sockets:
    """The sockets of this worker's streams. Only for Linux: see AVAILABLE."""

    def __init__(self, owner: Owner, send_buffer_bytes: int = 0) -> None:
        self._owner = owner
        self._send_buffer_bytes = send_buffer_bytes
        self._connections: dict[int, SocketConnection] = {}
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        return len(self._connections)

    def take(self, source: TransportSocket, head: bytes) -> SocketConnection:
        """Return a connection over a duplicate of a socket, whose owner closes its own.

        Raises OSError, as when no file descriptor is left.
        """
        epoll = self._epoll or self._open()
        fd = os.dup(source.fileno())
        try:
            if self._send_buffer_bytes:
                source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
            epoll.register(fd, _IDLE)
        except OSError:
            os.close(fd)
            raise
        connection = self._connections[fd] = SocketConnection(self, fd, head)
        return connection

    def _open(self) -> "select.epoll":
        self._epoll = select.epoll()
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        return self._epoll

    def close_all(self) -> None:
        """Close what is left, and the epoll object."""
        for connection in list(self._connections.values()):
            connection.close()
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def watch(self, fd: int, events: int) -> None:
        """Change what is waited for at a socket."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def _look(self) -> None:
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0, _EVENTS_A_TURN):
            # It may have been closed for an event before this one; its number is not in use
            # again yet, as nothing is accepted meanwhile.
            connection = self._connections.get(fd)
            if connection is None:
                continue
            if events & _GONE:
                self.drop(connection)
            elif connection.flush() and connection.subscriber is not None:
                self._owner.writable(connection.subscriber)

    def fail(self, connection: SocketConnection) -> None:
        """Let go of a connection that could not be written to, once the pass is over."""
        asyncio.get_running_loop().call_soon(self.drop, connection)

    def drop(self, connection: SocketConnection) -> None:
        """Take a reader that is gone off the hub, then close its socket."""
        if connection.subscriber is not None:
            self._owner.leave(connection.subscriber)
        connection.close()

    def close(self, connection: SocketConnection) -> None:
        """Close a connection's socket, for good."""
        assert self._epoll is not None
        fd = connection.fd
        del self._connections[fd]
        self._epoll.unregister(fd)
        _drop_input(fd)
        os.close(fd)


def _drop_input(fd: int) -> None:
    """Read what was sent unasked: a close with input unread resets the connection.

    The reader would lose what it has not read yet. Source: RFC 1122 4.2.2.13.
    """
    try:
        for _ in range(_DROPS):
            if len(os.read(fd, _DROPPED_BYTES)) < _DROPPED_BYTES:
                return
    except OSError:
        return  # Nothing there, or nobody.

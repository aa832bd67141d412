"""A stream that is read in a thread while the block runs; what is read is not looked at here."""

import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from benchmarks.peers.base import Server


class StreamThread(ABC):
    """Opens a stream, and reads it on `core` from the block's beginning to its end.

    `headers` are lines of the request. `receive_buffer_bytes` of 0 are the system's choice.
    """

    def __init__(
        self, server: Server, channel: str, core: int, *headers: str, receive_buffer_bytes: int = 0
    ) -> None:
        self._core = core
        self._closing = False
        self._connection = socket.socket()
        if receive_buffer_bytes:
            # Before it connects: the window that is offered then never shrinks.
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._connection.settimeout(10)
        self._connection.connect((server.host, server.port))
        lines = (f"GET {server.stream_path(channel)} HTTP/1.1", f"Host: {server.host}",
                 "Accept: text/event-stream", *headers, "", "")  # fmt: skip
        self._connection.sendall("\r\n".join(lines).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError(f"no stream: {head[:60]!r}")
            head += byte
        self._head = head
        self._connection.settimeout(None)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self._core})  # Of this thread alone.
        self._read()

    @abstractmethod
    def _read(self) -> None:
        """Read to the end; in the thread."""

    @staticmethod
    def _wait(done: Callable[[], bool], seconds: float) -> None:
        """Return when `done` says so, or after so many seconds."""
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            time.sleep(0.01)

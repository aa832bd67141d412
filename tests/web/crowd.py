"""A crowd of connections that are opened, brought into every state there is, and killed.

Run as a program beside the gateway: `python -m tests.web.crowd HOST PORT SIZE SEED`. For every
line on its standard input it opens SIZE connections and says so; at the next line it kills them
and says so again.
"""

import random
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 10)]
_HEAD = b" HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
_STREAM = b"GET /events/a" + _HEAD
_REPLAY = b"GET /events/past?since=1h" + _HEAD

# What is sent, how often, and whether an answer is waited for.
STATES: dict[str, tuple[int, list[bytes], bool]] = {
    "before the request": (10, [b""], False),
    "in the middle of the request": (10, [_STREAM, b"GET /eve", _STREAM[:30]], False),
    "idle": (30, [_STREAM + b"\r\n"], True),
    "idle, in a coding": (5, [_STREAM + b"Accept-Encoding: gzip\r\n\r\n"], True),
    "kept by aiohttp": (5, [_STREAM + b"Content-Length: 2\r\n\r\n{}"], True),
    "with input": (5, [_STREAM + b"\r\n" + _STREAM, _STREAM + b"\r\n" + b"x" * 999], True),
    "resuming": (5, [_STREAM + b"Last-Event-ID: %b\r\n\r\n" % id for id in (b"1-0", b"?")], True),
    "replaying": (5, [_REPLAY + b"\r\n"], True),
    "gone before the answer": (10, [_STREAM + b"\r\n", _REPLAY + b"\r\n"], False),
    "HEAD": (5, [_STREAM.replace(b"GET", b"HEAD") + b"\r\n"], True),
    "wrong": (
        10,
        [
            b"?\r\n\r\n",
            b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /events/?? HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /events/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12",
            b"GET /events/a?since=never HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ],
        True,
    ),
}  # fmt: skip
SMALL_BUFFER_BYTES = 4096


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def read_and_close(sock: socket.socket) -> None:
    sock.setblocking(False)
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass
    sock.close()


KILLS: list[Callable[[socket.socket], None]] = [close, reset, half_close, read_and_close]


class Crowd:
    """Connections from several addresses."""

    def __init__(self, host: str, port: int, size: int, seed: int) -> None:
        self._address = (host, port)
        self._size = size
        self._random = random.Random(seed)
        self._weights = [weight for weight, _, _ in STATES.values()]
        self._sockets: list[socket.socket] = []

    def open(self) -> None:
        """Open all, and wait for those answers that come."""
        waiting = []
        for number in range(self._size):
            sock = socket.socket()
            sock.settimeout(30)
            if number % 3 == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            # The port is chosen by connect(): each pair of addresses has all of them.
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT of Linux.
            sock.bind((ADDRESSES[number % len(ADDRESSES)], 0))
            sock.connect(self._address)
            name = self._random.choices(list(STATES), self._weights)[0]
            _, requests, answered = STATES[name]
            sock.sendall(self._random.choice(requests))
            if name == "gone before the answer":
                self._random.choice(KILLS[:2])(sock)
                continue
            self._sockets.append(sock)
            if answered:
                waiting.append(sock)
        for sock in waiting:
            if not sock.recv(1):
                raise EOFError("a connection was closed without an answer")

    def kill(self) -> None:
        """End all, each in one way or another."""
        self._random.shuffle(self._sockets)
        for sock in self._sockets:
            self._random.choice(KILLS)(sock)

    def bury(self) -> None:
        """Close those that have only half closed."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()


def main() -> None:
    host, port, size, seed = sys.argv[1], *map(int, sys.argv[2:5])
    crowd = Crowd(host, port, size, seed)
    steps = (crowd.open, crowd.kill, crowd.bury)
    for number, _ in enumerate(sys.stdin):
        steps[number % 3]()
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

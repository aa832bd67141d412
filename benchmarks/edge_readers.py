"""Crowds of readers in one process: streams, slices and long-polls; nothing is published here.

Events are `{"n":NUMBER,"t":TIME}`: numbers from 0 up by one, the time is
`time.perf_counter_ns` when it was published.
A reader counts what is missing, doubled or out of order.
"""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import orjson

EVENT = re.compile(rb'"n":(\d+),"t":(\d+)')
BOUNDARY = re.compile(rb"id: (\d+)-0")
RETRY_SECONDS = 0.5
# What an edge takes at once without refusing: Varnish starts a thread for each.
OPENING_AT_ONCE = 32


@dataclass
class Arrivals:
    """What a crowd got: milliseconds from publish to arrival, and what went wrong."""

    ms: list[float] = field(default_factory=list)
    connected_ms: list[float] = field(default_factory=list)
    """Of these, those that were published while their reader was connected."""
    missing: int = 0
    doubled: int = 0
    gaps: int = 0
    lost: int = 0
    """Connections that ended in the middle of an answer, or had another status than 200."""

    def problems(self) -> list[str]:
        """Return what keeps a run from being complete."""
        counts = {
            "missing": self.missing, "doubled or out of order": self.doubled,
            "gaps": self.gaps, "answers lost": self.lost,
        }  # fmt: skip
        return [f"{count:,} {name}" for name, count in counts.items() if count]


class Reader(asyncio.Protocol):
    """One reader with one connection, which it keeps from answer to answer."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        self.crowd = crowd
        self.number = number
        self.expected = crowd.first
        self.ends = 0
        self.opened = False
        self.connected_ns = 0
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._left = 0
        self._in_body = self._chunked = False

    def path(self) -> str:
        raise NotImplementedError

    def took(self, body: bytes) -> None:
        """Take a piece of the body."""
        raise NotImplementedError

    def ended(self) -> None:
        """Take the end of a whole answer."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Connect and ask."""
        crowd = self.crowd
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, crowd.host, crowd.port)
        except OSError:
            self._again()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pending, self._in_body = b"", False
        self.ask()

    def ask(self) -> None:
        """Send the next request."""
        if self._transport is None:
            self._start_connecting()
        elif not self.crowd.closed:
            address = f"10.{self.number >> 16}.{self.number >> 8 & 255}.{self.number & 255}"
            self._transport.write(
                f"GET {self.path()} HTTP/1.1\r\nHost: edge\r\nX-Forwarded-For: {address}\r\n"
                f"Accept: {self.crowd.accept}\r\n\r\n".encode()
            )

    def data_received(self, data: bytes) -> None:
        data = self._pending + data
        while data:
            if not self._in_body:
                head, separator, rest = data.partition(b"\r\n\r\n")
                if not separator:
                    break
                data = rest
                self._take_head(head.lower())
            elif self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self.took(piece)
            if self._in_body and not self._left:
                if not self._chunked:
                    self._end()
                    continue
                # A chunk's own line end comes before the next size.
                found = re.match(rb"(?:\r\n)?([0-9a-f]+)\r\n", data, re.IGNORECASE)
                if not found:
                    break
                self._left = int(found[1], 16)
                if not self._left:
                    if not data[found.end() :].startswith(b"\r\n"):
                        self._left = 0
                        break
                    data = data[found.end() + 2 :]
                    self._end()
                else:
                    data = data[found.end() :]
        self._pending = data

    def _take_head(self, head: bytes) -> None:
        if b" 200" not in head[:13]:
            self.crowd.arrivals.lost += 1
        self._in_body = True
        self._chunked = b"transfer-encoding: chunked" in head
        length = re.search(rb"content-length: (\d+)", head)
        self._left = int(length[1]) if length else 0
        if not length and not self._chunked:
            # Up to the connection's end.
            self._left = 1 << 62
        self.connected_ns = time.perf_counter_ns()
        if not self.opened:
            self.opened = True
            self.crowd.opened += 1

    def _end(self) -> None:
        self._in_body = False
        self.ended()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        if self.crowd.closed:
            return
        if self._in_body:
            self.crowd.arrivals.lost += 1
            self._again()
        elif not self.opened:
            self._again()

    def _again(self) -> None:
        self.crowd.retried += 1
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._start_connecting)

    def _start_connecting(self) -> None:
        if not self.crowd.closed:
            self.crowd.start(self.connect())

    def deliver(self, number: int, published_ns: int) -> None:
        """Count one event."""
        arrivals = self.crowd.arrivals
        if number < self.expected:
            arrivals.doubled += 1
            return
        arrivals.missing += number - self.expected
        self.expected = number + 1
        ms = (time.perf_counter_ns() - published_ns) / 1e6
        arrivals.ms.append(ms)
        if published_ns > self.connected_ns:
            arrivals.connected_ms.append(ms)

    def close(self) -> None:
        """Let go."""
        if self._transport:
            self._transport.abort()


class StreamReader(Reader):
    """Follows one address as an EventSource does: `/events/…` or `/slices/current/…`."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        super().__init__(crowd, number)
        self.had: list[tuple[int, int]] = []
        """At each slice's end: the boundary's milliseconds, and how many events had come."""
        self._text = b""

    def path(self) -> str:
        return self.crowd.path

    def took(self, body: bytes) -> None:
        *blocks, self._text = (self._text + body).split(b"\n\n")
        for block in blocks:
            if b"event: gap" in block:
                self.crowd.arrivals.gaps += 1
            elif b"event: end" in block:
                self.ends += 1
                if boundary := BOUNDARY.search(block):
                    self.had.append((int(boundary[1]), self.expected))
            elif found := EVENT.search(block):
                self.deliver(int(found[1]), int(found[2]))

    def ended(self) -> None:
        self._text = b""
        asyncio.get_running_loop().call_later(RETRY_SECONDS, self.ask)


class PollReader(Reader):
    """Long-polls history as the documentation says: by `next` and `cursor` of the last answer."""

    def __init__(self, crowd: "Crowd", number: int) -> None:
        super().__init__(crowd, number)
        self._after, self._cursor, self._body = crowd.after, "", b""

    def path(self) -> str:
        path = f"{self.crowd.path}?after={self._after}&limit=100&wait={self.crowd.wait}"
        return path + (f"&cursor={self._cursor}" if self._cursor else "")

    def took(self, body: bytes) -> None:
        self._body += body

    def ended(self) -> None:
        try:
            page = orjson.loads(self._body)
            events, self._after, self._cursor = page["events"], page["next"], page["cursor"]
        except (ValueError, KeyError):
            # Another answer than a page is counted already; ask again, but not at once.
            self._body = b""
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.ask)
            return
        self._body = b""
        self.ends += 1
        self.crowd.arrivals.gaps += bool(page["gap"])
        for event in events:
            self.deliver(event["data"]["n"], event["data"]["t"])
        self.ask()


class Crowd:
    """So many readers of one path; `first` is the number of the first event they are to get.

    `after` and `wait` are those of long-polls.
    """

    def __init__(
        self,
        kind: Callable[["Crowd", int], Reader],
        address: str,
        path: str,
        count: int,
        *,
        first: int = 0,
        after: str = "",
        wait: int = 25,
    ) -> None:
        self.host, _, port = address.rpartition("//")[2].partition(":")
        self.port = int(port)
        self.path, self.first, self.after, self.wait = path, first, after, wait
        self.accept = "text/event-stream" if kind is StreamReader else "application/json"
        self.arrivals = Arrivals()
        self.opened = self.retried = 0
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.readers = [kind(self, number + 1) for number in range(count)]

    def start(self, connecting: Coroutine[Any, Any, None]) -> None:
        """Keep a task until it is over."""
        task = asyncio.create_task(connecting)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self, *, answers: bool = True) -> None:
        """Open all; with `answers`, wait until each has the head of an answer."""
        for at in range(0, len(self.readers), OPENING_AT_ONCE):
            some = self.readers[at : at + OPENING_AT_ONCE]
            await asyncio.gather(*(one.connect() for one in some))
            if answers:
                await wait_for(lambda some=some: all(one.opened for one in some))  # type: ignore[misc]

    async def until(self, events: int, seconds: float = 30.0) -> list[str]:
        """Wait until all have had all events; return what keeps the run from being complete."""
        await wait_for(lambda: all(one.expected >= events for one in self.readers), seconds)
        never = sum(max(0, events - one.expected) for one in self.readers)
        return self.arrivals.problems() + ([f"{never:,} never came"] if never else [])

    async def close(self) -> None:
        """Let all go."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self.readers:
            reader.close()
        await asyncio.sleep(0.1)


async def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds, or for so many seconds; what is lacking then is counted."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110 - other processes' doing.
        await asyncio.sleep(0.02)

"""A client of the HTTP interface that adds and undoes nothing: what was sent is what is seen."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from gateway.app import Gateway
from gateway.hub.tail import Tail
from gateway.protocol.position import Position
from tests.running import Block, Stream, Valkey, Worker, follow, until

NDJSON = {"Content-Type": "application/x-ndjson"}
EVENT_SOURCE = {"Accept": "text/event-stream"}


class Answer:
    """A response that was read to its end."""

    def __init__(self, status: int, headers: CIMultiDictProxy[str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:500]!r})"

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document, its fixed members checked."""
        assert self.headers["Content-Type"] == "application/problem+json"
        document: dict[str, Any] = self.json
        assert document["type"] == "about:blank"
        assert document["status"] == self.status
        assert document["title"]
        assert document["detail"]
        return document


def _has_reached(tail: Tail, position: Position) -> bool:
    return tail.mirror.tailed >= position


class Client:
    """Requests to one worker."""

    def __init__(self, session: aiohttp.ClientSession, worker: Worker) -> None:
        self._session = session
        self.worker = worker

    @property
    def gateway(self) -> Gateway:
        return self.worker.gateway

    def url(self, path: str) -> URL:
        return URL(self.worker.url + path, encoded=True)

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        data: bytes | None = None,
    ) -> Answer:
        body = data if data is None or len(data) < 1 << 20 else io.BytesIO(data)
        async with self._session.request(
            method, self.url(path), headers=headers, data=body, allow_redirects=False
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(
        self, path: str, headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    ) -> Answer:
        return await self.ask("GET", path, headers)

    async def post(
        self, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await self.ask("POST", path, headers or {}, data)

    async def publish(self, channel: str, data: bytes, query: str = "") -> str:
        """Publish one event of JSON or text and return its position."""
        answer = await self.post(f"/publish/{channel}{query}", data)
        assert answer.status == 200, answer
        return str(answer.json["id"])

    async def publish_lines(self, lines: Sequence[Mapping[str, object]]) -> list[str]:
        """Publish one batch and return the positions."""
        answer = await self.post("/publish", b"\n".join(map(orjson.dumps, lines)), NDJSON)
        assert answer.status == 200, answer
        return list(answer.json["ids"])

    async def settle(self) -> None:
        """Wait until this worker has tailed all that is stored now."""
        for name, tail in self.gateway.tails.items():
            life = await self.gateway.store.greet(name)
            await until(partial(_has_reached, tail, life.last))

    async def data_of(self, channel: str) -> list[object]:
        """Return the data of all that the channel's ring holds now."""
        await self.settle()
        answer = await self.get(f"/history/{channel}?limit=1000")
        return [entry["data"] for entry in answer.json["events"]]

    def follow(
        self, path: str, last_event_id: str | None = None
    ) -> AbstractAsyncContextManager[Stream]:
        return follow(self._session, str(self.url(path)), last_event_id)


async def digest(redis: Valkey) -> bytes:
    """Return a digest of everything that the store holds."""
    async with redis.client() as client:
        answer: bytes = await client.execute_command("DEBUG", "DIGEST")
        return answer


async def first_id(stream: Stream) -> str:
    """Return the id of the block that every stream begins with."""
    block = await stream.next()
    assert block is not None
    assert (block.type, block.data) == ("", None)
    return block.id


async def event(stream: Stream) -> tuple[str, str, str]:
    """Return the next event's id, type and data."""
    block = await stream.next()
    assert block is not None, "the stream ended"
    assert block.data is not None, block
    return block.id, block.type, block.data


def gap_of(block: Block | None) -> dict[str, Any]:
    """Return what a gap says."""
    assert block is not None
    assert block.type == "gap", block
    assert block.data is not None
    document: dict[str, Any] = orjson.loads(block.data)
    return document


class RawStream:
    """A stream over HTTP/1.0 (so that no chunks stand between its bytes), read only on demand."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = bytearray()
        self.longest_pause = 0.0

    async def read_until(self, end: bytes) -> bytes:
        """Read on until `end` has come; return everything so far, the head taken off."""
        searched = 0
        async with asyncio.timeout(20):
            while self._received.find(end, max(0, searched - len(end))) < 0:
                searched = len(self._received)
                await self.read_more()
        return self.body

    async def read_more(self) -> None:
        """Read what is there; fails at the stream's end."""
        if not await self._receive():
            raise EOFError(f"it ended: {bytes(self._received[-300:])!r}")

    async def read_slowly(self, bytes_a_second: int) -> None:
        """Read on until cancelled; `longest_pause`, in seconds, tells how steady the pace was."""
        clock = asyncio.get_running_loop().time
        before = clock()
        try:
            while True:
                await self._receive(bytes_a_second // 20)
                self.longest_pause = max(self.longest_pause, clock() - before)
                before = clock()
                await asyncio.sleep(1 / 20)
        finally:
            self.longest_pause = max(self.longest_pause, clock() - before)

    async def read_to_end(self) -> bytes:
        """Read until the other side closes; return everything, the head taken off."""
        async with asyncio.timeout(20):
            while await self._receive():
                pass
        return self.body

    def widen(self) -> None:
        """Take a small receive buffer off the connection: what follows is read at full speed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    async def _receive(self, limit_bytes: int = 1 << 20) -> bool:
        more = await asyncio.get_running_loop().sock_recv(self._socket, limit_bytes)
        self._received += more
        return bool(more)

    @property
    def head(self) -> bytes:
        return bytes(self._received).partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return bytes(self._received).partition(b"\r\n\r\n")[2]


@asynccontextmanager
async def open_raw(
    worker: Worker, path: str, headers: bytes = b"", *, receive_buffer_bytes: int = 0
) -> AsyncIterator[RawStream]:
    """Send a GET by hand and leave reading to the test."""
    address = urlsplit(worker.url)
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (address.hostname, address.port))
        request = b"GET %b HTTP/1.0\r\nHost: localhost\r\n%b\r\n"
        await loop.sock_sendall(sock, request % (path.encode(), headers))
        yield RawStream(sock)

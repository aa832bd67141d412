"""Streams in a content coding: decoded, each is byte for byte what a plain reader gets.

Readers of one selection share encoders, join and fall behind when they like, and come back with
the last id that they have seen. Everything is real: Valkey, the gateway, HTTP.
"""

import asyncio
import os
import random
import socket
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from gateway.protocol.stream_coding import STREAM_CODINGS
from tests.hub.streaming import decoder, without_heartbeats, without_last_word
from tests.running import Valkey, Worker, until, worker
from tests.web.client import Client

CODINGS = ("identity", *STREAM_CODINGS)
TRANSPORTS = ("socket", "response")
BUFFER_BYTES = 4096
PHRASES = [random.Random(-number).randbytes(50).hex() for number in range(1, 41)]
SETTINGS: dict[str, Any] = {
    "namespaces": {
        "default": {
            "stream_codings": list(STREAM_CODINGS),
            "ring_limit_events": 100_000,
            "ring_limit_bytes": 1 << 28,
        }
    },
}
STREAMS = {
    # Buffers as small as they get, so that whoever reads nothing is soon behind.
    "send_buffer_bytes": BUFFER_BYTES,
    "buffer_limit_bytes": BUFFER_BYTES,
    "heartbeat_seconds": 0.1,
    "join_ms": 2,
}


class Reader:
    """One follower over any number of connections; `blocks` is what came of each, decoded."""

    def __init__(self, worker: Worker, path: str, coding: str) -> None:
        self.coding = coding
        self.reading = True
        self.bodies: list[bytes] = []
        self.starts: list[str] = []
        self._address = urlsplit(worker.url)
        self._path = path
        self._socket: socket.socket | None = None
        self._head = b""

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def last_id(self) -> str:
        """The last id that came in a whole block, over all connections."""
        for body in reversed(self.bodies):
            whole = body[: body.rfind(b"\n\n") + 2]
            at = whole.rfind(b"id: ")
            if at >= 0:
                return whole[at + 4 : whole.index(b"\n", at)].decode()
        return ""

    async def connect(self) -> None:
        """Open a stream, where the last one ended."""
        loop = asyncio.get_running_loop()
        sock = self._socket = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        await loop.sock_connect(sock, (self._address.hostname, self._address.port))
        # Over HTTP/1.0 nothing but the body comes after the head.
        request = f"GET {self._path} HTTP/1.0\r\nAccept: text/event-stream\r\n"
        if self.coding != "identity":
            request += f"Accept-Encoding: {self.coding}\r\n"
        if self.last_id:
            request += f"Last-Event-ID: {self.last_id}\r\n"
        self.starts.append(self.last_id)
        self.bodies.append(b"")
        self._decode = decoder(self.coding)
        self._head = b""
        await loop.sock_sendall(sock, request.encode() + b"\r\n")

    def disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def read(self, limit_bytes: int = 1 << 20) -> None:
        """Read what is there and decode it; whatever has come can be decoded at once."""
        while self._socket is not None and limit_bytes > 0:
            try:
                data = self._socket.recv(min(limit_bytes, 1 << 16))
            except BlockingIOError:
                return
            if not data:
                self.disconnect()
                return
            limit_bytes -= len(data)
            self._take(data)

    def _take(self, data: bytes) -> None:
        if not self._head.endswith(b"\r\n\r\n"):
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            self._head = head + end
            if not end:
                return
            assert self._head.startswith(b"HTTP/1.0 200 ") or self._head.startswith(
                b"HTTP/1.1 200 "
            )
            coded = f"content-encoding: {self.coding}\r\n".encode() in self._head.lower()
            assert coded is (self.coding != "identity")
        self.bodies[-1] += self._decode(data)


_number = st.integers(0, 100)
_sizes = st.lists(st.sampled_from([1, 30, 300, 3000, 20_000]), min_size=1, max_size=20)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), _sizes),
        st.tuples(st.just("publish"), _sizes),
        st.tuples(st.sampled_from(["join", "leave", "pause", "go on", "read some"]), _number),
        st.tuples(st.just("wait"), st.integers(1, 30)),
        st.tuples(st.just("drain"), st.just(0)),
    ),
    min_size=5,
    max_size=30,
)


def text(number: int, size: int) -> str:
    """Return data that repeats what events long before it said, and some that is new."""
    chance = random.Random(number)
    old = (chance.choice(PHRASES) for _ in range(1 + size // 200))
    return f"{number} {''.join(old)} {chance.randbytes(size // 4).hex()}"


class Scene:
    """One channel, those who follow it, and one who does so plainly from beginning to end."""

    def __init__(self, client: Client, channel: str) -> None:
        self._client = client
        self._channel = channel
        self.ids: list[str] = []
        self.path = f"/events/{channel}"
        self.plain = Reader(client.worker, self.path, "identity")
        self.readers: list[Reader] = []

    async def join(self, coding: str) -> None:
        reader = Reader(self._client.worker, self.path, coding)
        self.readers.append(reader)
        await reader.connect()

    async def step(self, name: str, argument: Any) -> None:
        if name == "publish":
            first = len(self.ids)
            self.ids += await self._client.publish_lines(
                [
                    {"channel": self._channel, "data": text(first + n, size)}
                    for n, size in enumerate(argument)
                ]
            )
        elif name == "wait":
            for _ in range(argument):
                self.read()
                await asyncio.sleep(0)
        elif name == "drain":
            self._client.gateway.hub.drain()
            self.read()
        elif name == "join" and len(self.readers) < 12:
            await self.join(CODINGS[argument % 3])
        else:
            await self._have(self.readers[argument % len(self.readers)], name, argument)

    async def _have(self, reader: Reader, name: str, argument: int) -> None:
        match name:
            case "leave":
                reader.disconnect()
            case "pause":
                reader.reading = False
            case "go on":
                reader.reading = True
                if not reader.connected:
                    await reader.connect()
            case "read some":
                reader.read(argument * 50)

    def read(self) -> None:
        for reader in [self.plain, *self.readers]:
            if reader.reading:
                reader.read()

    async def end(self) -> None:
        """Have everybody come back and read all there is."""
        for reader in [self.plain, *self.readers]:
            reader.reading = True
        last = self.ids[-1] if self.ids else ""
        async with asyncio.timeout(30):
            while any(reader.last_id != last for reader in [self.plain, *self.readers]) and last:
                for reader in [self.plain, *self.readers]:
                    reader.read()
                    if not reader.connected:
                        await reader.connect()
                await asyncio.sleep(0.001)

    def close(self) -> None:
        for reader in [self.plain, *self.readers]:
            reader.disconnect()

    def check(self) -> None:
        """Fail unless every body is what a plain one is from its position on."""
        frames = frames_of(self.plain)
        assert list(frames) == self.ids
        for reader in [self.plain, *self.readers]:
            got: list[str] = []
            for start, body in zip(reader.starts, reader.bodies, strict=True):
                got += check_body(frames, start, body)
            begun = self.ids.index(got[0]) if got else len(self.ids)
            assert got == self.ids[begun:], reader.coding


def frames_of(reader: Reader) -> dict[str, bytes]:
    """Return the plain frames of all events by their ids."""
    frames = {}
    for body in reader.bodies:
        for block in body.split(b"\n\n")[:-1]:
            if block.startswith(b"id: "):
                frames[block[4 : block.index(b"\n")].decode()] = block + b"\n\n"
    return frames


def check_body(frames: dict[str, bytes], start: str, body: bytes) -> list[str]:
    """Return the ids of the whole events of a body, each of them checked."""
    first, end, rest = without_last_word(without_heartbeats(body)).partition(b"\n\n")
    if not end:
        return []
    assert first.startswith(b"retry: 2000\nid: ")
    position = first[16:].decode()
    assert position == start or not start
    got: list[str] = []
    for id, frame in frames.items():
        if order(id) > order(position):
            if not rest.startswith(frame):
                # It ended there, within an event or before.
                assert frame.startswith(rest), rest[:200]
                return got
            rest = rest[len(frame) :]
            got.append(id)
    assert not rest
    return got


def order(id: str) -> tuple[int, int]:
    ms, _, seq = id.partition("-")
    return int(ms), int(seq)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_stream_decodes_to_what_a_plain_reader_gets(
    redis: Valkey, session: aiohttp.ClientSession, transport: str
) -> None:
    numbers = iter(range(10**6))
    async with AsyncExitStack() as stack:
        options = {**SETTINGS, "streams": {**STREAMS, "transport": transport}}
        running = await stack.enter_async_context(worker(redis.url, options))
        client = Client(session, running)
        loop = asyncio.get_running_loop()

        async def live(steps: list[tuple[str, Any]]) -> None:
            scene = Scene(client, f"scene/{next(numbers)}")
            await scene.plain.connect()
            try:
                while not scene.plain.last_id:
                    scene.read()
                    await asyncio.sleep(0)
                for coding in CODINGS * 2:
                    await scene.join(coding)
                for name, argument in steps:
                    await scene.step(name, argument)
                await scene.end()
                scene.check()
            finally:
                scene.close()
            await until(lambda: running.gateway.hub.subscribers == 0)

        @settings(
            max_examples=int(os.environ.get("CODED_EXAMPLES", "60")),
            deadline=None,
            report_multiple_bugs=False,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(steps=_steps)
        def check(steps: list[tuple[str, Any]]) -> None:
            asyncio.run_coroutine_threadsafe(live(steps), loop).result()

        # Hypothesis is not of this loop: it runs beside it, one example after the other.
        await asyncio.to_thread(check)
        assert running.gateway.hub.counters.lags > 10
        assert running.gateway.hub.counters.gaps == 0

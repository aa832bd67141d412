"""A hub with real streams and no store: sockets on one side, a mirror filled by hand on the other.

Every reader knows what it must get, byte by byte.
"""

import asyncio
import re
import select
import socket
import struct
import zlib
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

import zstandard
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from gateway.hub.heartbeats import HEARTBEAT
from gateway.hub.hub import Hub, HubOptions
from gateway.hub.mirror import Mirror
from gateway.hub.rings import RingReader
from gateway.hub.sockets import Sockets
from gateway.hub.subscriber import Connection, Subscriber
from gateway.hub.subscription import Subscription
from gateway.hub.tail import Tail
from gateway.protocol.event import Event
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.selector import Selection, parse_selection
from gateway.protocol.sse import encode_block, encode_enveloped, encode_event
from gateway.protocol.stream_coding import opening_of
from gateway.store.scripts import ChannelContents
from gateway.web.kept_transport import ResponseConnection
from tests.store.opening import open_store
from tests.tcp import cut_off

Kind = Literal["pair", "tcp", "kept"]
"""A taken-over Unix socket, a taken-over TCP connection, or aiohttp's transport."""

START = Position(1, 0)
LIFE = Life("epoch", "generation", clock=START, floor=START, last=START)
_UNAVAILABLE = re.compile(rb'retry: \d+\nevent: unavailable\ndata: {"reason":"\w+"}\n\n\Z')
_Decode = Callable[[bytes], bytes]


class NoStates:
    """Nobody conflates here."""

    def peek(self, mirror: Mirror, channel: str) -> bytes | None:
        raise AssertionError(channel)

    async def load(self, tail: Tail, channel: str) -> None:
        raise AssertionError(channel)


def selection_of(selectors: Sequence[str]) -> Selection:
    selection = parse_selection(selectors, ())
    return replace(selection, enveloped=selection.single is None)


def socket_pair(kind: Kind, receive_buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Return the reader's and the gateway's end of a connection; neither blocks."""
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            reader = socket.socket()
            if receive_buffer_bytes:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            reader.connect(server.getsockname())
            writer, _ = server.accept()
            writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    return reader, writer


class World:
    """One worker's hub, what it was given, and everybody who reads from it."""

    def __init__(
        self, options: HubOptions, send_buffer_bytes: int = 0, ring_limit_events: int = 10**6
    ) -> None:
        rules = Namespace(
            "default", ring_limit_events=ring_limit_events, ring_limit_bytes=1 << 30,
            ring_age_seconds=10**9,
        )  # fmt: skip
        self.mirror = Mirror(rules, 1 << 30)
        self.mirror.restart(LIFE, {})
        self.hub = Hub(options, NoStates())
        self.sockets = Sockets(self.hub, send_buffer_bytes)
        self.history: list[Event] = []
        self.readers: list[Reader] = []
        self.kept: set[asyncio.Task[None]] = set()
        self.transports: list[asyncio.Transport] = []
        self.send_buffer_bytes = send_buffer_bytes
        self._spare: dict[Kind, deque[tuple[socket.socket, socket.socket]]] = {}

    # -- publishers ---------------------------------------------------------------------------

    def publish(self, *events: tuple[str, bytes]) -> None:
        """Tail a batch of events, each a channel and its data."""
        made: list[Event] = []
        for channel, data in events:
            known = self.mirror.index.get(channel)
            past = [event.id for event in made if event.channel == channel]
            prev = past[-1] if past else known.last if known else ORIGIN
            made.append(Event(Position(2 + len(self.history), 0), prev, channel, data, json=True))
            self.history.append(made[-1])
        self.hub.take(self.mirror, self.mirror.take(made))

    def begin_anew(self) -> None:
        """Do what a tail does after a break of the bus; the rings are read at once."""
        before, index = self.mirror.head, dict(self.mirror.index)
        life = replace(LIFE, clock=self.mirror.tailed, last=self.mirror.tailed)
        self.mirror.restart(life, index)
        for channel, entry in index.items():
            ring = [event for event in self.history if event.channel == channel]
            assert self.mirror.add_ring(channel, ChannelContents(entry, ring, {}), life.last)
        self.hub.restart(self.mirror, before)

    # -- readers ------------------------------------------------------------------------------

    def keep_spare(self, count: int, kind: Kind = "pair", receive_buffer_bytes: int = 0) -> None:
        """Make connections beforehand, so that a newcomer's first fd is the one freed last."""
        pairs = [socket_pair(kind, receive_buffer_bytes) for _ in range(count)]
        self._spare.setdefault(kind, deque()).extend(pairs)

    def pair(self, kind: Kind) -> tuple[socket.socket, socket.socket]:
        spare = self._spare.get(kind)
        return spare.popleft() if spare else socket_pair(kind)

    def join(self, *selectors: str, **more: Any) -> "Reader":
        """Open a stream on a socket that is taken over."""
        reader = Reader(self, selection_of(selectors), **more)
        reader.hand_over()
        self.readers.append(reader)
        return reader

    async def join_kept(self, *selectors: str, **more: Any) -> "Reader":
        """Open a stream on a transport of aiohttp's."""
        reader = Reader(self, selection_of(selectors), **more)
        await reader.keep()
        self.readers.append(reader)
        return reader

    def subscription(self, *selectors: str) -> Subscription:
        """Return the subscription that somebody follows these selectors by."""
        selection = selection_of(selectors)
        for reader in self.readers:
            if reader.selection == selection and reader.subscriber.open:
                return reader.subscriber.subscription
        raise AssertionError(f"nobody follows {selectors}")

    def take_turn(self) -> None:
        """Have everybody who reads read what has come."""
        for reader in self.readers:
            if reader.reading:
                reader.read()

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Let time pass, and readers read, until something holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.take_turn()
                if not condition():
                    await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until everybody who reads has got all there is for it."""
        await self.until(lambda: all(r.whole or r.ended or not r.reading for r in self.readers))

    def close(self) -> None:
        self.sockets.close_all()
        for reader in self.readers:
            reader.socket.close()
        for spare in self._spare.values():
            for pair in spare:
                for sock in pair:
                    sock.close()


class _Protocol(BaseProtocol):
    """Tells that the connection is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: asyncio.Event) -> None:
        super().__init__(loop)
        self._lost = lost

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._lost.set()


class Reader:
    """One stream and what came of it. `whole` and `check` tell whether it is what it must be."""

    def __init__(
        self,
        world: World,
        selection: Selection,
        *,
        kind: Kind = "pair",
        coding: str = "identity",
        position: Position | None = None,
        since: bool = False,
        ends: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        self.world = world
        self.selection = selection
        self.start = world.mirror.head if position is None else position
        self.reading = True
        self.ended = False
        self.body = b""
        self._decode = decoder(coding)
        self._coding = coding
        self._position = position
        self._since = since
        self._checked = 0
        self.socket, self._writer = ends or world.pair(kind)
        self._begin()

    def _begin(self) -> None:
        self._expected = encode_block(retry_ms=2000, id=self.start)
        self._seen = sum(event.id <= self.start for event in self.world.history)

    def _join(self, connection: Connection) -> Subscriber:
        world = self.world
        return world.hub.join(
            connection, world.mirror, self.selection, self._position,
            since=self._since, coding=self._coding,
        )  # fmt: skip

    def hand_over(self) -> None:
        """Do what a handler does that takes the socket over."""
        head = opening_of(self._coding)
        taken = self.world.sockets.take(TransportSocket(self._writer), head)
        self._writer.close()
        self.subscriber = taken.subscriber = self._join(taken)

    async def keep(self) -> None:
        """Do what a handler does whose transport is kept."""
        hub, loop = self.world.hub, asyncio.get_running_loop()
        lost = asyncio.Event()
        transport, protocol = await loop.connect_accepted_socket(
            lambda: _Protocol(loop, lost), self._writer
        )
        self.world.transports.append(transport)
        if self._position is None:
            self.start = self.world.mirror.head
            self._begin()
        size = self.world.send_buffer_bytes
        connection = ResponseConnection(
            StreamWriter(protocol, loop), transport, size or 65536, opening_of(self._coding), size
        )
        self.subscriber = self._join(connection)

        async def serve() -> None:
            # As a handler, which is cancelled when its connection is lost.
            serving = loop.create_task(connection.serve(lambda: hub.writable(self.subscriber)))
            losing = loop.create_task(lost.wait())
            try:
                await asyncio.wait([serving, losing], return_when=asyncio.FIRST_COMPLETED)
            finally:
                hub.leave(self.subscriber)
                serving.cancel()
                losing.cancel()
                await asyncio.gather(serving, losing, return_exceptions=True)
                transport.close()

        task = loop.create_task(serve())
        self.world.kept.add(task)
        task.add_done_callback(self.world.kept.discard)

    # -- what it does -------------------------------------------------------------------------

    def read(self) -> None:
        """Read what has come, and check it."""
        while not self.ended:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            self.ended = not data
            self.body += self._decode(data)
        self.check()

    def say(self, data: bytes) -> None:
        """Send what nobody asked for."""
        with suppress(BlockingIOError, BrokenPipeError):
            self.socket.send(data)

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection; for TCP, `reset` says to do so without a word of goodbye."""
        if reset and self.socket.family == socket.AF_INET:
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()
        self.reading, self.ended = False, True

    # -- what it must get ---------------------------------------------------------------------

    @property
    def beats(self) -> int:
        """How many heartbeats came."""
        return self.body.count(HEARTBEAT)

    @property
    def events(self) -> bytes:
        """What came, heartbeats and a last word taken off."""
        return without_last_word(without_heartbeats(self.body) if self.beats else self.body)

    @property
    def expected(self) -> bytes:
        """All that is to have come by now."""
        encode = encode_enveloped if self.selection.enveloped else encode_event
        history = self.world.history
        self._expected += b"".join(
            encode(event)
            for event in history[self._seen :]
            if self.selection.matches(event.channel)
        )
        self._seen = len(history)
        return self._expected

    @property
    def whole(self) -> bool:
        return len(self.events) == len(self.expected)

    @property
    def unavailable(self) -> bool:
        """Whether it was told that its stream ends."""
        return _UNAVAILABLE.search(self.body, max(0, len(self.body) - 200)) is not None

    @property
    def position(self) -> Position:
        """The last id that came whole."""
        whole = self.body[: self.body.rfind(b"\n\n") + 2]
        at = whole.rfind(b"id: ")
        return (
            Position.parse(whole[at + 4 : whole.index(b"\n", at)].decode()) if whole else self.start
        )

    def check(self) -> None:
        """Fail unless what came is the beginning of what was to come, whole before a last word."""
        if len(self.body) == self._checked:
            return
        self._checked = len(self.body)
        events = self.events
        expected = self.expected[: len(events)]
        assert events == expected, f"{events[-300:]!r} in place of {expected[-300:]!r}"
        if self.unavailable:
            assert events.endswith(b"\n\n")


def without_heartbeats(body: bytes) -> bytes:
    """Take out comments, but only where a block may stand."""
    return b"\n\n".join(block for block in body.split(b"\n\n") if block != HEARTBEAT[:-2])


def without_last_word(body: bytes) -> bytes:
    """Take off what says that the stream ends, or as much of it as was sent."""
    at = body.rfind(b"\n\n", 0, -2) + 2 if body.endswith(b"\n\n") else body.rfind(b"\n\n") + 2
    last = body[at:]
    # Other blocks begin with an id; but for the first one, before which there is none.
    if at < 2 or not last or not b"retry: ".startswith(last[:7]):
        return body
    assert not last.endswith(b"\n\n") or _UNAVAILABLE.fullmatch(last), last
    return body[:at]


def decoder(coding: str) -> _Decode:
    """Return what decodes a body piece by piece; each piece at once."""
    if coding == "gzip":
        return zlib.decompressobj(31).decompress
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress
    return bytes


def is_readable(sock: socket.socket) -> bool:
    """Tell whether something has come that was not read yet."""
    return bool(select.select([sock], [], [], 0)[0])


@asynccontextmanager
async def streaming(
    *,
    join_seconds: float = 0.0,
    heartbeat_seconds: float = 1000.0,
    write_timeout_seconds: float = 1000.0,
    send_buffer_bytes: int = 0,
    ring_limit_events: int = 10**6,
) -> AsyncIterator[World]:
    """Run a hub for as long as the block; nothing is left of it afterwards."""
    options = HubOptions(
        heartbeat_seconds=heartbeat_seconds,
        write_timeout_seconds=write_timeout_seconds,
        join_seconds=join_seconds,
    )
    world = World(options, send_buffer_bytes, ring_limit_events)
    failures: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    # Nobody asks this store for anything: what a replay needs is in the mirror.
    async with open_store("redis://127.0.0.1:1") as store:
        tail = Tail(store, world.mirror, [world.hub], 1)
        running = asyncio.create_task(world.hub.run(RingReader(store), [tail]))
        try:
            yield world
            assert not running.done(), running
        finally:
            world.close()
            running.cancel()
            for task in world.kept:
                task.cancel()
            await asyncio.gather(running, *world.kept, return_exceptions=True)
            for transport in world.transports:
                cut_off(transport)
            await asyncio.sleep(0)  # The transports' own last step.
            loop.set_exception_handler(None)
    assert failures == []

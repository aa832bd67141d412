"""The seam between hub and transport: one contract, the same on a taken-over socket and a kept one.

Further down what only sockets can get wrong: unsent remainders, numbers used again, resets.
"""

import asyncio
import importlib.util
import os
import resource
import select
import socket
import struct
import zlib
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from gateway import app
from gateway.hub import sockets as sockets_module
from gateway.hub.hub import Hub
from gateway.hub.sockets import SocketConnection, Sockets
from gateway.hub.subscriber import Connection, Subscriber
from tests.hub.streaming import Kind, socket_pair, streaming
from tests.running import Valkey, Worker, until, worker
from tests.web.client import RawStream, open_raw
from tests.web.transports import transport

__all__ = ["transport"]

CHUNK = b": " + b"x" * 29_996 + b"\n\n"


class WatchedHub(Hub):
    """A hub that writes down what its connections tell it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.joined: list[Subscriber] = []
        self.told: list[tuple[str, Subscriber]] = []

    def join(self, *arguments: Any, **more: Any) -> Subscriber:
        self.joined.append(super().join(*arguments, **more))
        return self.joined[-1]

    def writable(self, subscriber: Subscriber) -> None:
        self.told.append(("writable", subscriber))
        super().writable(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        if subscriber.open:
            self.told.append(("leave", subscriber))
        super().leave(subscriber)


class Seam:
    """A gateway and streams of which both ends are in hand."""

    def __init__(self, running: Worker) -> None:
        self.worker = running
        hub = running.gateway.hub
        assert isinstance(hub, WatchedHub)
        self.hub = hub

    @asynccontextmanager
    async def open(
        self, headers: bytes = b""
    ) -> AsyncIterator[tuple[RawStream, Subscriber, Connection]]:
        count = len(self.hub.joined)
        path = "/events/a"
        async with open_raw(self.worker, path, headers, receive_buffer_bytes=4096) as stream:
            await until(lambda: len(self.hub.joined) > count)
            subscriber = self.hub.joined[count]
            # One that is taken over is none of aiohttp's any more.
            kept = sum(one.connection.fd < 0 for one in self.hub.joined if one.open)
            await until(lambda: len(handlers()) == kept)
            yield stream, subscriber, subscriber.connection

    def fill(self, subscriber: Subscriber) -> bytes:
        """Write whole chunks until no more is taken; return all that was."""
        written = CHUNK
        while subscriber.connection.write(CHUNK):
            written += CHUNK
            assert len(written) < 1 << 26, "it never fills up"
        # What a pass does that comes so far.
        self.hub._lag(subscriber)
        return written

    async def is_let_go(self) -> None:
        """Wait until neither the hub nor a transport has anybody."""
        gateway = self.worker.gateway
        await until(lambda: self.hub.subscribers == 0 and not gateway.sockets)
        await until(lambda: not handlers())


def handlers() -> list[Any]:
    """Return the tasks of the connections that aiohttp has."""
    return [task for task in asyncio.all_tasks() if "RequestHandler.start" in repr(task)]


@pytest.fixture
async def seam(
    redis: Valkey, transport: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Seam]:
    monkeypatch.setattr(app, "Hub", WatchedHub)
    settings = {
        "streams": {
            "transport": transport,
            "send_buffer_bytes": 4096,
            "buffer_limit_bytes": 4096,
            "heartbeat_seconds": 1000,
            "write_timeout_seconds": 1,
        },
        "namespaces": {"default": {"stream_codings": ["gzip"]}},
    }
    async with worker(redis.url, settings) as running:
        yield Seam(running)


def reset(sock: socket.socket) -> None:
    """Close a connection without a word of goodbye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- the contract -----------------------------------------------------------------------------


async def test_the_connection_is_the_one_that_was_asked_for(seam: Seam, transport: str) -> None:
    async with seam.open() as (_, _, connection):
        assert (connection.fd >= 0) is (transport == "socket")
        assert isinstance(connection, SocketConnection) is (transport == "socket")


async def test_the_head_and_what_opens_the_body_go_first_and_once(seam: Seam) -> None:
    async with seam.open(b"Accept-Encoding: gzip\r\n") as (stream, subscriber, connection):
        assert subscriber.coding == "gzip"
        assert connection.write(b"")
        seam.hub.end(subscriber, "store")
        body = await stream.read_to_end()
    head = bytes(stream._received).removesuffix(body)
    assert head.count(b"HTTP/1.") == 1
    assert b"\r\nContent-Encoding: gzip\r\n" in head
    assert body.startswith(b"\x1f\x8b\x08")
    assert body.count(b"\x1f\x8b\x08") == 1
    first, last, _ = zlib.decompressobj(31).decompress(body).split(b"\n\n")
    assert first.startswith(b"retry: 2000\nid: ")
    assert b"\nevent: unavailable\n" in last


async def test_what_is_written_arrives_in_order(seam: Seam) -> None:
    async with seam.open() as (stream, _, connection):
        first = await stream.read_until(b"\n\n")
        for number in range(5):
            assert connection.write(b": %d\n\n" % number)
        await stream.read_until(b": 4\n\n")
        assert stream.body == first + b"".join(b": %d\n\n" % n for n in range(5))


async def test_a_whole_chunk_is_taken_however_large(seam: Seam) -> None:
    async with seam.open() as (stream, _, connection):
        first = await stream.read_until(b"\n\n")
        large = b": " + os.urandom(1 << 20).replace(b"\n", b"-") + b"\n\n"
        assert not connection.write(large)
        stream.widen()
        while len(stream.body) < len(first) + len(large):
            await stream.read_more()
        assert stream.body == first + large


async def test_a_full_connection_is_writable_once_and_only_when_it_takes_more(seam: Seam) -> None:
    async with seam.open() as (stream, subscriber, connection):
        first = await stream.read_until(b"\n\n")
        written = seam.fill(subscriber)
        await asyncio.sleep(0.1)  # Nobody reads: nothing is said, however long one waits.
        assert seam.hub.told == []
        stream.widen()
        while len(stream.body) < len(first + written):
            await stream.read_more()
        await until(lambda: seam.hub.told)
        assert connection.write(b": more\n\n")
        await stream.read_until(b": more\n\n")
        assert stream.body == first + written + b": more\n\n"
        assert seam.hub.told == [("writable", subscriber)]
        # And a second time.
        written = seam.fill(subscriber)
        await stream.read_until(written[-100:])
        await until(lambda: seam.hub.told == [("writable", subscriber)] * 2)


async def test_a_close_comes_after_all_that_was_handed_over(seam: Seam) -> None:
    async with seam.open() as (stream, subscriber, connection):
        first = await stream.read_until(b"\n\n")
        written = b""
        while len(written) < 60:
            assert connection.write(b": last words\n\n")
            written += b": last words\n\n"
        seam.hub.leave(subscriber)
        connection.close()
        connection.close()
        assert connection.write(b": too late\n\n") is False
        assert await stream.read_to_end() == first + written
        await seam.is_let_go()


async def test_an_abort_ends_it_in_the_middle_of_what_is_unsent(seam: Seam) -> None:
    async with seam.open() as (stream, subscriber, connection):
        first = await stream.read_until(b"\n\n")
        written = seam.fill(subscriber)
        for _ in range(10):  # It is being waited for room now.
            await asyncio.sleep(0)
        seam.hub.leave(subscriber)
        connection.abort()
        await seam.is_let_go()
        assert connection.write(b": too late\n\n") is False
        stream.widen()
        with suppress(ConnectionResetError):
            await stream.read_to_end()
        got = stream.body
        assert len(got) < len(first + written)
        assert (first + written).startswith(got)


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("full", [False, True])
async def test_a_reader_that_is_gone_leaves_the_hub(seam: Seam, how: str, full: bool) -> None:
    async with seam.open() as (stream, subscriber, _connection):
        await stream.read_until(b"\n\n")
        if full:
            seam.fill(subscriber)
        if how == "close":
            stream._socket.close()
        elif how == "reset":
            reset(stream._socket)
        else:
            stream._socket.shutdown(socket.SHUT_WR)
        await until(lambda: ("leave", subscriber) in seam.hub.told)
        await seam.is_let_go()
        assert seam.hub.told == [("leave", subscriber)]


async def test_a_write_to_a_reader_that_is_gone_says_so(seam: Seam) -> None:
    async with seam.open() as (stream, subscriber, connection):
        await stream.read_until(b"\n\n")
        reset(stream._socket)
        # The loop has not looked yet.
        assert connection.write(b": anybody?\n\n") is False
        await until(lambda: seam.hub.told == [("leave", subscriber)])
        await seam.is_let_go()


async def test_what_was_sent_unasked_does_not_cost_the_reader_its_last_event(seam: Seam) -> None:
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(10):
            stream, subscriber, _ = await stack.enter_async_context(seam.open())
            await stream.read_until(b"\n\n")
            streams.append((stream, subscriber))
        for number, (stream, subscriber) in enumerate(streams):
            # As large as it gets while nobody reads.
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream._socket, b"GET / HTTP/1.1\r\n" * (10 * number))
            seam.hub.end(subscriber, "store")
        for stream, _ in streams:
            assert b"event: unavailable\n" in await stream.read_to_end()
        await seam.is_let_go()


# -- what is unsent ---------------------------------------------------------------------------


async def test_a_full_stream_that_must_end_is_closed_bare(seam: Seam) -> None:
    """Nothing is glued to what is unsent, and a reader that takes nothing holds up nobody."""
    async with seam.open() as (stream, subscriber, _connection):
        first = await stream.read_until(b"\n\n")
        written = seam.fill(subscriber)
        for _ in range(10):  # It is being waited for room now.
            await asyncio.sleep(0)
        seam.hub.drain()
        assert seam.hub.subscribers == 0
        await seam.is_let_go()
        stream.widen()
        with suppress(ConnectionResetError):
            await stream.read_to_end()
        assert (first + written).startswith(stream.body)


@pytest.mark.parametrize("kind", ["pair", "tcp"])
@pytest.mark.parametrize("what", ["drain", "store", "events", "sweep", "restart"])
async def test_a_chunk_that_a_pass_left_unsent_is_finished_before_anything_else(
    kind: Kind, what: str
) -> None:
    timeout = 1.0 if what == "sweep" else 1000.0
    async with streaming(send_buffer_bytes=4096, write_timeout_seconds=timeout) as world:
        ends = socket_pair(kind, receive_buffer_bytes=4096)
        reader, other = world.join("a", ends=ends), world.join("a")
        reader.read()
        reader.reading = False
        while not reader.subscriber.full_since:
            world.publish(("a", b'"%b"' % os.urandom(30_000).hex().encode()))
            await world.until(lambda: other.whole)
            await asyncio.sleep(0.01)  # The kernel moves what it can.
        sizes = len(reader.expected)
        match what:
            case "drain":
                world.hub.drain()
            case "store":
                world.hub.end(reader.subscriber, "store")
            case "events":
                world.publish(("a", b"1"), ("a", b"2"))
            case "sweep":
                await world.until(lambda: world.hub.counters.timeouts == 1)
            case "restart":
                world.begin_anew()
        reader.reading = True
        if what in ("events", "restart"):
            await world.until(lambda: reader.whole)
            world.publish(("a", b"3"))
            await world.settle()
            assert reader.whole
        else:
            # `read` checks that what came is the beginning of what was to come.
            await world.until(lambda: reader.ended)
            assert not reader.unavailable
            assert len(reader.body) < sizes
            assert len(world.sockets) == (0 if what == "drain" else 1)


async def test_a_heartbeat_does_not_land_inside_an_event() -> None:
    async with streaming(send_buffer_bytes=4096, heartbeat_seconds=0.1) as world:
        reader, other = world.join("a"), world.join("a")
        reader.read()
        reader.reading = False
        while not world.hub.count_lagging():
            world.publish(("a", b'"%b"' % os.urandom(3000).hex().encode()))
        await world.until(lambda: other.beats >= 3)
        reader.reading = True
        await world.until(lambda: reader.whole and reader.beats)


async def test_a_gap_comes_after_the_chunk_that_was_unsent() -> None:
    async with streaming(send_buffer_bytes=4096, ring_limit_events=3) as world:
        reader = world.join("a")
        reader.read()
        while not world.hub.count_lagging():
            world.publish(("a", b'"%b"' % os.urandom(3000).hex().encode()))
        for number in range(10):
            world.publish(("a", b"%d" % number))
        expected, body = reader.expected, reader.body
        loop = asyncio.get_running_loop()
        while data := await asyncio.wait_for(loop.sock_recv(reader.socket, 1 << 20), 20):
            body += data
        gap_at = body.rindex(b"id: ", 0, body.index(b"event: gap\n"))
        events, gap = body[:gap_at], body[gap_at:]
        assert expected.startswith(events)
        assert events.endswith(b"\n\n")
        assert b'"reason":"evicted"' in gap
        assert gap.index(b"\n\n") == len(gap) - 2
        assert world.hub.subscribers == 0
        assert len(world.sockets) == 0


# -- sockets alone ----------------------------------------------------------------------------


class Told:
    """An owner that writes down what it is told, and does what it was asked to then."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Subscriber]] = []
        self.sockets = Sockets(self)
        self.doomed: list[SocketConnection] = []

    def writable(self, subscriber: Subscriber) -> None:
        self.told.append(("writable", subscriber))

    def leave(self, subscriber: Subscriber) -> None:
        self.told.append(("leave", subscriber))
        for connection in self.doomed:
            connection.close()


@pytest.fixture
async def owner() -> AsyncIterator[Told]:
    owner = Told()
    yield owner
    owner.sockets.close_all()
    assert len(owner.sockets) == 0


class Ends:
    """A connection, its reader's end, and a subscriber that stands for whoever reads."""

    def __init__(self, owner: Told, head: bytes = b"") -> None:
        self.reader, writer = socket_pair("tcp")
        self.connection = owner.sockets.take(TransportSocket(writer), head)
        writer.close()

    def close(self) -> None:
        self.reader.close()


@pytest.fixture
async def ends(owner: Told) -> AsyncIterator[list[Ends]]:
    made = [Ends(owner, b"head %d;" % number) for number in range(3)]
    yield made
    for one in made:
        one.close()


async def subscribers() -> list[Subscriber]:
    """Return real subscribers, whose streams are of no matter here."""
    async with streaming() as world:
        return [world.join("a").subscriber for _ in range(3)]


async def test_an_event_for_a_socket_closed_meanwhile_does_nothing(
    owner: Told, ends: list[Ends]
) -> None:
    for one, subscriber in zip(ends, await subscribers(), strict=True):
        one.connection.subscriber = subscriber
    first = ends[0].connection.subscriber
    # All three hang up; told of the first of them, the owner closes the others.
    owner.doomed = [one.connection for one in ends[1:]]
    for one in ends:
        reset(one.reader)
    await until(lambda: owner.told)
    await until(lambda: len(owner.sockets) == 0)
    told = {name for name, _ in owner.told}
    assert told == {"leave"}
    assert len(owner.told) == 1
    assert first is not None


async def test_a_socket_closed_before_a_failure_was_looked_at_is_closed_once(
    owner: Told, ends: list[Ends]
) -> None:
    connection = ends[0].connection
    reset(ends[0].reader)
    while connection.write(b"x"):
        pass
    number = connection.fd
    connection.close()
    # The number is used again before the failure's turn comes.
    with open(os.devnull, "rb") as file:
        again = os.dup2(file.fileno(), number)
    try:
        for _ in range(5):
            await asyncio.sleep(0)
        os.fstat(again)
        assert len(owner.sockets) == 2
    finally:
        os.close(again)


async def test_a_connection_without_a_subscriber_is_closed_when_its_reader_goes(
    owner: Told, ends: list[Ends]
) -> None:
    ends[1].reader.close()
    await until(lambda: len(owner.sockets) == 2)
    assert ends[1].connection.fd == -1
    assert owner.told == []


async def test_a_rest_whose_reader_resets_is_dropped(owner: Told, ends: list[Ends]) -> None:
    connection, reader = ends[0].connection, ends[0].reader
    connection.subscriber = (await subscribers())[0]
    assert not connection.write(bytes(1 << 23))
    reset(reader)
    assert connection.flush() is False
    await until(lambda: connection.fd == -1)
    assert [name for name, _ in owner.told] == ["leave"]
    assert connection.flush() is True


async def test_a_rest_is_written_in_as_many_parts_as_it_takes(
    owner: Told, ends: list[Ends]
) -> None:
    connection, reader = ends[0].connection, ends[0].reader
    connection.subscriber = (await subscribers())[0]
    chunk = os.urandom(1 << 24)
    assert not connection.write(chunk)
    got = bytearray()
    while len(got) < len(chunk) + len(b"head 0;"):
        assert select.select([reader], [], [], 20)[0]
        got += reader.recv(1 << 18)
        await asyncio.sleep(0)
    assert got == b"head 0;" + chunk
    await until(lambda: [name for name, _ in owner.told] == ["writable"])


async def test_more_events_than_one_look_takes_are_looked_at_in_the_next(
    owner: Told, ends: list[Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "_EVENTS_A_TURN", 1)
    for one in ends:
        one.reader.close()
    await until(lambda: len(owner.sockets) == 0)


async def test_who_sends_without_end_is_closed_all_the_same(
    owner: Told, ends: list[Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets_module, "_DROPS", 1)
    one = ends[0]
    one.reader.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    sent = 0
    try:
        while True:
            sent += one.reader.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    assert sent > 1 << 17
    one.connection.close()
    assert len(owner.sockets) == 2


async def test_no_number_is_leaked_where_none_is_left(owner: Told) -> None:
    with ExitStack() as stack:
        reader, writer = socket_pair("tcp")
        stack.callback(reader.close)
        stack.callback(writer.close)
        before = len(os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard)
        )
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        spare = []
        try:
            while True:
                spare.append(os.dup(writer.fileno()))
        except OSError:
            pass
        with pytest.raises(OSError, match="Too many open files"):
            owner.sockets.take(TransportSocket(writer), b"")
        for number in spare:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(os.listdir("/proc/self/fd")) == before
        assert len(owner.sockets) == 0
        taken = owner.sockets.take(TransportSocket(writer), b"")
        # What cannot be watched is not kept either: a file, say.
        with pytest.raises(OSError, match="not permitted"), open(__file__, "rb") as file:
            owner.sockets.take(file, b"")  # type: ignore[arg-type]
        assert len(owner.sockets) == 1
        taken.close()
        # The epoll object stays.
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_a_system_without_epoll_has_no_sockets_to_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    spec = importlib.util.find_spec("gateway.hub.sockets")
    assert spec is not None
    assert spec.loader is not None
    # A second copy: the one that everybody has imported stays as it is.
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert sockets_module.AVAILABLE is True
    assert copy.AVAILABLE is False

"""The load client counts right: against a server that does to events what it is told to."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load import Load, Report, compile_load, load_client
from benchmarks.peers.base import local_server

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("taskset")), reason="needs a C compiler and Linux"
)

Tamper = Callable[[list[bytes]], list[bytes]]
EVENTS = 5
PATIENCE_SECONDS = 0.3


class TamperingServer:
    """Takes a stream and a publisher; answers EVENTS publications with what `tamper` makes of them.

    What the stream gets is written in pieces of a few bytes, `chunked` or until the end.
    """

    def __init__(self, tamper: Tamper, *, chunked: bool, piece_bytes: int, ends: bool) -> None:
        self._ends = ends
        self._tamper = tamper
        self._chunked = chunked
        self._piece_bytes = piece_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self.heads: list[bytes] = []

    def __enter__(self) -> "TamperingServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        stream, _ = self._listener.accept()
        with stream:
            self.heads.append(_read_head(stream)[0])
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            stream.sendall(head + (b"Transfer-Encoding: chunked\r\n" if self._chunked else b""))
            stream.sendall(b"\r\n")
            self._send(stream, b"retry: 2000\n\n")
            publisher, _ = self._listener.accept()
            with publisher:
                blocks = []
                for number in range(EVENTS):
                    body = _read_request(publisher)
                    blocks.append(b"id: %d-0\ndata: %s\n\n" % (number, body))
                    publisher.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                self._send(stream, b"".join(self._tamper(blocks)))
                if self._ends and self._chunked:
                    stream.sendall(b"0\r\n\r\n")
                elif self._ends:
                    stream.shutdown(socket.SHUT_WR)
                publisher.recv(1)
            stream.recv(1)

    def _send(self, stream: socket.socket, data: bytes) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), self._piece_bytes):
            piece = data[start : start + self._piece_bytes]
            if self._chunked:
                piece = b"%x;extension\r\n%s\r\n" % (len(piece), piece)
                # A chunk comes in two parts, which end anywhere.
                stream.sendall(piece[:3])
                piece = piece[3:]
            stream.sendall(piece)


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += connection.recv(65536)
    head, _, rest = seen.partition(b"\r\n\r\n")
    return head, rest


def _read_request(connection: socket.socket) -> bytes:
    head, body = _read_head(connection)
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return body


@contextmanager
def loaded(server: TamperingServer) -> Iterator[Load]:
    with load_client(0) as load:
        load.serve_from(
            local_server(server.port, os.getpid()), "c/N0N", block=True, patience=PATIENCE_SECONDS
        )
        yield load


def count(
    tamper: Tamper, *, chunked: bool = False, piece_bytes: int = 1000, ends: bool = False
) -> Report:
    served = TamperingServer(tamper, chunked=chunked, piece_bytes=piece_bytes, ends=ends)
    with served as server, loaded(server) as load:
        assert load.command("open", streams=1).problems() == []
        report = load.command("publish", events=EVENTS)
        load.command("close")
        assert server.heads[0].startswith(b"GET /streams/c/0 HTTP/1.1\r\n")
        return report


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 100_000])
def test_complete_and_in_order_is_no_problem(chunked: bool, piece_bytes: int) -> None:
    report = count(lambda blocks: blocks, chunked=chunked, piece_bytes=piece_bytes)

    assert report.problems() == []
    assert (report.deliveries, report.published) == (EVENTS, EVENTS)
    assert 0 < report.latency_p50_ms <= report.latency_p99_ms * 1.02
    assert report.latency_max_ms > 0


def test_a_lost_event_is_missing() -> None:
    report = count(lambda blocks: blocks[:2] + blocks[3:])

    assert (report.deliveries, report.missing, report.duplicates) == (EVENTS - 1, 1, 0)
    assert report.problems()[0] == "1 missing"


def test_a_lost_last_event_is_missing() -> None:
    report = count(lambda blocks: blocks[:-1])

    assert (report.deliveries, report.missing) == (EVENTS - 1, 1)


def test_an_incomplete_last_block_is_missing() -> None:
    report = count(lambda blocks: [*blocks[:-1], blocks[-1][:-1]])

    assert (report.deliveries, report.missing) == (EVENTS - 1, 1)


def test_an_event_that_comes_twice_is_a_duplicate() -> None:
    report = count(lambda blocks: [*blocks[:3], *blocks[1:]])

    assert (report.deliveries, report.duplicates, report.missing) == (EVENTS, 2, 0)
    assert report.problems() == ["2 duplicates"]


def test_an_event_that_comes_late_is_out_of_order() -> None:
    report = count(lambda blocks: [blocks[0], *blocks[2:4], blocks[1], blocks[4]])

    assert (report.deliveries, report.disorder, report.missing) == (EVENTS, 1, 0)
    assert report.problems() == ["1 disorder"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda block: block.replace(b"xxx", b"xyx", 1),
        lambda block: block.replace(b'x"}', b'"}'),
        lambda block: block.replace(b'"}\n', b'"}\n' + block.split(b"\n")[1] + b"\n"),
    ],
)
def test_a_changed_event_is_damaged_and_missing(damage: Callable[[bytes], bytes]) -> None:
    report = count(lambda blocks: [damage(blocks[0]), *blocks[1:]])

    assert (report.deliveries, report.damaged, report.missing) == (EVENTS - 1, 1, 1)


def test_a_gap_is_counted_and_what_it_tells_of_is_not_missing() -> None:
    gap = b'id: 9-0\nevent: gap\ndata: {"reason":"evicted"}\n\n'
    report = count(lambda blocks: [blocks[0], gap, *blocks[3:]])

    assert (report.deliveries, report.gaps, report.missing) == (EVENTS - 2, 1, 0)
    assert report.problems() == ["1 gaps"]


def test_a_state_in_place_of_events_is_a_gap_and_nothing_damaged() -> None:
    def conflate(blocks: list[bytes]) -> list[bytes]:
        state = b",".join(
            b'"%d":%s' % (number, block.partition(b"data: ")[2].strip())
            for number, block in enumerate(blocks[:3])
        )
        reset = b'id: 2-0\nevent: reset\ndata: {"channel":"c/0","state":{%s}}\n\n' % state
        return [reset, *blocks[3:]]

    report = count(conflate)

    assert (report.gaps, report.damaged, report.deliveries, report.missing) == (1, 0, 2, 0)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_stream_that_ends_is_counted(chunked: bool) -> None:
    report = count(lambda blocks: blocks[:-1], chunked=chunked, ends=True)

    assert (report.closed, report.missing) == (1, 1)
    assert report.problems()[-1] == "a stream ended: by the server"


def test_an_event_in_an_envelope_is_delivered() -> None:
    def wrap(block: bytes) -> bytes:
        return block.replace(b"data: ", b'data: {"channel":"c/0","data":').replace(b"}\n", b"}}\n")

    assert count(lambda blocks: [wrap(block) for block in blocks]).problems() == []


def test_the_client_is_compiled_once() -> None:
    program = compile_load()
    made = program.stat().st_mtime_ns

    assert compile_load() == program
    assert program.stat().st_mtime_ns == made

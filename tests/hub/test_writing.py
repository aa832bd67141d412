"""One chunk to many sockets: both loops write the same and say the same of what came short."""

import contextlib
import errno
import importlib
import importlib.util
import socket
import sys
from array import array
from collections.abc import Callable, Iterator

import pytest

from gateway.hub import writing

WriteAll = Callable[["array[int]", int, int, bytes], list[tuple[int, int]]]

LOOPS = [
    pytest.param(writing.write_all_in_python, id="python"),
    pytest.param(
        writing.write_all,
        id="compiled",
        marks=pytest.mark.skipif(
            not writing.COMPILED, reason="no compiler or headers when the gateway was installed"
        ),
    ),
]


@pytest.fixture(params=LOOPS)
def write_all(request: pytest.FixtureRequest) -> WriteAll:
    loop: WriteAll = request.param
    return loop


class Pair:
    """Both ends of one TCP connection of loopback; the writer's end does not block."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.reader = socket.create_connection(server.getsockname())
            self.writer, _ = server.accept()
        self.writer.setblocking(False)
        self.writer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, size: int) -> bytes:
        return self.reader.recv(size, socket.MSG_WAITALL)

    def fill(self) -> int:
        """Fill the kernel's buffers; returns the bytes that they took."""
        total = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                total += self.writer.send(bytes(65536))
        return total

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [Pair() for _ in range(5)]
    yield made
    for pair in made:
        pair.close()


def fds_of(pairs: list[Pair]) -> "array[int]":
    return array("i", [pair.writer.fileno() for pair in pairs])


def test_every_socket_gets_all_of_it(write_all: WriteAll, pairs: list[Pair]) -> None:
    assert write_all(fds_of(pairs), 0, 5, b"data: one\n\n") == []
    assert write_all(fds_of(pairs), 0, 5, b"data: two\n\n") == []
    assert [pair.read(22) for pair in pairs] == [b"data: one\n\ndata: two\n\n"] * 5


def test_only_the_range_is_written(write_all: WriteAll, pairs: list[Pair]) -> None:
    fds = fds_of(pairs)
    assert write_all(fds, 1, 3, b"a") == []
    assert write_all(fds, 4, 5, b"b") == []
    assert write_all(fds, 0, 5, b"!") == []
    assert [pair.read(1) for pair in pairs] == [b"!", b"a", b"a", b"!", b"b"]


def test_an_empty_range_writes_nothing(write_all: WriteAll, pairs: list[Pair]) -> None:
    fds = fds_of(pairs)
    for index in (0, 2, 5):
        assert write_all(fds, index, index, b"never") == []
    assert write_all(array("i"), 0, 0, b"never") == []
    assert write_all(fds, 0, 5, b"!") == []
    assert [pair.read(1) for pair in pairs] == [b"!"] * 5


def test_negative_fds_are_passed_over(write_all: WriteAll, pairs: list[Pair]) -> None:
    fds = fds_of(pairs)
    fds[0], fds[3] = -1, -7
    assert write_all(fds, 0, 5, b"x") == []
    fds = fds_of(pairs)
    assert write_all(fds, 0, 5, b"y") == []
    assert [pair.read(1) for pair in pairs] == [b"y", b"x", b"x", b"y", b"x"]


def test_a_full_socket_takes_none_and_delays_nobody(write_all: WriteAll, pairs: list[Pair]) -> None:
    filled = pairs[2].fill()
    assert write_all(fds_of(pairs), 0, 5, b"more") == [(2, 0)]
    assert [pair.read(4) for pair in pairs if pair is not pairs[2]] == [b"more"] * 4
    assert pairs[2].read(filled) == bytes(filled)


def test_what_was_taken_of_a_large_chunk_is_said(write_all: WriteAll, pairs: list[Pair]) -> None:
    chunk = bytes(range(256)) * 2**17
    shorts = write_all(fds_of(pairs), 0, 2, chunk)
    assert [index for index, _ in shorts] == [0, 1]
    for index, taken in shorts:
        assert 0 < taken < len(chunk)
        assert pairs[index].read(taken) == chunk[:taken]
        pairs[index].reader.setblocking(False)
        with pytest.raises(BlockingIOError):
            pairs[index].reader.recv(1)


def test_a_peer_that_closed_is_an_error(write_all: WriteAll, pairs: list[Pair]) -> None:
    # Shut down on this side: no write can succeed any more, whatever the peer does.
    pairs[1].writer.shutdown(socket.SHUT_WR)
    assert write_all(fds_of(pairs), 0, 3, b"x") == [(1, -errno.EPIPE)]
    # Unread input makes the peer's close a reset.
    pairs[0].reader.close()
    while (shorts := write_all(fds_of(pairs), 0, 1, b"x")) == []:
        pass
    assert shorts[0][1] in (-errno.ECONNRESET, -errno.EPIPE)
    assert pairs[2].read(1) == b"x"


def test_an_fd_that_is_none_is_an_error(write_all: WriteAll, pairs: list[Pair]) -> None:
    fds = fds_of(pairs)
    fds[1] = 2**20 + 17
    pairs[4].writer.close()
    assert write_all(fds, 0, 5, b"x") == [(1, -errno.EBADF), (4, -errno.EBADF)]
    assert [pair.read(1) for pair in pairs[:1] + pairs[2:4]] == [b"x"] * 3


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6), (6, 6)])
def test_a_range_outside_the_array_is_refused(
    write_all: WriteAll, pairs: list[Pair], start: int, stop: int
) -> None:
    with pytest.raises(ValueError, match=rf"start {start} and stop {stop} .* range of 5 fds"):
        write_all(fds_of(pairs), start, stop, b"x")
    assert write_all(fds_of(pairs), 0, 5, b"!") == []
    assert [pair.read(1) for pair in pairs] == [b"!"] * 5


@pytest.mark.parametrize("typecode", ["b", "h", "I", "q", "d"])
def test_another_typecode_is_refused(write_all: WriteAll, typecode: str) -> None:
    with pytest.raises(ValueError, match=f"typecode 'i', not '{typecode}'"):
        write_all(array(typecode, [1]), 0, 1, b"x")


def test_the_array_is_free_to_grow_afterwards(write_all: WriteAll, pairs: list[Pair]) -> None:
    fds = fds_of(pairs)
    write_all(fds, 0, 5, b"x")
    with pytest.raises(ValueError, match="range"):
        write_all(fds, 0, 9, b"x")
    fds.extend(fds)
    assert write_all(fds, 0, 10, b"y") == []
    assert [pair.read(3) for pair in pairs] == [b"xyy"] * 5


def test_without_the_compiled_loop_the_same_is_done_in_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gateway.hub._writing", None)
    spec = importlib.util.find_spec("gateway.hub.writing")
    assert spec is not None
    assert spec.loader is not None
    # A second copy: the one that everybody has imported stays as it is.
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.COMPILED is False
    assert copy.write_all is copy.write_all_in_python

"""The servers that the benchmarks compare: each of them that is installed does its part."""

import http.client
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import aiohttp
import psutil
import pytest

from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, Server
from benchmarks.peers.processes import free_port, serving
from benchmarks.peers.pypi import AiohttpSse
from tests.running import Block, Stream, follow

CHANNEL = "bench/0"
BODIES = [json.dumps({"n": n, "note": "x" * 150}, separators=(",", ":")) for n in range(3)]
LOAD_CORE = (os.cpu_count() or 1) - 1


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    """Each peer in turn."""
    made = PEERS[request.param]()
    if reason := made.missing():
        pytest.skip(reason)
    return made


@asynccontextmanager
async def readers(
    session: aiohttp.ClientSession, server: Server, count: int
) -> AsyncIterator[list[Stream]]:
    """Follow the channel several times."""
    url = f"http://{server.host}:{server.port}{server.stream_path(CHANNEL)}"
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(follow(session, url)) for _ in range(count)]


async def next_with_data(stream: Stream) -> Block:
    while block := await stream.next():
        if block.data is not None:
            return block
    raise AssertionError("the stream has ended")


def post(server: Server, bodies: list[str], path: str, headers: dict[str, str]) -> None:
    """Publish over one connection, which the server must leave open."""
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=20)) as connection:
        connection.connect()
        connection.auto_open = 0
        for body in bodies:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
            assert 200 <= response.status < 300, response.status


async def test_a_peer_sends_every_event_to_every_reader_in_order(
    peer: Peer, session: aiohttp.ClientSession
) -> None:
    with peer.start(0, LOAD_CORE) as server:
        async with readers(session, server, 2) as streams:
            post(server, BODIES, server.publish_path(CHANNEL), server.publish_headers)
            for stream in streams:
                blocks = [await next_with_data(stream) for _ in BODIES]
                assert [block.data for block in blocks] == BODIES
                assert len({block.id for block in blocks} - {""}) == len(BODIES)
        assert psutil.pid_exists(server.pid)
        started = psutil.Process().children(recursive=True)
        assert server.pid in {process.pid for process in started}
    assert [process for process in started if process.is_running()] == []


async def test_a_peer_that_takes_batches_sends_each_line_as_an_event(
    peer: Peer, session: aiohttp.ClientSession
) -> None:
    lines = "\n".join(f'{{"channel":"{CHANNEL}","data":{body}}}' for body in BODIES)
    with peer.start(0, LOAD_CORE) as server:
        if not server.batch_path:
            pytest.skip(f"{peer.name} takes no batches")
        async with readers(session, server, 2) as streams:
            headers = {**server.publish_headers, "Content-Type": "application/x-ndjson"}
            post(server, [lines, lines], server.batch_path, headers)
            for stream in streams:
                blocks = [await next_with_data(stream) for _ in BODIES * 2]
                assert [block.data for block in blocks] == BODIES * 2


def test_a_peer_that_is_not_installed_says_what_to_install() -> None:
    class Absent(AiohttpSse):
        modules = ("aiohttp_sse", "no_such_module")

    assert "(no_such_module): python -m pip install" in Absent().missing()


def test_a_server_that_ends_instead_of_starting_is_an_error_with_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('out of order')"]
    with pytest.raises(RuntimeError, match="out of order"), serving(command, 0, free_port()):
        pass

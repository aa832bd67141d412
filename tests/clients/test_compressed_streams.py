"""Clients that others wrote decode compressed streams: each event at once, whenever they join."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest
import zstandard
from aiohttp.compression_utils import HAS_ZSTD
from playwright.async_api import Page, Response

from gateway.protocol.stream_coding import SYNC_EVENTS
from gateway.protocol.stream_reader import Block, EventStreamParser
from tests.clients import test_browser
from tests.clients.proxy import proxy
from tests.clients.serving import ROOT
from tests.running import Valkey, Worker, until, worker

page = test_browser.page

CHANNEL = "live/scores"
JOINED_BEFORE = 7
"""Events that others have shared when the client comes: fewer than what ends a history."""
ONE_BY_ONE = 120
"""Events across two ends of a history."""
AGAIN_SECONDS = 0.05
"""The pause of those clients that do not come back by themselves."""
NODE = """
import { EventSource } from "eventsource";
const print = (...parts) => process.stdout.write(JSON.stringify(parts) + "\\n");
const source = new EventSource(process.argv[1], { fetch: async (...asked) => {
    const response = await fetch(...asked);
    print("coding", response.headers.get("content-encoding"));
    return response;
} });
source.onmessage = ({ lastEventId, data }) => print(lastEventId, data);
"""


@dataclass
class Journal:
    """What a client tells: its events, the coding of each response, and how each one ended."""

    position: str
    seen: list[tuple[str, str]] = field(default_factory=list)
    codings: list[str | None] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def take(self, blocks: list[Block]) -> None:
        for block in blocks:
            self.position = block.id
            if block.data is not None and block.type == "message":
                self.seen.append((block.id, block.data))


Client = Callable[[str, Journal], Coroutine[Any, Any, None]]


@asynccontextmanager
async def program(
    *command: str, directory: Path = ROOT
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program, its output in a pipe, for as long as the block at most."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=directory,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


async def follow_with_curl(url: str, journal: Journal) -> None:
    """Run `curl --compressed -N` again and again, each time with the last position."""
    while True:
        header = f"Last-Event-ID: {journal.position}"
        async with program("curl", "-siN", "--compressed", "-H", header, url) as curl:
            assert curl.stdout is not None
            head = await curl.stdout.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:-2])
            journal.codings.append(fields.get("Content-Encoding"))
            parser = EventStreamParser(journal.position)
            while data := await curl.stdout.read(65536):
                journal.take(parser.feed(data))
            code = await curl.wait()
        journal.ends.append(f"exit {code}" if code else "")
        await asyncio.sleep(AGAIN_SECONDS)


async def follow_with_aiohttp(url: str, journal: Journal) -> None:
    """Read with aiohttp's client, and come back when the response has ended."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(
                    url, headers={"Last-Event-ID": journal.position}
                ) as response:
                    journal.codings.append(response.headers.get("Content-Encoding"))
                    parser = EventStreamParser(journal.position)
                    async for data in response.content.iter_any():
                        journal.take(parser.feed(data))
                journal.ends.append("")
            except aiohttp.ClientError as error:
                journal.ends.append(type(error).__name__)
            await asyncio.sleep(AGAIN_SECONDS)


async def follow_with_httpx(url: str, journal: Journal) -> None:
    """Read with httpx, and come back when the response has ended."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(5, read=None)) as client:
        while True:
            headers = {"Last-Event-ID": journal.position}
            try:
                async with client.stream("GET", url, headers=headers) as response:
                    journal.codings.append(response.headers.get("Content-Encoding"))
                    parser = EventStreamParser(journal.position)
                    async for data in response.aiter_bytes():
                        journal.take(parser.feed(data))
                journal.ends.append("")
            except httpx.RequestError as error:
                journal.ends.append(type(error).__name__)
            await asyncio.sleep(AGAIN_SECONDS)


async def follow_with_npm_eventsource(url: str, journal: Journal) -> None:
    """Let npm's `eventsource` follow; it comes back by itself."""
    start = f"{url}?last_event_id={journal.position}"
    script = ("node", "--input-type=module", "-e", NODE, start)
    async with program(*script, directory=ROOT / "tests" / "js") as node:
        assert node.stdout is not None
        while line := await node.stdout.readline():
            first, second = json.loads(line)
            if first == "coding":
                journal.codings.append(second)
            else:
                journal.seen.append((first, second))


def event_source_of(page: Page) -> Client:
    """Return the browser's own EventSource as a client; it comes back by itself."""

    async def follow(url: str, journal: Journal) -> None:
        def note(response: Response) -> None:
            if "/events/" in response.url:
                assert response.headers["vary"] == "Accept-Encoding"
                journal.codings.append(response.headers.get("content-encoding"))

        page.on("response", note)
        await page.expose_function("see", lambda id, data: journal.seen.append((id, data)))
        parts = urlsplit(url)
        await page.goto(f"{parts.scheme}://{parts.netloc}/livez")
        await page.evaluate(
            """url => {
                new EventSource(url).onmessage = ({lastEventId, data}) => see(lastEventId, data);
            }""",
            f"{url}?last_event_id={journal.position}",
        )
        try:
            await asyncio.Event().wait()
        finally:
            await page.goto("about:blank")

    return follow


class Publisher:
    """Publishes numbered events, one after the other."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.stored: list[tuple[str, str]] = []
        self._session = session
        self._url = f"{url}/publish/{CHANNEL}"

    async def publish(self, count: int) -> None:
        for _ in range(count):
            number = len(self.stored)
            data = f'{{"home":"Riverton","away":"Lakeside","score":[{number},{number % 7}]}}'
            async with self._session.post(self._url, data=data) as response:
                assert response.status == 200
                self.stored.append(((await response.json())["id"], data))


async def read_raw(
    session: aiohttp.ClientSession, url: str, position: str, coding: str, body: bytearray
) -> None:
    """Collect a response's body as it is on the wire until it ends."""
    headers = {"Accept-Encoding": coding, "Last-Event-ID": position}
    async with session.get(url, headers=headers, auto_decompress=False) as response:
        assert response.headers["Content-Encoding"] == coding
        assert response.headers["Vary"] == "Accept-Encoding"
        async for data in response.content.iter_any():
            body += data


def decode(coding: str, body: bytes | bytearray) -> bytes:
    """Return what a body holds, ended or not."""
    if coding == "gzip":
        return zlib.decompressobj(31).decompress(body)
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        return reader.read()


def events_in(coding: str, body: bytes | bytearray) -> list[tuple[str, str]]:
    """Return the position and data of every event in a body."""
    journal = Journal("")
    journal.take(EventStreamParser().feed(decode(coding, body)))
    return journal.seen


@asynccontextmanager
async def serving(redis: Valkey, coding: str, transport: str) -> AsyncIterator[Worker]:
    """Run a gateway that offers one coding."""
    settings = {
        "streams": {"retry_ms": 50, "transport": transport},
        "namespaces": {"live": {"stream_codings": [coding]}},
    }
    async with worker(redis.url, settings) as gateway:
        yield gateway


async def live_through(
    redis: Valkey, session: aiohttp.ClientSession, coding: str, transport: str, client: Client
) -> Journal:
    """Let a client join midway, read event by event, and be cut off in both ways.

    Returns its journal once it has every event once and in order.
    """
    async with (
        serving(redis, coding, transport) as gateway,
        proxy(urlsplit(gateway.url).port or 0) as way,
        asyncio.TaskGroup() as tasks,
    ):
        publisher = Publisher(session, gateway.url)
        await publisher.publish(3)
        body = bytearray()
        stream = f"{gateway.url}/events/{CHANNEL}"
        early = tasks.create_task(read_raw(session, stream, publisher.stored[0][0], coding, body))
        await until(lambda: gateway.gateway.hub.subscribers == 1)
        await publisher.publish(JOINED_BEFORE)
        journal = Journal(publisher.stored[2][0])
        url = f"http://127.0.0.1:{way.port}/events/{CHANNEL}"
        following = tasks.create_task(client(url, journal))

        async def catch_up() -> None:
            await until(lambda: following.done() or len(journal.seen) == len(publisher.stored) - 3)
            assert not following.done()

        await catch_up()
        for _ in range(ONE_BY_ONE):
            await publisher.publish(1)
            await catch_up()
        drained = len(publisher.stored)
        gateway.gateway.hub.drain()
        await early
        await publisher.publish(5)
        await catch_up()
        way.cut()
        await publisher.publish(5)
        await catch_up()
        following.cancel()
        await until(lambda: gateway.gateway.hub.subscribers == 0)
    assert journal.seen == publisher.stored[3:]
    assert len(journal.codings) >= 3
    assert set(journal.codings) == {coding}
    assert events_in(coding, body) == publisher.stored[1:drained]
    return journal


CUT: dict[tuple[Client, str, str], str] = {
    # With a length for each piece, curl knows; plain streams end so, too.
    (follow_with_curl, "zstd", "response"): "exit 18",
    (follow_with_curl, "gzip", "response"): "exit 18",
    # After the last event, httpx asks for the end of the frame.
    (follow_with_httpx, "zstd", "socket"): "DecodingError",
}
"""How a response that is cut ends for those clients to whom it is not simply over."""


@pytest.mark.parametrize(
    ("client", "coding", "transport"),
    [
        (follow_with_curl, "zstd", "socket"),
        (follow_with_curl, "gzip", "socket"),
        (follow_with_curl, "zstd", "response"),
        (follow_with_curl, "gzip", "response"),
        (follow_with_aiohttp, "gzip", "socket"),
        pytest.param(
            follow_with_aiohttp, "zstd", "socket",
            marks=pytest.mark.skipif(not HAS_ZSTD, reason="aiohttp needs Python 3.14 for zstd"),
        ),
        (follow_with_httpx, "gzip", "socket"),
        (follow_with_httpx, "zstd", "socket"),
        (follow_with_npm_eventsource, "gzip", "socket"),
    ],
)  # fmt: skip
async def test_a_client_has_every_event_at_once(
    redis: Valkey, session: aiohttp.ClientSession, client: Client, coding: str, transport: str
) -> None:
    journal = await live_through(redis, session, coding, transport, client)
    # The first response ended in order; the second one was cut.
    if journal.ends:
        assert journal.ends == ["", CUT.get((client, coding, transport), "")]


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
async def test_the_browsers_eventsource_has_every_event_at_once(
    redis: Valkey, session: aiohttp.ClientSession, page: Page, coding: str
) -> None:
    await live_through(redis, session, coding, "socket", event_source_of(page))


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
@pytest.mark.parametrize("transport", ["socket", "response"])
async def test_readers_who_joined_at_different_times_come_to_get_the_same_bytes(
    redis: Valkey, session: aiohttp.ClientSession, coding: str, transport: str
) -> None:
    async with serving(redis, coding, transport) as gateway, asyncio.TaskGroup() as tasks:
        publisher = Publisher(session, gateway.url)
        await publisher.publish(1)
        stream, start = f"{gateway.url}/events/{CHANNEL}", publisher.stored[0][0]
        bodies = bytearray(), bytearray()
        reading = []
        for body in bodies:
            reading.append(tasks.create_task(read_raw(session, stream, start, coding, body)))
            await until(lambda: gateway.gateway.hub.subscribers == len(reading))
            await publisher.publish(JOINED_BEFORE)
        await publisher.publish(ONE_BY_ONE)
        for body in bodies:
            expected = publisher.stored[1:]
            await until(lambda: events_in(coding, body) == expected)  # noqa: B023
        for task in reading:
            task.cancel()
    early, late = bodies
    pairs = zip(reversed(early), reversed(late), strict=False)
    same = next(length for length, (one, other) in enumerate(pairs) if one != other)
    assert JOINED_BEFORE <= len(events_in(coding, late[:-same])) < 2 * SYNC_EVENTS
    assert len(early) < len(decode(coding, early)) / 2

"""Readers of slices that keep all bytes, and the moments at which slices begin."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from gateway.protocol.position import Position
from gateway.protocol.stream_reader import Block, EventStreamParser
from tests.running import until
from tests.web.client import EVENT_SOURCE, Client

SECONDS = 5
SLICED: dict[str, Any] = {"namespaces": {"default": {"slice_seconds": SECONDS}}}
HEARTBEAT = b": heartbeat\n\n"


def parse(body: bytes) -> list[Block]:
    """Return the blocks of a body that ended."""
    parser = EventStreamParser()
    return [*parser.feed(body)]


def ids(body: bytes) -> list[str]:
    """Return the ids of the events in a slice, its end left out; the end must be there."""
    blocks = parse(body)
    assert blocks[-1].type == "end", body[-200:]
    return [block.id for block in blocks[:-1] if block.data is not None]


def max_age(headers: Mapping[str, str]) -> int:
    match = re.match(r"public, max-age=(\d+), stale-while", headers["Cache-Control"])
    assert match is not None, headers["Cache-Control"]
    return int(match[1])


async def epoch_of(client: Client, namespace: str = "default") -> str:
    await client.settle()
    return (await client.gateway.store.greet(namespace)).epoch


async def now_ms(client: Client) -> int:
    """Return the namespace's time."""
    life, store_ms = await client.gateway.store.seal("default", Position(0, 0))
    return max(store_ms, life.clock.ms)


async def number_now(client: Client, seconds: int = SECONDS) -> int:
    """Return the number of the slice that the namespace's time lies in."""
    return await now_ms(client) // (seconds * 1000)


async def _at(client: Client, moments: range, later_than: int = -1) -> int:
    """Wait for one of some moments within a slice, in milliseconds; return the slice's number."""
    async with asyncio.timeout(20):
        while True:
            number, ms = divmod(await now_ms(client), SECONDS * 1000)
            if number > later_than and ms in moments:
                return number
            await asyncio.sleep(0.02)


async def _first(client: Client) -> int:
    """Return the number of the slice in which the epoch began: `current` cannot vouch for it."""
    life = await client.gateway.store.greet("default")
    return life.floor.ms // (SECONDS * 1000)


async def at_a_slices_beginning(client: Client) -> int:
    """Wait for a slice that has most of its time before it; return its number."""
    return await _at(client, range(1000))


async def at_a_slices_beginning_after_the_first(client: Client) -> int:
    return await _at(client, range(1000), later_than=await _first(client))


async def just_before_the_end(client: Client) -> int:
    """Wait for the time in which requests are held, but not in the first slice of an epoch."""
    end_ms = SECONDS * 1000
    return await _at(client, range(end_ms - 1800, end_ms - 1000), later_than=await _first(client))


class Reader:
    """Reads one slice as it comes."""

    def __init__(self, client: Client, path: str, headers: Mapping[str, str] | None = None) -> None:
        self.body = b""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.cut = False
        self._task = asyncio.create_task(self._read(client, path, headers or {}))

    async def _read(self, client: Client, path: str, headers: Mapping[str, str]) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get(client.url(path), headers=headers) as response,
        ):
            self.headers, self.status = response.headers, response.status
            try:
                async for chunk in response.content.iter_any():
                    self.body += chunk
            except aiohttp.ClientPayloadError:
                self.cut = True

    async def has(self, condition: Callable[[bytes], bool]) -> None:
        """Wait until the body so far meets a condition."""
        await until(lambda: self._task.done() or condition(self.body))
        assert condition(self.body), self.body

    async def end(self) -> bytes:
        async with asyncio.timeout(30):
            await self._task
        return self.body


async def follow_current(client: Client, channel: str, slices: int) -> list[Reader]:
    """Do as an EventSource does: ask for the current slice again whenever one has ended."""
    readers = []
    for _ in range(slices):
        reader = Reader(client, f"/slices/current/{channel}", EVENT_SOURCE)
        await reader.end()
        readers.append(reader)
    return readers

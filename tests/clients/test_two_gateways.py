"""Two gateways on one Redis, one of them always behind: whoever goes to and fro sees one truth."""

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.clients.model import ABSENT, Publisher, canonical, order
from tests.clients.proxy import proxy
from tests.running import follow, free_port, valkey, worker

PATIENT = {
    "namespaces": {"prices": {"reducer": "keyed"}, "docs": {"reducer": "merge"}},
    "snapshots": {"wait_seconds": 20.0},
}
CHANNELS = {
    "prices/a": "keyed", "prices/b": "keyed", "docs/a": "merge", "docs/b": "merge",
    "news/a": "last", "news/b": "last",
}  # fmt: skip
STREAMS = {
    **{f"events/{name}": [name] for name in CHANNELS},
    "events/prices/*": ["prices/a", "prices/b"],
    "events?channel=docs/a&channel=docs/b": ["docs/a", "docs/b"],
    "events/news/*": ["news/a", "news/b"],
}
DELAY_SECONDS = 0.02
EVENTS = 300


@pytest.fixture
async def urls(tmp_path: Path) -> AsyncIterator[list[str]]:
    """Addresses of two gateways; Redis answers the second one late."""
    port = free_port()
    async with (
        valkey(tmp_path / "valkey", port=port),
        proxy(port) as slow,
        worker(f"redis://127.0.0.1:{port}", PATIENT) as first,
        worker(f"redis://127.0.0.1:{slow.port}", PATIENT) as second,
    ):
        slow.delay_seconds = DELAY_SECONDS
        yield [first.url, second.url]


def publisher_of(session: aiohttp.ClientSession, urls: list[str], seed: int) -> Publisher:
    """Return a publisher that writes through either gateway, as chance will have it."""
    chance = random.Random(seed)
    return Publisher(session, lambda: chance.choice(urls), CHANNELS, chance)


class Alternating:
    """A reader that goes to the other gateway for each request."""

    def __init__(self, session: aiohttp.ClientSession, urls: list[str], seed: int) -> None:
        self.seen: list[str] = []
        self.held: list[tuple[str, str, str]] = []
        self.not_modified = 0
        self._session = session
        self._urls = cycle(urls)
        self._chance = random.Random(seed)

    async def follow(self, query: str, start: str, done: asyncio.Event) -> None:
        """Read a few events of a stream, then go on at the other gateway."""
        position = start
        while not done.is_set():
            left = self._chance.randrange(1, 12)
            async with follow(self._session, f"{next(self._urls)}/{query}", position) as stream:
                while left and not done.is_set():
                    block = await stream.next()
                    assert block is not None
                    position = block.id
                    if block.data is not None:
                        assert block.type == "", block
                        self.seen.append(block.id)
                        left -= 1

    async def watch(self, channel: str, done: asyncio.Event) -> None:
        """Take snapshots, saying each time what is held: by its ETag, or by its position."""
        tag, position = "", "0-0"
        while not done.is_set():
            by_tag = tag and self._chance.random() < 0.5
            async with self._session.get(
                f"{next(self._urls)}/snapshots/{channel}",
                headers={"If-None-Match": tag} if by_tag else {},
                params={} if by_tag or position == "0-0" else {"min": position},
            ) as response:
                if response.status == 304:
                    self.not_modified += 1
                    continue
                document = await response.json(content_type=None)
                assert response.status in (200, 404), document
                tag = response.headers.get("ETag", "")
            assert order(document["id"]) >= order(position), "the state went back"
            position = document["id"]
            state = document.get("state", ABSENT)
            self.held.append((channel, position, canonical(state)))

    async def follow_then_look(self, channel: str, done: asyncio.Event) -> None:
        """Follow one gateway, and ask the other for a snapshot at the position that came."""
        position: str | None = None
        while not done.is_set():
            url = f"{next(self._urls)}/events/{channel}"
            async with follow(self._session, url, position) as stream:
                first = await stream.next()
                block = await stream.next()
                assert first is not None
                assert block is not None
            position = block.id
            async with self._session.get(
                f"{next(self._urls)}/snapshots/{channel}", params={"min": position}
            ) as response:
                document = await response.json(content_type=None)
            at = max(position, document["id"], key=order)
            self.held.append((channel, at, canonical(document.get("state", ABSENT))))


async def finish(
    publisher: Publisher, done: asyncio.Event, running: list["asyncio.Task[None]"]
) -> None:
    """Publish until all readers have left: nobody waits for ever."""
    done.set()
    while not all(task.done() for task in running):
        for channel in CHANNELS:
            await publisher.publish(channel)


async def test_a_stream_that_goes_to_and_fro_has_every_event_once(
    session: aiohttp.ClientSession, urls: list[str]
) -> None:
    publisher = publisher_of(session, urls, 1)
    # One event each: a position to begin at. No deletions: no gap would be right.
    for channel in CHANNELS:
        await publisher.publish(channel)
    done = asyncio.Event()
    readers = [Alternating(session, urls, seed) for seed in range(len(STREAMS))]
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(reader.follow(query, publisher.histories[names[-1]].last, done))
            for reader, (query, names) in zip(readers, STREAMS.items(), strict=True)
        ]
        chance = random.Random(2)
        for _ in range(EVENTS):
            channel = chance.choice(list(CHANNELS))
            if chance.random() < 0.2:
                await publisher.publish_batch(channel, 4)
            else:
                await publisher.publish(channel)
        await finish(publisher, done, running)
    for reader, (query, names) in zip(readers, STREAMS.items(), strict=True):
        histories = [publisher.histories[name] for name in names]
        start = histories[-1].first
        expected = sorted(id for one in histories for id in one.between(start, reader.seen[-1]))
        assert [order(id) for id in reader.seen] == expected, query
        assert len(expected) > 20


async def test_snapshots_taken_to_and_fro_never_go_back(
    session: aiohttp.ClientSession, urls: list[str]
) -> None:
    publisher = publisher_of(session, urls, 3)
    done = asyncio.Event()
    readers = [Alternating(session, urls, seed) for seed in range(2 * len(CHANNELS))]
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(
                reader.watch(channel, done)
                if number % 2
                else reader.follow_then_look(channel, done)
            )
            for number, (reader, channel) in enumerate(
                zip(readers, [name for name in CHANNELS for _ in range(2)], strict=True)
            )
        ]
        await publisher.write(EVENTS)
        await finish(publisher, done, running)
    for reader in readers:
        assert len(reader.held) > 5
        for channel, position, state in reader.held:
            expected: Any = canonical(publisher.histories[channel].state_at(position))
            assert state == expected, f"{channel} at {position}"
    assert sum(reader.not_modified for reader in readers) > 0

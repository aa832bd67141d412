"""Whoever takes a snapshot and follows from its position has the publisher's state."""

import asyncio
import json
import random
from typing import Any

import aiohttp
import pytest

from tests.clients.model import ABSENT, History, Publisher, canonical, fold, order
from tests.running import Block, Stream, Valkey, follow, worker

NAMESPACES = {"namespaces": {"prices": {"reducer": "keyed"}, "docs": {"reducer": "merge"}}}
# A worker that keeps one state in memory reads every other from the store when it is asked.
SMALL = {"cache_limit_bytes": 1}
CHANNELS = {
    **{f"prices/{name}": "keyed" for name in ("a", "b/c", "b/d")},
    **{f"docs/{name}": "merge" for name in ("a", "b/c", "b/d")},
}
EVENTS = 2000
CLIENTS = 50


class Reader:
    """Takes snapshots and follows; notes what it held at which position, to be judged later."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self.held: list[tuple[str, str, str]] = []
        self.runs: list[tuple[str, str, list[str]]] = []
        self.gaps: list[tuple[str, str, str]] = []
        self.unknown = 0
        self._session = session
        self._url = url
        self._chance = random.Random(seed)

    async def snapshot(self, channel: str, at_least: str | None = None) -> tuple[str, Any]:
        """Return the channel's position and state, and note them."""
        params = {} if at_least is None else {"min": at_least}
        async with self._session.get(f"{self._url}/snapshots/{channel}", params=params) as response:
            document = await response.json(content_type=None)
        assert response.status in (200, 404), document
        self.unknown += response.status == 404
        position, state = document["id"], document.get("state", ABSENT)
        self.held.append((channel, position, canonical(state)))
        if at_least is not None:
            # Its last event may be older, but everything up to there is in it.
            self.held.append((channel, max(position, at_least, key=order), canonical(state)))
        return position, state

    async def follow_one(self, done: asyncio.Event) -> None:
        """Again and again: a snapshot of one channel, then its events for a while."""
        while not done.is_set():
            channel = self._chance.choice(list(CHANNELS))
            position, state = await self.snapshot(channel)
            seen: list[str] = []
            self.runs.append((channel, position, seen))
            async with follow(self._session, f"{self._url}/events/{channel}", position) as stream:
                await self._fold_one(stream, channel, state, seen, done)

    async def _fold_one(
        self, stream: Stream, channel: str, state: Any, seen: list[str], done: asyncio.Event
    ) -> None:
        reducer = CHANNELS[channel]
        left = self._chance.randrange(1, 60)
        while left and not done.is_set():
            before = stream.last_id
            block = await stream.next()
            assert block is not None, "the stream ended by itself"
            if block.data is None:
                continue
            data = json.loads(block.data)
            if block.type == "gap":
                self.gaps.append((channel, data["requested"], block.id))
                assert data["requested"] == before
                return
            key = ""
            if reducer == "keyed":
                assert data["channel"] == channel
                key, data = data["key"], data["data"]
            state = fold(reducer, state, key, data)
            seen.append(block.id)
            self.held.append((channel, block.id, canonical(state)))
            left -= 1

    async def follow_all(self, prefix: str, done: asyncio.Event) -> None:
        """Again and again: snapshots of all channels of a prefix, then one stream of them all."""
        names = [name for name in CHANNELS if name.startswith(prefix)]
        while not done.is_set():
            states = {name: await self.snapshot(name) for name in names}
            start = min((position for position, _ in states.values()), key=order)
            url = f"{self._url}/events/{prefix}*"
            async with follow(self._session, url, start) as stream:
                await self._fold_all(stream, states, done)

    async def _fold_all(
        self, stream: Stream, states: dict[str, tuple[str, Any]], done: asyncio.Event
    ) -> None:
        left = self._chance.randrange(1, 120)
        while left and not done.is_set():
            block = await stream.next()
            assert block is not None, "the stream ended by itself"
            if block.data is None:
                continue
            data = json.loads(block.data)
            if block.type == "gap":
                # Which of the channels were deleted meanwhile it does not say: all start again.
                for name in states:
                    states[name] = await self.snapshot(name, at_least=block.id)
                continue
            channel = data["channel"]
            position, state = states[channel]
            if order(block.id) <= order(position):
                continue  # It is in the snapshot.
            state = fold(CHANNELS[channel], state, data.get("key", ""), data["data"])
            states[channel] = block.id, state
            self.held.append((channel, block.id, canonical(state)))
            left -= 1


def judge(reader: Reader, histories: dict[str, History]) -> None:
    """Compare all that a reader held with what was published."""
    for channel, position, state in reader.held:
        expected = canonical(histories[channel].state_at(position))
        assert state == expected, f"{channel} at {position}"
    for channel, start, seen in reader.runs:
        if seen:
            assert [order(id) for id in seen] == histories[channel].between(start, seen[-1])
    for channel, requested, resumed in reader.gaps:
        assert histories[channel].deleted_within(requested, resumed), (channel, requested)


@pytest.mark.parametrize("kept", [{}, SMALL], ids=["in-memory", "read-from-the-store"])
async def test_fifty_clients_that_come_and_go_have_the_publishers_state(
    redis: Valkey, session: aiohttp.ClientSession, kept: dict[str, Any]
) -> None:
    patient = {"snapshots": {"wait_seconds": 20.0, **kept}}
    async with worker(redis.url, {**NAMESPACES, **patient}) as gateway:
        publisher = Publisher(session, lambda: gateway.url, CHANNELS, random.Random(7))
        done = asyncio.Event()
        readers = [Reader(session, gateway.url, seed) for seed in range(CLIENTS)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(
                    reader.follow_one(done)
                    if number % 5
                    else reader.follow_all(("docs/", "prices/", "prices/b/")[number % 3], done)
                )
                for number, reader in enumerate(readers)
            ]
            await publisher.write(EVENTS)
            done.set()
            # Nobody waits for ever: every stream gets something more until all have left.
            while not all(task.done() for task in running):
                for channel in CHANNELS:
                    await publisher.publish(channel)
        for reader in readers:
            judge(reader, publisher.histories)
        # The test saw what it is about.
        assert sum(len(reader.held) for reader in readers) > EVENTS
        assert sum(len(reader.gaps) for reader in readers) > 0
        assert sum(reader.unknown for reader in readers) > 0
        for channel, history in publisher.histories.items():
            position, state = await readers[0].snapshot(channel, at_least=publisher.ids[-1])
            assert canonical(state) == canonical(history.state_at(position))


async def test_the_first_follower_of_a_new_channel_misses_nothing(
    redis: Valkey, session: aiohttp.ClientSession
) -> None:
    async with worker(redis.url, NAMESPACES) as gateway:

        async def first(number: int) -> None:
            channel = f"new/{number}"
            reader = Reader(session, gateway.url, number)
            position, state = await reader.snapshot(channel)
            assert state is ABSENT
            published: list[str] = []

            async def publish() -> None:
                for n in range(3):
                    url = f"{gateway.url}/publish/{channel}"
                    async with session.post(url, data=str(n)) as response:
                        published.append((await response.json())["id"])

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publish())
                async with follow(session, f"{gateway.url}/events/{channel}", position) as stream:
                    blocks: list[Block] = []
                    while len(blocks) < 3:
                        block = await stream.next()
                        assert block is not None
                        if block.data is not None:
                            blocks.append(block)
            assert [(block.id, block.type, block.data) for block in blocks] == [
                (id, "", str(n)) for n, id in enumerate(published)
            ]

        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(first(number))

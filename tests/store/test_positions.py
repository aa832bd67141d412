"""Positions on the real server: their order, what stands before each, and forgotten channels."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.protocol.errors import PositionMismatch, UnknownChannel
from gateway.protocol.position import ORIGIN, Position
from gateway.store.redis import RedisStore
from tests.running import Valkey
from tests.store.opening import (
    DEFAULT,
    KEYED,
    new,
    open_store,
    publish,
    read_ring,
    set_clock_forward,
)

HOUR_MS = 3_600_000


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url) as opened:
        yield opened


async def bus_order(store: RedisStore) -> list[Position]:
    return [entry.event.id for entry in await store.read_bus("default", ORIGIN, 100_000, 1)]


async def test_positions_increase_strictly_with_many_to_a_millisecond(
    redis: Valkey, store: RedisStore
) -> None:
    async with open_store(redis.url) as other:

        async def caller(worker: RedisStore, name: str) -> list[Position]:
            found = []
            for _ in range(10):
                found += await publish(worker, *(new(f"{name}/{at % 7}") for at in range(100)))
            return found

        lists = await asyncio.gather(
            *(caller(store if at % 2 else other, str(at)) for at in range(4))
        )
    for positions in lists:
        assert positions == sorted(set(positions))
    every = sorted(position for positions in lists for position in positions)
    assert len(set(every)) == 4000
    assert await bus_order(store) == every
    assert max(position.seq for position in every) > 50


async def test_positions_increase_while_the_servers_clock_is_behind(
    redis: Valkey, store: RedisStore
) -> None:
    first = (await publish(store, new("a")))[0]
    clock = await set_clock_forward(redis, "default", HOUR_MS)
    positions = [first, *await publish(store, new("a"), new("b"), new("a"))]
    assert positions[1:] == [Position(clock.ms, seq) for seq in (1, 2, 3)]
    positions.append(await store.delete("default", "a"))
    await redis.restart()
    positions += await publish(store, new("a"))
    assert positions == sorted(set(positions))
    assert positions[-1].ms > clock.ms
    async with redis.client() as client:
        # The ring lives its full age from its newest event's time.
        assert await client.pttl("sg:{default}:ring:a") > HOUR_MS + 3_000_000


async def test_positions_increase_across_a_restart_and_a_flush(
    redis: Valkey, store: RedisStore
) -> None:
    positions = await publish(store, new("a"))
    await redis.restart()
    positions += await publish(store, new("a"))
    for position in positions:
        store.observe("default", position)
    async with redis.client() as client:
        await client.flushall()
    positions += await publish(store, new("a"))
    assert positions == sorted(set(positions))


async def test_a_store_that_forgot_its_meta_goes_on_above_its_bus(
    redis: Valkey, store: RedisStore
) -> None:
    before = await publish(store, new("a"))
    await set_clock_forward(redis, "default", HOUR_MS)
    before += await publish(store, new("a"))
    async with redis.client() as client:
        await client.delete("sg:{default}:meta")
    after = await publish(store, new("a"), new("b"))
    assert after[0] > before[-1]
    assert [event.prev for event in await read_ring(store, "a")] == [ORIGIN, *before]


async def test_namespaces_count_for_themselves(redis: Valkey) -> None:
    async with open_store(redis.url, DEFAULT, KEYED) as store:
        await store.check()
        await set_clock_forward(redis, "keyed", HOUR_MS)
        near = (await publish(store, new("a")))[0]
        far = (await publish(store, new("keyed/a", key="k"), namespace="keyed"))[0]
        assert far.ms - near.ms > HOUR_MS - 60_000


async def test_an_event_knows_the_one_before_it_after_trimming(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, ring_limit_events=2)) as store:
        positions = [(await publish(store, new("a"), new("b")))[0] for _ in range(5)]
        ring = await read_ring(store, "a")
    assert [event.id for event in ring] == positions[3:]
    assert [event.prev for event in ring] == positions[2:4]


async def test_an_event_knows_the_one_before_it_after_the_ring_expired(
    redis: Valkey, store: RedisStore
) -> None:
    last = (await publish(store, new("a"), new("a")))[-1]
    async with redis.client() as client:
        await client.pexpire("sg:{default}:ring:a", 1)
        while await client.exists("sg:{default}:ring:a"):
            await asyncio.sleep(0.001)
    await publish(store, new("a"))
    assert [event.prev for event in await read_ring(store, "a")] == [last]


async def test_an_event_knows_the_end_of_the_deleted_channel_before_it(
    redis: Valkey, store: RedisStore
) -> None:
    first = (await publish(store, new("a")))[0]
    end = await store.delete("default", "a", if_match=str(first))
    assert end > first
    _, contents, _ = await store.read("default", ["a"], "both")
    assert contents[0].index is not None
    assert contents[0].index.deleted
    assert (contents[0].index.last, contents[0].ring, contents[0].state) == (end, [], {})
    with pytest.raises(UnknownChannel):
        await store.delete("default", "a")
    with pytest.raises(PositionMismatch):
        await publish(store, new("a"), if_match="*")
    second = (await publish(store, new("a")))[0]
    assert [(event.id, event.prev) for event in await read_ring(store, "a")] == [(second, end)]
    bus = await store.read_bus("default", ORIGIN, 100, 1)
    assert [(entry.event.deletion, entry.event.prev) for entry in bus] == [
        (False, ORIGIN),
        (True, first),
        (False, end),
    ]
    life = await store.greet("default")
    assert [entry.prev for entry in bus] == [life.floor, first, end]
    assert life.last == second


async def test_deleting_what_is_not_there_or_moved_on_changes_nothing(store: RedisStore) -> None:
    with pytest.raises(UnknownChannel):
        await store.delete("default", "a")
    first = (await publish(store, new("a")))[0]
    with pytest.raises(PositionMismatch) as caught:
        await store.delete("default", "a", if_match=str(Position(1, 2)))
    assert caught.value.current == first
    assert len(await read_ring(store, "a")) == 1
    assert await store.delete("default", "a", if_match="*") > first


async def test_a_sweep_drops_dead_entries_only_and_raises_the_floor_to_the_highest(
    redis: Valkey,
) -> None:
    async with open_store(redis.url, replace(DEFAULT, ring_limit_events=5)) as store:
        await publish(store, new("dead/1"), new("dead/2"), new("live"), new("ringless"))
        ends = [await store.delete("default", f"dead/{at}") for at in (1, 2)]
        async with redis.client() as client:
            await client.delete("sg:{default}:ring:ringless")
        before = await store.greet("default")
        names = ["dead/2", "dead/1", "live", "ringless", "never"]
        assert await store.sweep("default", names) == 2
        after = await store.greet("default")
        assert (after.floor, before.floor < ends[1]) == (ends[1], True)
        assert after.generation != before.generation
        assert after.epoch == before.epoch
        listed = {name: entry async for name, entry in store.scan_index("default")}
        assert listed.keys() == {"live", "ringless"}
        # Nobody who could miss the forgotten events may resume; who saw them all may.
        assert not after.vouches_for(ends[0])
        assert after.vouches_for(ends[1])
        await publish(store, new("dead/1"))
        assert (await read_ring(store, "dead/1"))[0].prev == ORIGIN


async def test_a_sweep_of_nothing_changes_nothing(store: RedisStore) -> None:
    await publish(store, new("a"))
    before = await store.greet("default")
    assert await store.sweep("default", ["a", "b"]) == 0
    assert await store.greet("default") == before


async def test_the_index_is_listed_whole_however_long(store: RedisStore) -> None:
    names = [f"c/{at}" for at in range(2500)]
    positions = await publish(store, *map(new, names))
    listed = {name: entry.last async for name, entry in store.scan_index("default")}
    assert listed == dict(zip(names, positions, strict=True))
    await publish(store, new("c/7"), new("c/7"))
    assert await store.ring_lengths("default", ["c/7", "c/8", "none"]) == [3, 1, 0]


async def test_positions_go_on_where_a_restored_copy_ends(
    redis: Valkey, store: RedisStore, tmp_path: Path
) -> None:
    await publish(store, new("a"))
    await redis.copy_data(tmp_path / "copy")
    lost = await publish(store, new("a"), new("a"))
    store.observe("default", lost[-1])
    await redis.restart_from(tmp_path / "copy")
    assert (await publish(store, new("a")))[0] > lost[-1]

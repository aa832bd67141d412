"""The tail on a real store: everything once and in order, and a new beginning when it must."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.hub.mirror import Missing, NeedsRings, Resumable
from gateway.protocol.errors import StoreUnavailable
from gateway.protocol.position import ORIGIN, Position
from gateway.store.redis import RedisStore, StoreLimits
from tests.hub.following import Follower, following
from tests.running import Valkey, until
from tests.store.opening import DEFAULT, new, open_store, publish, read_ring

SMALL = StoreLimits(batch_limit_events=10)


async def test_xread_says_nothing_of_entries_that_were_trimmed(redis: Valkey) -> None:
    async with redis.client() as client:
        for at in range(1, 11):
            await client.xadd("s", {"n": at}, id=f"{at}-0")
        await client.xtrim("s", maxlen=3, approximate=False)
        entries = (await client.xread({"s": "2-0"}))[0][1]
        assert [entry_id for entry_id, _ in entries] == [b"8-0", b"9-0", b"10-0"]


async def test_a_worker_trimmed_past_notices_and_reads_the_rings_exactly(redis: Valkey) -> None:
    names = ["a", "b/1", "b/2"]
    async with open_store(redis.url, limits=SMALL) as store, following(store) as follower:
        seen = await publish(store, *map(new, names))
        await follower.tailed(seen[-1])
        assert len(follower.heard.restarts) == 1
        await follower.stop()
        missed: list[Position] = []
        while not missed or (await bus_start(store)) <= seen[-1]:
            missed += await publish(store, *map(new, names * 3))
        await follower.start()
        await until(lambda: len(follower.heard.restarts) == 2)
        assert follower.heard.restarts[-1] == seen[-1]
        # None of the missed went by as live events: they come from the rings.
        assert follower.heard.ids == seen
        assert isinstance(follower.judge("a", "b/*", position=seen[-1]), NeedsRings)
        got = await follower.replay("a", "b/*", position=seen[-1])
        assert [event.id for event in got] == missed
        live = await publish(store, new("b/1"))
        await follower.tailed(live[0])
        assert follower.heard.ids == seen + live


async def bus_start(store: RedisStore) -> Position:
    return (await store.read_bus("default", ORIGIN, 1, 1))[0].event.id


async def test_a_worker_that_was_away_for_a_while_goes_on_without_a_break(redis: Valkey) -> None:
    async with open_store(redis.url, limits=SMALL) as store, following(store) as follower:
        positions = await publish(store, new("a"))
        await follower.tailed(positions[-1])
        await follower.stop()
        positions += await publish(store, *(new("a") for _ in range(30)))
        await follower.start()
        await follower.tailed(positions[-1])
        assert follower.heard.ids == positions
        assert len(follower.heard.restarts) == 1


async def test_every_event_is_taken_once_and_in_order(redis: Valkey, store: RedisStore) -> None:
    async with following(store) as follower, open_store(redis.url) as other:

        async def write(worker: RedisStore, name: str) -> list[Position]:
            found = []
            for _ in range(40):
                found += await publish(worker, *(new(f"{name}/{at % 3}") for at in range(50)))
            return found

        lists = await asyncio.gather(write(store, "one"), write(other, "two"))
        every = sorted(lists[0] + lists[1])
        await follower.tailed(every[-1])
        assert follower.heard.ids == every
        assert follower.tail.events == 4000
        index = {name: entry async for name, entry in store.scan_index("default")}
        assert follower.mirror.index == index


async def test_an_event_is_taken_as_it_was_published(store: RedisStore) -> None:
    async with following(store) as follower:
        text = new("a", "smörgås\nbord", json=False, type="note", key="k")
        await publish(store, text, new("a", "", key="gone"))
        end = await store.delete("default", "a")
        await follower.tailed(end)
        first, second, last = follower.heard.events
        assert (first.data, first.json, first.type, first.key) == (
            "smörgås\nbord".encode(),
            False,
            "note",
            "k",
        )
        assert (second.data, second.key, second.prev) == (b"", "gone", first.id)
        assert (last.deletion, last.data, last.prev, last.id) == (True, b"", second.id, end)
        assert not follower.mirror.exists("a")
        assert follower.judge("a", position=second.id) == Missing("deleted", end)


async def test_a_flush_is_noticed_though_nothing_is_published(
    redis: Valkey, store: RedisStore
) -> None:
    last = (await publish(store, new("a")))[0]
    async with following(store, block_ms=20) as follower:
        await follower.tailed(last)
        async with redis.client() as client:
            await client.flushall()
        await until(lambda: len(follower.heard.restarts) == 2)
        life = follower.mirror.life
        assert life is not None
        assert life.floor > last
        assert follower.judge("a", position=last) == Missing("evicted", life.floor)
        assert follower.mirror.index == {}
        fresh = (await publish(store, new("a")))[0]
        await follower.tailed(fresh)
        assert follower.judge("a", position=life.floor) == Resumable()


async def test_a_flush_is_noticed_by_the_event_after_it(redis: Valkey, store: RedisStore) -> None:
    async with following(store, block_ms=60_000) as follower:
        last = (await publish(store, new("a")))[0]
        await follower.tailed(last)
        async with redis.client() as client:
            await client.flushall()
        fresh = (await publish(store, new("a")))[0]
        await until(lambda: len(follower.heard.restarts) == 2)
        assert follower.mirror.tailed == fresh > last
        # It stands in the ring; the listeners judge everybody anew.
        assert follower.heard.ids == [last]
        floor = follower.mirror.life.floor if follower.mirror.life else ORIGIN
        assert [event.id for event in await follower.replay("a", position=floor)] == [fresh]


async def test_who_is_beyond_a_cut_has_a_gap_and_who_is_not_goes_on(
    redis: Valkey, store: RedisStore, tmp_path: Path
) -> None:
    async with following(store) as follower:
        kept = await publish(store, new("a"), new("b"))
        await redis.copy_data(tmp_path / "copy")
        lost = await publish(store, new("a"), new("a"))
        await follower.tailed(lost[-1])
        await redis.restart_from(tmp_path / "copy")
        await until(lambda: len(follower.heard.restarts) == 2)
        assert follower.heard.restarts[-1] == lost[-1]
        fresh = (await publish(store, new("a")))[0]
        await follower.tailed(fresh)
        assert fresh > lost[-1]
        for position in lost:
            assert follower.judge("a", position=position) == Missing("restored", fresh)
            assert follower.judge("b", position=position) == Missing("restored", fresh)
        got = await follower.replay("a", "b", position=kept[0])
        assert [event.id for event in got] == [kept[1], fresh]


async def test_a_server_that_restarts_with_all_its_data_costs_no_gap(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store) as follower:
        before = await publish(store, new("a"), new("a"))
        await follower.tailed(before[-1])
        await redis.stop()
        await until(lambda: not follower.tail.connected)
        await redis.start()
        await until(lambda: follower.tail.connected)
        after = await publish(store, new("a"))
        await follower.tailed(after[-1])
        assert follower.judge("a", position=before[0]) != Missing("restored", after[-1])
        got = await follower.replay("a", position=before[0])
        assert [event.id for event in got] == [before[1], *after]


async def test_a_sweep_begins_the_mirror_anew_with_a_higher_floor(store: RedisStore) -> None:
    async with following(store) as follower:
        first = (await publish(store, new("a"), new("b")))[0]
        end = await store.delete("default", "a")
        await follower.tailed(end)
        assert await store.sweep("default", ["a", "b"]) == 1
        fresh = (await publish(store, new("b")))[0]
        await until(lambda: len(follower.heard.restarts) == 2)
        await follower.tailed(fresh)
        assert follower.mirror.index.keys() == {"b"}
        assert follower.judge("b", position=first) == Missing("evicted", end)
        got = await follower.replay("b", position=end)
        assert [event.id for event in got] == [fresh]


async def test_a_cut_of_a_quiet_namespace_is_where_a_stream_begins(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store) as follower:
        last = (await publish(store, new("a")))[0]
        await follower.tailed(last)
        await redis.restart()
        await until(lambda: len(follower.heard.restarts) == 2)
        # It begins at the cut's end, not inside it, and is no gap when it comes back with it.
        assert follower.mirror.tailed == last < follower.mirror.head
        assert follower.judge("a", position=follower.mirror.head) == Resumable()


async def stalled(follower: Follower, position: Position, seconds: float = 0.1) -> None:
    with pytest.raises(TimeoutError):
        await follower.tail.reach(position, seconds)


async def test_reach_waits_for_the_tail_to_come_to_a_position(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store) as follower:
        first = (await publish(store, new("a")))[0]
        assert await follower.tail.reach(first, 10)
        assert follower.mirror.tailed >= first
        await follower.stop()
        second = (await publish(store, new("a")))[0]
        await stalled(follower, second)
        waiting = asyncio.create_task(follower.tail.reach(second, 10))
        await follower.start()
        assert await waiting
        assert follower.mirror.tailed == second


async def test_reach_says_when_a_position_was_never_given_out(store: RedisStore) -> None:
    async with following(store) as follower:
        last = (await publish(store, new("a")))[0]
        await follower.tailed(last)
        never = Position(last.ms + 100_000, 0)
        assert not await follower.tail.reach(never, 10)
        assert follower.judge("a", position=never) == Missing("unknown", last)


async def test_reach_asks_the_store_for_positions_it_gave_out_without_an_event(
    redis: Valkey, store: RedisStore
) -> None:
    """After a cut the clock stands ahead of the last event; nothing stands between."""
    async with following(store, block_ms=60_000) as follower:
        await publish(store, new("a"))
        async with open_store(redis.url) as other:
            await follower.tail.reach((await other.greet("default")).last, 10)
        clock = (await store.greet("default")).clock
        assert await follower.tail.reach(clock, 10)


async def test_reach_waits_until_the_tail_has_noticed_another_history(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store, block_ms=60_000) as follower:
        last = (await publish(store, new("a")))[0]
        await follower.tailed(last)
        async with redis.client() as client:
            await client.flushall()
            waiting = asyncio.create_task(follower.tail.reach(Position(last.ms + 1_000_000, 0), 10))
            while not await client.exists("sg:{default}:meta"):
                await asyncio.sleep(0.001)
        assert not waiting.done()
        fresh = (await publish(store, new("a")))[0]
        assert not await waiting
        assert follower.mirror.tailed == fresh


async def test_reach_of_a_store_that_is_down_is_unavailable(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store) as follower:
        ahead = Position(follower.mirror.clock.ms + 10_000, 0)
        await redis.stop()
        with pytest.raises(StoreUnavailable):
            await follower.tail.reach(ahead, 10)
        assert await follower.tail.reach(follower.mirror.tailed, 0.001)
        await redis.start()


async def test_data_that_turns_bad_stops_the_tail_and_good_data_lets_it_go_on(
    redis: Valkey, store: RedisStore
) -> None:
    async with following(store, block_ms=20) as follower:
        await publish(store, new("a"))
        async with redis.client() as client:
            floor = await client.hget("sg:{default}:meta", "floor")
            assert floor is not None
            await client.hset("sg:{default}:meta", "floor", "x")
            await until(lambda: not follower.tail.connected)
            await client.hset("sg:{default}:meta", "floor", floor)
        await until(lambda: follower.tail.connected)
        last = (await publish(store, new("a")))[0]
        await follower.tailed(last)


async def test_the_mirror_keeps_what_the_stores_ring_keeps(redis: Valkey) -> None:
    rules = replace(DEFAULT, ring_limit_events=7)
    async with open_store(redis.url, rules) as store, following(store) as follower:
        positions = []
        for _ in range(5):
            positions += await publish(store, *(new("a") for _ in range(5)))
        await follower.tailed(positions[-1])
        ring = follower.mirror.ring("a")
        assert ring is not None
        kept = [event.id for event in ring.page(ORIGIN, 100)]
        assert kept == [event.id for event in await read_ring(store, "a")] == positions[-7:]
        assert ring.resumable_from == positions[-8]

"""Lives of a store: restarts, older copies, flushes, and which positions outlive them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.protocol.position import ORIGIN, Position
from gateway.store.redis import RedisStore, StoreLimits
from tests.running import Valkey
from tests.store.opening import (
    DEFAULT,
    KEYED,
    cut_of,
    new,
    open_store,
    publish,
    read_ring,
    set_clock_forward,
)


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url) as opened:
        await opened.check()
        yield opened


async def test_an_empty_store_begins_with_an_epoch_whose_floor_is_its_start(
    store: RedisStore,
) -> None:
    life = await store.greet("default")
    assert life.epoch
    assert life.floor == life.clock == life.last > ORIGIN
    assert (life.generation, life.cuts) == (f"1@{life.clock}", ())
    assert await store.greet("default") == life
    after = (await publish(store, new("a")))[0]
    assert after > life.floor


async def test_a_restart_that_lost_nothing_cuts_after_the_last_event_and_costs_no_gap(
    redis: Valkey, store: RedisStore
) -> None:
    last = (await publish(store, new("a"), new("a")))[-1]
    before = await store.greet("default")
    await redis.restart()
    life = await store.greet("default")
    assert life.epoch == before.epoch
    assert life.generation == f"2@{life.clock}"
    recovered, resumed = cut_of(life)
    assert (recovered, resumed) == (last, life.clock)
    assert life.vouches_for(last)
    assert life.last == last
    following = (await publish(store, new("a")))[0]
    assert following > resumed
    assert (await read_ring(store, "a"))[-1].prev == last
    assert await store.greet("default") == await store.greet("default")


async def test_without_a_cut_older_data_would_lose_two_events_unseen(
    redis: Valkey, store: RedisStore, tmp_path: Path
) -> None:
    """The store comes back without its two newest events, and one more is published.

    Read by rings and index alone, the position of the lost ones would look resumable.
    """
    kept = (await publish(store, new("a")))[0]
    await redis.copy_data(tmp_path / "copy")
    lost = await publish(store, new("a"), new("a"))
    await redis.restart_from(tmp_path / "copy")
    following = (await publish(store, new("a")))[0]
    assert following > lost[-1]
    life, contents, _ = await store.read("default", ["a"], "both")
    first = contents[0].ring[0]
    assert [event.id for event in contents[0].ring] == [kept, following]
    for position in lost:
        # What every other rule says of them: resume, and miss the lost.
        assert max(first.prev, life.floor) <= position <= life.clock
        # The cut knows better.
        assert not life.vouches_for(position)
    assert life.vouches_for(kept)
    assert life.vouches_for(following)
    recovered, resumed = cut_of(life)
    assert recovered == kept
    assert lost[-1] < resumed < following


async def test_a_cut_ends_a_margin_after_now(redis: Valkey) -> None:
    async with open_store(redis.url, limits=StoreLimits(cut_margin_ms=5000)) as store:
        await publish(store, new("a"))
        for _ in range(2):
            await redis.restart()
            async with redis.client() as client:
                earliest = await client.time()
                _, resumed = cut_of(await store.greet("default"))
                latest = await client.time()
            # Quick restarts do not add up.
            assert earliest[0] * 1000 + 5000 <= resumed.ms <= latest[0] * 1000 + 6000


async def test_a_cut_ends_past_the_highest_position_that_a_worker_tailed(
    redis: Valkey, store: RedisStore, tmp_path: Path
) -> None:
    await redis.copy_data(tmp_path / "copy")
    await set_clock_forward(redis, "default", 3_600_000)
    lost = (await publish(store, new("a")))[0]
    store.observe("default", lost)
    store.observe("default", ORIGIN)
    await redis.restart_from(tmp_path / "copy")
    recovered, resumed = cut_of(await store.greet("default"))
    assert recovered < lost < resumed == Position(lost.ms + 1, 0)
    # A worker that tailed less adds nothing.
    async with open_store(redis.url) as other:
        assert cut_of(await other.greet("default")) == (recovered, resumed)


async def test_a_cut_ends_past_the_clock_of_a_server_whose_time_went_back(
    redis: Valkey, store: RedisStore
) -> None:
    clock = await set_clock_forward(redis, "default", 3_600_000)
    last = (await publish(store, new("a")))[0]
    await redis.restart()
    life = await store.greet("default")
    assert cut_of(life) == (last, Position(clock.ms + 1, 0))
    assert life.vouches_for(last)


async def test_a_worker_that_tailed_more_than_the_store_holds_cuts_without_a_restart(
    redis: Valkey, store: RedisStore
) -> None:
    last = (await publish(store, new("a")))[0]
    life = await store.greet("default")
    async with open_store(redis.url) as other:
        ahead = Position(life.clock.ms + 60_000, 3)
        other.observe("default", ahead)
        recovered, resumed = cut_of(await other.greet("default"))
        assert (recovered, resumed) == (last, Position(ahead.ms + 1, 0))
        assert (await publish(store, new("a")))[0] > resumed


async def test_every_restart_leaves_its_own_cut(redis: Valkey, store: RedisStore) -> None:
    positions = await publish(store, new("a"))
    for _ in range(3):
        await redis.restart()
        positions += await publish(store, new("a"))
    life = await store.greet("default")
    assert [cut.recovered for cut in life.cuts] == positions[:-1]
    assert all(map(life.vouches_for, positions))
    for cut in life.cuts:
        assert not life.vouches_for(Position(cut.recovered.ms, cut.recovered.seq + 1))
        assert life.vouches_for(cut.resumed)


async def test_the_oldest_of_many_cuts_becomes_the_floor(redis: Valkey, store: RedisStore) -> None:
    life = await store.greet("default")
    base = life.clock.ms
    cuts = [f"{base + 10 * at}-0 {base + 10 * at + 5}-0" for at in range(64)]
    async with redis.client() as client:
        clock = f"{base + 1000}-0"
        await client.hset(
            "sg:{default}:meta", mapping={"cuts": ",".join(cuts), "clock": clock, "run": "other"}
        )
    life = await store.greet("default")
    assert len(life.cuts) == 64
    assert life.floor == Position(base + 5, 0)
    assert life.cuts[0].recovered == Position(base + 10, 0)
    assert cut_of(life)[0] == Position(base + 1000, 0)


async def test_a_flushed_store_begins_an_epoch_above_all_that_was(
    redis: Valkey, store: RedisStore
) -> None:
    before = await store.greet("default")
    last = (await publish(store, new("a")))[0]
    store.observe("default", last)
    async with redis.client() as client:
        await client.flushall()
    life = await store.greet("default")
    assert life.epoch != before.epoch
    assert life.floor == life.clock > last
    assert life.cuts == ()
    assert not life.vouches_for(last)
    _, contents, _ = await store.read("default", ["a"], "both")
    assert contents[0].index is None
    first = (await publish(store, new("a")))[0]
    assert [event.prev for event in await read_ring(store, "a")] == [ORIGIN]
    assert first > life.floor


async def test_one_life_of_the_server_is_one_cut_however_many_connections_saw_it(
    redis: Valkey,
) -> None:
    async with open_store(redis.url) as one, open_store(redis.url) as two:
        await one.check()
        await two.check()
        await publish(one, new("a"))
        await redis.restart()
        lives = [await one.greet("default"), await two.greet("default")]
        assert lives[0] == lives[1]
        assert len(lives[0].cuts) == 1


async def test_the_life_of_each_namespace_is_its_own(redis: Valkey) -> None:
    async with open_store(redis.url, DEFAULT, KEYED) as store:
        await store.check()
        async with redis.client() as client:
            await client.delete("sg:{keyed}:meta")
        default, keyed = await store.greet("default"), await store.greet("keyed")
        assert default.epoch != keyed.epoch
        assert await store.greet("default") == default

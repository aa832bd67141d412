"""Sealing: after it no event stands before the boundary, whatever the clocks say."""

import asyncio

from gateway.protocol.position import ORIGIN, Position
from tests.running import Valkey
from tests.store.opening import DEFAULT, new, open_store, publish

NAME = DEFAULT.name


async def test_a_boundary_of_the_past_is_sealed_and_nothing_comes_before_it(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        [first] = await publish(store, new("a"))
        _, now_ms = await store.seal(NAME, ORIGIN)
        # The store's clock begins a little ahead of its time.
        while now_ms <= first.ms:
            await asyncio.sleep(0.05)
            _, now_ms = await store.seal(NAME, ORIGIN)
        life, _ = await store.seal(NAME, Position(now_ms, 0))
        assert life.clock == Position(now_ms, 0)
        assert life.last == first
        [second] = await publish(store, new("a"))
        assert second > Position(now_ms, 0)


async def test_a_boundary_of_the_future_is_not_sealed(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        before = await store.greet(NAME)
        life, now_ms = await store.seal(NAME, Position(before.clock.ms + 60_000, 0))
        assert life.clock == before.clock
        assert now_ms < before.clock.ms + 60_000
        assert life.same_history(before)


async def test_a_clock_that_is_past_the_boundary_stays(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        [first] = await publish(store, new("a"))
        life, _ = await store.seal(NAME, Position(first.ms - 5, 0))
        assert life.clock == first


async def test_no_event_stands_at_a_whole_second(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        positions: list[Position] = []
        seconds: set[int] = set()
        # Each whole second's millisecond is used at some time by a publisher that never rests.
        while len(seconds) < 3:
            positions += await publish(store, *[new("a")] * 20)
            if positions[-1].ms % 1000 == 0:
                seconds.add(positions[-1].ms)
        firsts = [p for p in positions if p.ms % 1000 == 0]
        assert firsts
        assert min(p.seq for p in firsts) == 1


async def test_a_seal_that_the_store_lost_is_a_cut(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await publish(store, new("a"))
        copy = redis.directory.with_name("copy")
        await redis.copy_data(copy)
        before = await store.greet(NAME)
        now_ms = before.clock.ms
        while now_ms <= before.clock.ms:
            await asyncio.sleep(0.05)
            _, now_ms = await store.seal(NAME, ORIGIN)
        sealed = Position(now_ms, 0)
        await store.seal(NAME, sealed)
        await redis.restart_from(copy)
        life = await store.greet(NAME)
        assert [cut.recovered for cut in life.cuts] == [before.clock]
        assert life.cuts[0].resumed > sealed
        [after] = await publish(store, new("a"))
        assert after > sealed

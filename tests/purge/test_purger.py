"""Purges after events: by one worker, not too often, the last change always, until it worked."""

import asyncio

import aiohttp
import orjson
import pytest

from gateway.protocol.errors import StoreRefused
from gateway.protocol.position import ORIGIN, Position
from tests.purge.hook import publish, purged, settings
from tests.purge.recorder import Recorder
from tests.running import Valkey, until, worker


async def test_a_change_is_purged_and_many_are_purged_together(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    loop, interval = asyncio.get_running_loop(), 0.5
    async with worker(redis.url, settings(hook, min_interval_ms=int(interval * 1000))) as origin:
        first = await publish(session, origin, "a")
        await until(lambda: purged(hook))
        assert purged(hook) == [("a", first)]
        began = loop.time()
        ids = [await publish(session, origin, "a") for _ in range(20)]
        other = await publish(session, origin, "b")
        await until(lambda: ("a", ids[-1]) in purged(hook) and ("b", other) in purged(hook))
        # The channel changed 21 times, within some intervals.
        intervals = (loop.time() - began) / interval
        assert len([one for one in purged(hook) if one[0] == "a"]) <= 2 + intervals
        await until(lambda: not origin.gateway.purging.purgers["default"][0].pending)
        assert origin.gateway.purging.counters.purged == len(purged(hook))


async def test_one_worker_purges_for_all_and_another_takes_over(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    async with worker(redis.url, settings(hook, min_interval_ms=50)) as second:
        async with worker(redis.url, settings(hook, min_interval_ms=50)) as first:
            published = []
            for _ in range(10):
                published.append(await publish(session, first, "a"))
                await until(lambda: ("a", published[-1]) in purged(hook))

            def counts() -> list[int]:
                return [one.gateway.purging.counters.purged for one in (first, second)]

            # The last one is counted once its answer is there.
            await until(lambda: sum(counts()) == len(purged(hook)))
            assert sorted(counts())[0] == 0
            holder, other = (first, second) if counts()[0] else (second, first)
            if holder is first:
                last = await publish(session, other, "a")
                await until(lambda: ("a", last) in purged(hook))
        # Whoever is left has it now: the other let go of it.
        last = await publish(session, second, "b")
        await until(lambda: ("b", last) in purged(hook))


async def test_what_failed_is_tried_again_until_it_works(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    hook.answer = lambda one: (503, {}, b"down")
    async with worker(redis.url, settings(hook, min_interval_ms=50)) as origin:
        purger = origin.gateway.purging.purgers["default"][0]
        await publish(session, origin, "a")
        await until(lambda: purger.breaker.failures >= 3)
        last = await publish(session, origin, "a")
        tail = origin.gateway.tails["default"]
        await until(lambda: tail.mirror.tailed >= Position.parse(last))
        assert purger.pending == 1
        tried = len(hook.received)
        hook.answer = lambda one: (200, {}, b"")
        await until(lambda: not purger.pending)
        assert purged(hook)[-1] == ("a", last)
        assert len(hook.received) == tried + 1
        assert origin.gateway.purging.counters.failures >= 3
        assert not purger.breaker.failures


async def test_a_target_that_stays_down_costs_little_and_holds_nobody_up(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    hook.answer = lambda one: (503, {}, b"down")
    async with worker(redis.url, settings(hook, min_interval_ms=50)) as origin:
        purger = origin.gateway.purging.purgers["default"][0]
        purger._limit_channels = 50  # As after many channels changed.
        for number in range(120):
            await publish(session, origin, f"c/{number}")
        await until(lambda: origin.gateway.purging.counters.dropped == 70)
        await until(lambda: purger.breaker.open)
        assert purger.pending == 50
        # While it is down one channel at a time is a probe.
        assert len(orjson.loads(hook.received[-1].body)["channels"]) <= 50
        tried = len(hook.received)
        began = asyncio.get_running_loop().time()
        for number in range(50):
            await publish(session, origin, f"c/{number}")
        # Once every 2 s at most, however many events come: see the breaker's own tests.
        assert len(hook.received) <= tried + 2 + (asyncio.get_running_loop().time() - began) / 2
        async with session.get(f"{origin.url}/snapshots/c/7") as answer:
            assert answer.status == 200
        async with session.get(f"{origin.url}/metrics") as answer:
            text = await answer.text()
    assert "sse_gateway_purge_breakers_open 1.0" in text
    assert "sse_gateway_purges_pending 50.0" in text


async def test_a_lease_has_one_holder(redis: Valkey) -> None:
    async with worker(redis.url) as origin:
        hold = origin.gateway.store.hold
        held, refused = (True, ORIGIN), (False, ORIGIN)
        assert await hold("default", "x", "one", 60) == held
        assert await hold("default", "x", "two", 60) == refused
        assert await hold("default", "x", "one", 60) == held
        assert await hold("default", "x", "two", 0) == refused
        assert await hold("default", "x", "two", 60) == refused
        assert await hold("default", "x", "one", 0) == refused
        assert await hold("default", "x", "two", 0.05) == held
        async with asyncio.timeout(10):
            while await hold("default", "x", "one", 60) != held:
                await asyncio.sleep(0.02)


async def test_what_a_lease_was_for_is_noted_by_its_holder_and_outlives_it(redis: Valkey) -> None:
    async with worker(redis.url) as origin:
        hold = origin.gateway.store.hold
        first, second = Position(7, 1), Position(8, 0)
        assert await hold("default", "x", "one", 60, first) == (True, first)
        assert await hold("default", "x", "two", 60, second) == (False, first)
        assert await hold("default", "x", "one", 0) == (False, first)
        assert await hold("default", "x", "two", 60) == (True, first)
        assert await hold("default", "x", "two", 0, second) == (False, second)
        assert await hold("default", "y", "two", 60) == (True, ORIGIN)


async def test_a_foreign_value_in_place_of_the_note_is_refused_by_name_and_ends_nothing(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    key = "sg:{default}:lease:purge:due_from"
    async with worker(redis.url, settings(hook)) as origin, redis.client() as client:
        await client.set(key, b"hello \xff")
        with pytest.raises(StoreRefused, match=key):
            await origin.gateway.store.hold("default", "purge", "one", 0)
        purger = origin.gateway.purging.purgers["default"][0]
        purger._lease_seconds = 0.5
        last = await publish(session, origin, "a")
        await until(lambda: purger.pending)
        await client.delete(key)
        await until(lambda: ("a", last) in purged(hook))

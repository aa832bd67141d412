"""Caches that are down, hang or are slow: asked seldom, by one worker, and in the end purged."""

import asyncio
from itertools import pairwise
from typing import Any

import aiohttp
import orjson

from tests.purge.hook import publish, purged, refreshed, settings
from tests.purge.recorder import Answer, Received, Recorder
from tests.running import Valkey, until, worker

AT_ONCE = 16


async def test_an_edge_that_never_answers_is_asked_little_by_one_worker_and_purged_at_last(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    given: dict[str, Any] = {
        "namespaces": {"default": {"purge": "nginx", "edge_max_age_seconds": 600}},
        "purge": {"nginx_urls": [hook.url], "min_interval_ms": 50, "timeout_seconds": 0.3},
    }
    hook.answering.clear()
    hook.answer = refreshed
    async with worker(redis.url, given) as first, worker(redis.url, given) as second:
        purgers = [one.gateway.purging.purgers["default"][0] for one in (first, second)]
        for purger in purgers:
            # All that is to be asked takes longer than a lease lasts.
            purger._lease_seconds = 3.0
        names = [f"c/{number}" for number in range(60)]
        await asyncio.gather(*[publish(session, first, name) for name in names])
        await until(lambda: any(purger.breaker.open for purger in purgers))
        failures = [one.gateway.purging.counters.failures for one in (first, second)]
        # One has it; each of its tries ends with the first request that got no answer.
        assert sorted(failures)[0] == 0
        assert len(hook.received) <= AT_ONCE * sum(failures)
        assert hook.most_under_way <= AT_ONCE
        assert [purger.pending for purger in purgers] == [60, 60]
        probed_at = max(purger.breaker.ready_at for purger in purgers)
        hook.received.clear()
        hook.answering.set()
        await until(lambda: not any(purger.pending for purger in purgers))
        assert {one.path.removeprefix("/snapshots/") for one in hook.received} == set(names)
        # A probe first: four codings of one channel.
        asked = [one.path for one in hook.received if one.at >= probed_at]
        assert len(set(asked[:4])) == 1


async def test_a_call_is_given_up_in_time_for_the_lease(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    hook.answering.clear()
    async with worker(redis.url, settings(hook, timeout_seconds=60)) as origin:
        purger = origin.gateway.purging.purgers["default"][0]
        purger._lease_seconds = 1.0
        last = await publish(session, origin, "a")
        await until(lambda: origin.gateway.purging.counters.failures)
        hook.answering.set()
        await until(lambda: not purger.pending)
        assert purged(hook)[-1] == ("a", last)


async def test_a_target_that_takes_only_so_much_at_once_gets_less_at_once(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    def answer(one: Received) -> Answer:
        return (503 if len(orjson.loads(one.body)["channels"]) > 30 else 200), {}, b""

    hook.answer = answer
    async with worker(redis.url, settings(hook, min_interval_ms=50)) as origin:
        lines = b"".join(b'{"channel":"c/%d","data":1}\n' % number for number in range(100))
        async with session.post(
            f"{origin.url}/publish", data=lines, headers={"Content-Type": "application/x-ndjson"}
        ) as stored:
            assert stored.status == 200, await stored.text()
        purger = origin.gateway.purging.purgers["default"][0]
        await until(lambda: len({name for name, _ in purged(hook)}) == 100)
        await until(lambda: not purger.pending)
        assert not purger.breaker.failures


async def test_what_failed_is_sent_again_no_oftener_than_what_changed(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    hook.answer = lambda one: (503, {}, b"down")
    async with worker(redis.url, settings(hook, min_interval_ms=1000)) as origin:
        await publish(session, origin, "a")
        await until(lambda: len(hook.received) >= 3)
        times = [one.at for one in hook.received]
        assert min(later - sooner for sooner, later in pairwise(times)) >= 1.0

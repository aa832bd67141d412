"""Purges that a worker left undone: another makes them up, and only those."""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import aiohttp

from gateway.protocol.position import ORIGIN
from gateway.purge.purger import PurgeCounters, Purger
from gateway.purge.target import Purge
from tests.purge.hook import publish, purged, settings
from tests.purge.recorder import Recorder
from tests.running import Valkey, Worker, until, worker
from tests.web.proxy import redis_proxy


def purger_of(one: Worker) -> Purger:
    return one.gateway.purging.purgers["default"][0]


async def test_what_was_left_when_the_only_worker_stopped_its_successor_purges(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    given = settings(hook, min_interval_ms=60_000)
    async with worker(redis.url, given) as first:
        done = [
            ("a", await publish(session, first, "a")),
            ("b", await publish(session, first, "b")),
        ]
        await until(lambda: set(purged(hook)) == set(done))
        # Not before a minute is over.
        last = await publish(session, first, "a")
        await until(lambda: purger_of(first).pending == 1)
    async with worker(redis.url, given) as second:
        await until(lambda: ("a", last) in purged(hook))
        await until(lambda: not purger_of(second).pending)
        # What was purged before is known.
        assert sorted(purged(hook)) == sorted([*done, ("a", last)])


async def test_what_changed_while_nobody_purged_is_purged_at_the_start(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    async with worker(redis.url) as alone:
        changed = [(name, await publish(session, alone, name)) for name in ("a", "b", "c")]
        async with session.delete(f"{alone.url}/channels/b") as answer:
            changed[1] = ("b", (await answer.json())["id"])
    async with worker(redis.url, settings(hook)) as origin:
        await until(lambda: sorted(purged(hook)) == changed)
        await until(lambda: not purger_of(origin).pending)
    async with worker(redis.url, settings(hook)) as origin:
        last = ("d", await publish(session, origin, "d"))
        await until(lambda: last in purged(hook))
        assert sorted(purged(hook)) == [*changed, last]


async def test_what_no_cache_can_have_any_more_is_not_purged_at_the_start(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    async with worker(redis.url, settings(hook)) as origin:
        for number in range(5):
            await publish(session, origin, f"c/{number}")
        mirror = origin.gateway.tails["default"].mirror
        await until(lambda: len(mirror.index) == 5)

        def remembered(later_seconds: float, limit: int = 10) -> int:
            purger = Purger(
                origin.gateway.store, "default", Nothing(), PurgeCounters(),
                min_interval_seconds=1, limit_channels=limit,
                now=lambda: time.time() + later_seconds,
            )  # fmt: skip
            purger.restart(mirror, ORIGIN)
            return purger.pending

        assert remembered(0) == 5
        assert remembered(500) == 5
        assert remembered(3600) == 0
        assert remembered(0, limit=3) == 3


class Nothing:
    """A cache that nobody has."""

    batch_limit = 1

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        raise AssertionError("nobody runs the purger")


async def test_what_went_by_in_a_break_of_the_bus_is_purged(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    given = {**settings(hook, min_interval_ms=50), "store": {"block_ms": 5000}}
    async with (
        redis_proxy(redis.socket) as proxy,
        worker(proxy.url, given) as origin,
        worker(redis.url) as alone,
    ):
        seen = ("a", await publish(session, alone, "a"))
        await until(lambda: seen in purged(hook))
        # It waits for what comes next.
        await until(
            lambda: any(b"XREAD" in one and seen[1].encode() in one for one in proxy.requests)
        )
        proxy.hold(b"XREAD")
        await publish(session, alone, "a")
        changed = [(name, await publish(session, alone, name)) for name in ("b", "c", "a", "d")]
        async with redis.client() as client:
            await client.xtrim("sg:{default}:bus", maxlen=1, approximate=False)
        proxy.release()
        await until(lambda: set(changed) <= set(purged(hook)))
        await until(lambda: not purger_of(origin).pending)
        assert origin.gateway.tails["default"].mirror.restarts == 2


async def test_an_event_of_a_quiet_namespace_is_purged_once_however_many_workers_there_are(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    given = settings(hook, min_interval_ms=50)
    async with (
        worker(redis.url, given) as first,
        worker(redis.url, given) as second,
        worker(redis.url, given) as third,
    ):
        workers = (first, second, third)
        for one in workers:
            purger_of(one)._lease_seconds = 3.0
        only = ("a", await publish(session, first, "a"))
        for one in workers:
            await until(lambda one=one: one.gateway.tails["default"].mirror.index)  # type: ignore[misc]
        # Until nobody means to purge it any more.
        await until(lambda: not any(purger_of(one).pending for one in workers))
        assert purged(hook) == [only]


async def test_what_one_could_not_purge_for_long_another_does(
    redis: Valkey, session: aiohttp.ClientSession, hook: Recorder
) -> None:
    hook.answer = lambda one: (503, {}, b"down")
    given = settings(hook, min_interval_ms=50)
    async with AsyncExitStack() as one, AsyncExitStack() as other:
        workers = {await stack.enter_async_context(worker(redis.url, given)): stack
                   for stack in (one, other)}  # fmt: skip
        for each in workers:
            purger_of(each)._lease_seconds = 0.5
        only = ("a", await publish(session, next(iter(workers)), "a"))
        # For several times as long as a lease lasts.
        await until(lambda: any(purger_of(each).breaker.open for each in workers))
        assert [purger_of(each).pending for each in workers] == [1, 1]
        [holder] = [each for each in workers if purger_of(each).breaker.open]
        await workers[holder].aclose()
        hook.answer = lambda one: (200, {}, b"")
        hook.received.clear()
        await until(lambda: only in purged(hook))

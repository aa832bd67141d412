"""Many readers with `/client.js` that are all due at once come one by one, seen where they come."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from statistics import quantiles
from time import monotonic
from typing import Any

import aiohttp
import pytest_asyncio

from tests.clients.crowds import CHANNEL, follow_each_its_own_way
from tests.clients.faults import Way
from tests.clients.pages import (
    ONE_LOOP,
    TRANSPORTS,
    Opener,
    browser,
    opener,
    publish,
    reached,
    redis,
    session,
)
from tests.running import ENDLESS, Valkey, until, worker

__all__ = ["browser", "opener", "redis", "session"]

pytestmark = ONE_LOOP

RETRY_SECONDS = 2.0
LONG: dict[str, Any] = {
    "streams": {"retry_ms": int(1000 * RETRY_SECONDS), "heartbeat_seconds": 1.0},
    "slices": {"retry_ms": int(1000 * RETRY_SECONDS)},
    "namespaces": {"default": ENDLESS},
}
"""A long-poll is told no `retry`: the module's own is two seconds, too."""


@pytest_asyncio.fixture(loop_scope="module")
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Ends what the test opens, the last first."""
    async with AsyncExitStack() as stack:
        yield stack


def assert_spread(moments: Sequence[float], least_span: float) -> None:
    """Hold that a dozen moments or more fill what they may of the time to come back in.

    By chance one crowd in a million has a smaller span: what all but a machine that stands still
    leaves of the spread, and many times what is there without one.
    """
    assert max(moments) - min(moments) >= least_span * RETRY_SECONDS, sorted(moments)


async def test_readers_that_lose_their_gateway_together_come_back_one_by_one(
    redis: Valkey, session: aiohttp.ClientSession, opener: Opener, closing: AsyncExitStack
) -> None:
    async with worker(redis.url, LONG) as running:
        page = await opener(running.url)
        await publish(session, running.url, CHANNEL, 1)
        crowds = [
            await follow_each_its_own_way(page, running.url, closing, transport, 12)
            for transport in TRANSPORTS
        ]
        # Each long-poll waits, after its first look.
        await until(lambda: running.gateway.requests["/history"] >= 24)
        lost = monotonic()
        readers = [way for crowd in crowds for way in crowd.values()]
        for way in readers:
            way.refuses = True
            way.cut()
        all_moments = []
        for crowd in crowds:
            moments = [await comes_back(way, lost) for way in crowd.values()]
            assert_spread(moments, 1 / 4)
            all_moments += moments
        assert_spread(all_moments, 1 / 2)
        # Nor are all but a few at the same moment.
        early, _, late = quantiles(all_moments, n=4)
        assert late - early >= RETRY_SECONDS / 10, sorted(all_moments)
        for way in readers:
            way.refuses = False
        await page.evaluate("dispatchEvent(new Event('online'))")  # No need to wait any longer.
        last = await publish(session, running.url, CHANNEL, 2)
        for crowd in crowds:
            for name in crowd:
                found = await reached(page, name, last)
                assert (found["data"], found["gaps"]) == ([2], [])


async def comes_back(way: Way, lost: float) -> float:
    """Return after how long a reader tried again, which is not before its time.

    A browser by itself repeats, at once, a request that it sent over a connection it had kept.
    """
    due = lost + 0.9 * RETRY_SECONDS
    await until(lambda: way.refusals and way.refusals[-1] >= due)
    early = [moment for moment in way.refusals if moment < due]
    assert len(early) <= 1
    return way.refusals[len(early)] - lost

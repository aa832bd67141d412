"""The pace of batches: near the tail at once; far ahead not before it comes, or for a while."""

import asyncio

import pytest

from gateway.hub.pace import Pace
from gateway.protocol.position import Position
from gateway.store.redis import RedisStore
from tests.hub.following import following
from tests.store.opening import new, publish


async def test_a_batch_near_the_tail_waits_for_nothing(store: RedisStore) -> None:
    async with following(store) as follower:
        await follower.stop()
        follower.tail.connected = True  # It only stands still.
        pace = Pace(follower.tail, wait_seconds=1000)
        for _ in range(4):
            last = (await publish(store, new("a")))[-1]
            await asyncio.wait_for(pace.keep(last, 0.25), 10)


async def test_a_batch_far_ahead_waits_for_the_tail_to_come_near(store: RedisStore) -> None:
    async with following(store) as follower:
        await follower.stop()
        follower.tail.connected = True
        pace = Pace(follower.tail, wait_seconds=1000)
        due = (await publish(store, new("a")))[-1]
        await pace.keep(due, 0.5)
        last = (await publish(store, new("a"), new("a")))[-1]
        waiting = asyncio.create_task(pace.keep(last, 0.75))
        await asyncio.sleep(0)
        assert follower.mirror.tailed < due
        assert not waiting.done()
        await follower.start()
        await asyncio.wait_for(waiting, 10)
        assert follower.mirror.tailed >= due


async def test_a_tail_that_stands_still_holds_a_batch_only_for_a_while(store: RedisStore) -> None:
    async with following(store) as follower:
        await follower.stop()
        follower.tail.connected = True
        pace = Pace(follower.tail, wait_seconds=0.01)
        last = (await publish(store, new("a"), new("a")))[-1]
        await pace.keep(last, 0.6)
        await pace.keep(last, 0.6)
        assert follower.mirror.tailed < last
        # And one that has lost the store holds none.
        follower.tail.connected = False
        await asyncio.wait_for(Pace(follower.tail, wait_seconds=1000).keep(last, 2.0), 10)


async def test_two_batches_are_stored_at_once_and_more_only_when_small(store: RedisStore) -> None:
    async with following(store) as follower:
        pace = Pace(follower.tail)
        begun: list[str] = []
        ends: dict[str, asyncio.Event] = {}

        def start(name: str, weight: float) -> asyncio.Task[None]:
            ends[name] = asyncio.Event()

            async def batch() -> None:
                async with pace.turn(weight):
                    begun.append(name)
                    await ends[name].wait()

            return asyncio.create_task(batch())

        async def settled() -> list[str]:
            for _ in range(20):
                await asyncio.sleep(0)
            return begun

        tasks = [start("a", 0.01), start("b", 0.05), start("c", 0.1), start("d", 1.0)]
        tasks.append(start("e", 0.01))
        assert await settled() == ["a", "b", "c"]  # A small one does not pass a large one.
        ends["a"].set()
        assert await settled() == ["a", "b", "c"]
        tasks[1].cancel()  # Who breaks off makes room, too.
        assert await settled() == ["a", "b", "c", "d"]
        ends["c"].set()
        assert await settled() == ["a", "b", "c", "d", "e"]
        ends["d"].set()
        ends["e"].set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answer is None for answer in answers] == [True, False, True, True, True]


async def test_batches_as_fast_as_they_are_taken_do_not_outrun_the_tail(
    store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred batches of 2,000 from sixteen callers: five times what the bus holds."""
    size, left = 2000, iter(range(100))
    events = [new(f"a/{at % 50}") for at in range(size)]
    stored: list[Position] = []
    async with following(store) as follower:
        pace = Pace(follower.tail)

        async def send() -> None:
            for _ in left:
                async with pace.turn(size / 10_000):
                    positions = await publish(store, *events)
                    await pace.keep(positions[-1], size / 10_000)
                stored.extend(positions)

        await asyncio.gather(*(send() for _ in range(16)))
        stored.sort()
        await follower.tailed(stored[-1])
        assert len(stored) == 200_000
        assert follower.heard.ids == stored
        assert len(follower.heard.restarts) == 1
    assert "break" not in caplog.text

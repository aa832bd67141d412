"""Rings read from the real store into the mirror: once, while the tail runs, within a bound."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.hub.mirror import Missing, NeedsRings, Resumable
from gateway.protocol.errors import StoreUnavailable
from gateway.protocol.namespace import Reducer
from gateway.protocol.position import ORIGIN, Position
from gateway.store.redis import RedisStore
from gateway.store.scripts import READ
from tests.hub.following import Follower, following, select
from tests.running import Valkey, until
from tests.store.opening import DEFAULT, calls, new, open_store, publish, read_ring
from tests.web.proxy import redis_proxy

QUIET_MS = 60_000
"""A tail that blocks this long asks the server nothing while a test counts its commands."""


def in_memory(follower: Follower, channel: str) -> list[Position]:
    ring = follower.mirror.ring(channel)
    assert ring is not None
    return [event.id for event in ring.page(ORIGIN, 1_000_000)]


def floor_of(follower: Follower) -> Position:
    assert follower.mirror.life is not None
    return follower.mirror.life.floor


async def test_rings_are_read_once_however_many_ask(redis: Valkey, store: RedisStore) -> None:
    names = [f"c/{at}" for at in range(100)]
    positions = await publish(store, *map(new, names), *map(new, names))
    async with following(store, block_ms=QUIET_MS) as follower:
        before = await calls(redis)
        chance = random.Random(1)
        await asyncio.gather(
            *(
                follower.rings.read(follower.tail, chance.sample(names, chance.randint(1, 100)))
                for _ in range(49)
            ),
            follower.rings.read(follower.tail, names),
        )
        assert follower.rings.reads == 100
        # Thirty-two rings to a call at most, and whoever waited asked for what was left.
        assert await calls(redis) - before <= 12
        assert in_memory(follower, "c/7") == [positions[7], positions[107]]
        before = await calls(redis)
        await follower.rings.read(follower.tail, names)
        assert await calls(redis) == before


async def test_a_channel_that_nobody_knows_needs_no_read(redis: Valkey, store: RedisStore) -> None:
    async with following(store, block_ms=QUIET_MS) as follower:
        await follower.rings.read(follower.tail, ["never", "never/2"])
        assert follower.rings.reads == 0


async def test_rings_read_while_the_tail_runs_meet_what_it_brings(redis: Valkey) -> None:
    """Fresh workers come up and read at once, again and again, while events never stop."""
    rules = replace(DEFAULT, ring_limit_events=100_000)
    names = [f"c/{at}" for at in range(8)]
    published: list[tuple[Position, str]] = []
    async with open_store(redis.url, rules) as store, open_store(redis.url, rules) as writer:
        stop = asyncio.Event()

        async def write() -> None:
            chance = random.Random(2)
            while not stop.is_set():
                batch = chance.choices(names, k=chance.randint(1, 20))
                published.extend(zip(await publish(writer, *map(new, batch)), batch, strict=True))

        writing = asyncio.create_task(write())
        await until(lambda: len(published) > 200)
        for _ in range(15):
            async with following(store) as follower:
                start = published[len(published) // 2][0]
                at_once = published[-1][0]
                await follower.tailed(at_once)
                got = await follower.replay("c/*", position=start, piece_bytes=5000)
                ids = [event.id for event in got]
                expected = [position for position, _ in published if position > start]
                # The last ones may have come before their publisher was told of them.
                assert ids[: len(expected)] == expected[: len(ids)]
                assert ids[-1] >= at_once
                await follower.tailed(published[-1][0])
                for name in names:
                    own = [p for p, channel in published if channel == name]
                    have = in_memory(follower, name)
                    assert have[: len(own)] == own[: len(have)]
        stop.set()
        await writing


async def test_channels_that_come_and_go_while_they_are_read_leave_no_hole(redis: Valkey) -> None:
    """Deletions, trimming and eviction, against a mirror that can hold little."""
    rules = replace(DEFAULT, ring_limit_events=5)
    names = [f"c/{at}" for at in range(5)]
    async with (
        open_store(redis.url, rules) as store,
        open_store(redis.url, rules) as writer,
        following(store, limit_bytes=20_000) as follower,
    ):
        stop = asyncio.Event()
        last = ORIGIN

        async def write() -> None:
            nonlocal last
            chance = random.Random(3)
            while not stop.is_set():
                name = chance.choice(names)
                last = (await publish(writer, *(new(name) for _ in range(chance.randint(1, 8)))))[
                    -1
                ]
                if chance.random() < 0.2:
                    last = await writer.delete("default", name)

        writing = asyncio.create_task(write())
        await until(lambda: len(follower.mirror.index) == len(names))
        chance = random.Random(4)
        for _ in range(150):
            name = chance.choice(names)
            async with asyncio.timeout(10):
                await follower.rings.read(follower.tail, [name])
            ring = follower.mirror.ring(name)
            if ring is not None:
                page = ring.page(ORIGIN, 100)
                chain = [ring.resumable_from, *(event.id for event in page)]
                assert [event.prev for event in page] == chain[:-1]
        stop.set()
        await writing
        await follower.tailed(last)
        for name in names:
            await follower.rings.read(follower.tail, [name])
            have = in_memory(follower, name)
            assert have == [event.id for event in await read_ring(store, name)]
            assert follower.mirror.exists(name) == bool(have)


async def test_rings_that_exceed_the_mirror_together_are_read_one_after_the_other(
    store: RedisStore,
) -> None:
    names = [f"c/{at}" for at in range(60)]
    await publish(store, *(new(name, f'"{"x" * 1000}"') for name in names))
    async with following(store, limit_bytes=20_000) as follower:
        start = floor_of(follower)
        waiting, rounds = set(names), 0
        async with asyncio.timeout(10):
            while waiting:
                rounds += 1
                await follower.rings.read(follower.tail, sorted(waiting))
                served = {
                    name for name in waiting if follower.judge(name, position=start) == Resumable()
                }
                assert served
                assert follower.mirror.size_bytes < 25_000
                waiting -= served
        assert 5 < rounds < 12
        assert follower.rings.reads < 400


async def test_a_wildcard_whose_rings_exceed_the_mirror_is_a_gap_not_an_endless_read(
    store: RedisStore,
) -> None:
    names = [f"c/{at}" for at in range(60)]
    positions = await publish(store, *(new(name, f'"{"x" * 1000}"') for name in names))
    async with following(store, limit_bytes=20_000) as follower:
        verdict = follower.judge("c/*", position=floor_of(follower))
        async with asyncio.timeout(10):
            while isinstance(verdict, NeedsRings):
                await follower.rings.read(follower.tail, verdict.channels)
                verdict = follower.judge("c/*", position=floor_of(follower))
        assert verdict == Missing("too_large", positions[-1])
        assert follower.rings.reads <= 3 * 60
        assert follower.mirror.size_bytes < 25_000
        # The last few fit.
        got = await follower.replay("c/*", position=positions[-4])
        assert [event.id for event in got] == positions[-3:]


async def test_a_ring_that_went_on_and_was_evicted_during_its_read_is_read_again_at_once(
    redis: Valkey, store: RedisStore
) -> None:
    """No further event comes, so whoever waited for one would wait for ever."""
    first = await publish(store, new("a"))
    async with (
        redis_proxy(redis.socket) as proxy,
        open_store(proxy.url) as reader,
        following(reader, limit_bytes=1, block_ms=QUIET_MS) as follower,
    ):
        proxy.hold(READ.sha.encode())
        reading = asyncio.create_task(follower.rings.read(follower.tail, ["a"]))
        await until(lambda: proxy.seen(READ.sha.encode()))
        later = await publish(store, new("a"), new("b"))
        await follower.tailed(later[-1])
        assert follower.mirror.ring("a") is None
        proxy.release()
        async with asyncio.timeout(10):
            await reading
        assert in_memory(follower, "a") == [*first, later[0]]
        assert follower.rings.reads == 2


async def test_a_ring_read_across_a_new_beginning_is_read_again(
    redis: Valkey, store: RedisStore
) -> None:
    await publish(store, new("a"))
    async with (
        redis_proxy(redis.socket) as proxy,
        open_store(proxy.url) as reader,
        following(reader, block_ms=QUIET_MS) as follower,
    ):
        proxy.hold(READ.sha.encode())
        reading = asyncio.create_task(follower.rings.read(follower.tail, ["a"]))
        await until(lambda: proxy.seen(READ.sha.encode()))
        async with redis.client() as client:
            await client.flushall()
        fresh = await publish(store, new("a"))
        await until(lambda: follower.mirror.tailed == fresh[0])
        proxy.release()
        async with asyncio.timeout(10):
            await reading
        assert in_memory(follower, "a") == fresh


async def test_a_ring_that_the_index_knows_to_be_ahead_waits_for_the_tail(
    store: RedisStore,
) -> None:
    """As when an event comes between the two things that a tail begins with."""
    positions = await publish(store, new("a"))
    life = await store.greet("default")
    positions += await publish(store, new("a"))
    index = {name: entry async for name, entry in store.scan_index("default")}
    follower = Follower(store, DEFAULT, 1 << 20, QUIET_MS)
    follower.mirror.restart(life, index)
    reading = asyncio.create_task(follower.rings.read(follower.tail, ["a"]))
    await until(lambda: follower.rings.reads == 1)
    await store.greet("default")
    assert not reading.done()
    await follower.start()
    async with asyncio.timeout(10):
        await reading
    await follower.stop()
    assert follower.heard.restarts == []
    assert in_memory(follower, "a") == positions


async def test_a_ring_is_read_again_when_the_store_was_replaced_meanwhile(
    redis: Valkey, store: RedisStore, tmp_path: Path
) -> None:
    kept = await publish(store, new("a"))
    await redis.copy_data(tmp_path / "copy")
    lost = await publish(store, new("a"))
    async with following(store) as follower:
        await redis.restart_from(tmp_path / "copy")
        # The reader asks the new server before the tail has noticed it.
        async with asyncio.timeout(10):
            while True:
                try:
                    await follower.rings.read(follower.tail, ["a"])
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
        assert in_memory(follower, "a") == kept
        assert follower.judge("a", position=kept[0]) == Resumable()
        head = follower.mirror.head
        assert follower.judge("a", position=lost[0]) == Missing("restored", head)


async def test_a_server_that_is_down_is_said_to_be(redis: Valkey, store: RedisStore) -> None:
    await publish(store, new("a"))
    async with following(store) as follower:
        await redis.stop()
        with pytest.raises(StoreUnavailable):
            await follower.rings.read(follower.tail, ["a"])
        await redis.start()
        await until(lambda: follower.tail.connected)
        await follower.rings.read(follower.tail, ["a"])
        assert len(in_memory(follower, "a")) == 1


async def test_a_wildcard_replays_in_order_from_rings_of_the_store(redis: Valkey) -> None:
    rules = replace(DEFAULT, reducer=Reducer.NONE)
    names = [f"c/{at}/{at % 3}" for at in range(40)] + ["other", "c"]
    chance = random.Random(5)
    async with open_store(redis.url, rules) as store:
        batch = chance.choices(names, k=2000)
        positions = await publish(
            store, *(new(name, f'"{"x" * chance.randint(0, 300)}"') for name in batch)
        )
        both = list(zip(positions, batch, strict=True))
        async with following(store) as follower:
            for selectors in (("c/*",), ("c/1/*", "other"), ("c",)):
                start = positions[chance.randrange(2000)]
                got = await follower.replay(*selectors, position=start, piece_bytes=2000)
                chosen = select(*selectors)
                assert [(event.id, event.channel) for event in got] == [
                    (position, name)
                    for position, name in both
                    if position > start and chosen.matches(name)
                ]

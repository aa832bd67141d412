"""Channels that ended long ago are forgotten, others never."""

import asyncio

import pytest

from gateway.hub.tombstones import forget_ended, sweep
from gateway.store.redis import RedisStore
from tests.hub.following import following
from tests.running import Valkey, until
from tests.store.opening import new, publish


async def test_only_what_ended_before_the_time_is_forgotten(store: RedisStore) -> None:
    async with following(store) as follower:
        await publish(store, new("a"), new("b"), new("kept"))
        old = await store.delete("default", "a")
        young = await store.delete("default", "b")
        await follower.tailed(young)
        await sweep(store, follower.tail, old.ms / 1000 - 60)
        assert follower.mirror.index.keys() == {"a", "b", "kept"}
        await sweep(store, follower.tail, young.ms / 1000 + 60)
        await until(lambda: follower.mirror.index.keys() == {"kept"})


async def test_an_outage_only_puts_it_off(store: RedisStore, redis: Valkey) -> None:
    async with following(store) as follower:
        await publish(store, new("a"))
        await follower.tailed(await store.delete("default", "a"))
        await redis.stop()
        await sweep(store, follower.tail, 1e12)
        await redis.start()
        await until(lambda: follower.tail.connected)
        await sweep(store, follower.tail, 1e12)
        await until(lambda: not follower.mirror.index)


async def test_it_goes_on_by_itself(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.hub.tombstones._PAUSE_SECONDS", 0.01)
    async with following(store) as follower:
        await publish(store, new("a"))
        await follower.tailed(await store.delete("default", "a"))
        forgetting = asyncio.create_task(forget_ended(store, [follower.tail], -3600))
        await until(lambda: not follower.mirror.index)
        assert not forgetting.done()
        forgetting.cancel()

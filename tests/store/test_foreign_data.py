"""What another program wrote into the store's keys is told as such, and ends nothing."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from gateway.protocol.errors import StoreRefused
from gateway.protocol.position import ORIGIN
from gateway.store.redis import RedisStore
from tests.running import Valkey, Worker, until
from tests.store.opening import new, open_store, publish

RING, BUS, INDEX = (f"sg:{{default}}:{name}" for name in ("ring:a", "bus", "channels"))


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url) as opened:
        yield opened


async def test_a_foreign_entry_of_a_ring_is_refused_by_name(
    redis: Valkey, store: RedisStore
) -> None:
    await publish(store, new("a"))
    async with redis.client() as client:
        await client.delete(RING)
        await client.xadd(RING, {"foo": "bar"}, id="1-1")
    with pytest.raises(StoreRefused, match="ring:a"):
        await store.read("default", ["a"], "ring")


async def test_a_foreign_entry_of_the_bus_is_refused_by_name(
    redis: Valkey, store: RedisStore
) -> None:
    async with redis.client() as client:
        await client.xadd(BUS, {"foo": "bar"}, id="1-1")
    with pytest.raises(StoreRefused, match="bus"):
        await store.read_bus("default", ORIGIN, 10, 10)


@pytest.mark.parametrize("value", ["hello", "", "\xff"])
async def test_a_foreign_value_of_the_index_is_refused_by_name(
    redis: Valkey, store: RedisStore, value: str
) -> None:
    async with redis.client() as client:
        await client.hset(INDEX, "zzz", value.encode("latin-1"))
    with pytest.raises(StoreRefused, match="channels"):
        _ = [entry async for entry in store.scan_index("default")]


async def test_a_foreign_entry_of_the_bus_leaves_the_gateway_running(
    redis: Valkey, gateway: Worker, session: aiohttp.ClientSession
) -> None:
    tail = gateway.gateway.tails["default"]
    async with redis.client() as client:
        life = tail.mirror.life
        assert life is not None
        await client.xadd(BUS, {"foo": "bar"}, id=f"{life.last.ms}-{life.last.seq + 1}")
        await until(lambda: not tail.connected)
        async with session.get(f"{gateway.url}/livez") as response:
            assert response.status == 200
        await client.xtrim(BUS, maxlen=0, approximate=False)
    await until(lambda: tail.connected)
    gateway.check()

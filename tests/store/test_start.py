"""What a gateway refuses to start on, and in which words."""

from dataclasses import replace

import pytest

from gateway.protocol.errors import StoreRefused
from gateway.protocol.namespace import Namespace, Reducer
from tests.running import Valkey
from tests.store.cutting import cutting_proxy
from tests.store.opening import DEFAULT, KEYED, new, open_store, publish


async def refusal(redis: Valkey, *namespaces: Namespace) -> str:
    async with open_store(redis.url, *namespaces) as store:
        with pytest.raises(StoreRefused) as caught:
            await store.check()
    return str(caught.value)


async def test_a_server_that_evicts_keys_is_refused(redis: Valkey) -> None:
    async with redis.client() as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        said = await refusal(redis, DEFAULT)
        assert "maxmemory-policy allkeys-lru" in said
        assert "set maxmemory-policy noeviction" in said
        assert await client.keys("*") == []
        await client.config_set("maxmemory-policy", "noeviction")
    async with open_store(redis.url) as store:
        await store.check()


async def test_a_server_that_is_too_old_is_refused(redis: Valkey) -> None:
    async with redis.client() as client:
        version = (await client.info("server"))["redis_version"]
    async with cutting_proxy(redis.socket) as proxy:
        proxy.replace(f"redis_version:{version[0]}.".encode(), b"redis_version:5.")
        async with open_store(proxy.url) as store:
            with pytest.raises(StoreRefused, match=r"redis 5\.\S+ is too old: 6\.2 or newer"):
                await store.check()
    async with redis.client() as client:
        assert await client.keys("*") == []


async def test_data_of_another_schema_is_refused(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await store.check()
    async with redis.client() as client:
        await client.hset("sg:{default}:meta", "schema", "2")
        before = await client.dump("sg:{default}:meta")
        assert "was written by another version" in await refusal(redis, DEFAULT)
        assert await client.dump("sg:{default}:meta") == before


async def test_another_reducer_than_the_states_were_folded_by_is_refused(redis: Valkey) -> None:
    changed = replace(KEYED, reducer=Reducer.LAST)
    async with open_store(redis.url, DEFAULT, KEYED) as store:
        await store.check()
    # As long as there is no channel, nothing was folded.
    async with open_store(redis.url, DEFAULT, changed) as store:
        await store.check()
    async with open_store(redis.url, DEFAULT, KEYED) as store:
        await publish(store, new("keyed/a", key="k"), namespace="keyed")
    said = await refusal(redis, DEFAULT, changed)
    assert said.startswith("namespaces.keyed.reducer = last: ")
    assert "folded by keyed" in said
    assert "\n" not in said
    async with open_store(redis.url, DEFAULT, KEYED) as store:
        await store.check()


async def test_a_namespace_that_would_take_over_channels_is_refused_and_told_how_to_move_them(
    redis: Valkey,
) -> None:
    async with open_store(redis.url) as store:
        await publish(store, new("sport/tennis"), new("sporting/x"), new("a/sport"))
        sport = Namespace("sport")
        said = await refusal(redis, DEFAULT, sport)
        assert said.startswith("namespaces.sport: would take over channel sport/tennis")
        for step in (
            "sse-gateway tail sport 'sport/*'",
            "curl -X DELETE …/channels/sport/tennis",
            "sse-gateway publish --from sport.ndjson",
        ):
            assert step in said
        await store.delete("default", "sport/tennis")
        async with open_store(redis.url, DEFAULT, sport, Namespace("a.b")) as moved:
            await moved.check()
            await publish(moved, new("sport/tennis"), namespace="sport")


async def test_the_channel_named_as_the_namespace_counts_as_taken_over(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await publish(store, new("sport"))
    assert "channel sport of namespace default" in await refusal(redis, DEFAULT, Namespace("sport"))

"""A refused publish leaves nothing behind: every script checks everything before it writes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
from redis.exceptions import ResponseError

from gateway.protocol.errors import (
    IdempotencyConflict,
    LimitExceeded,
    PositionMismatch,
    StoreRefused,
    StoreUnavailable,
    UnknownChannel,
)
from gateway.protocol.event import NewEvent
from gateway.protocol.position import Position
from gateway.store.redis import RedisStore
from gateway.store.scripts import SWEEP
from tests.running import Valkey
from tests.store.opening import DEFAULT, FAR, KEYED, dump, new, open_store, publish, read_ring

META, INDEX, BUS = "sg:{default}:meta", "sg:{default}:channels", "sg:{default}:bus"
RING, STATE = "sg:{default}:ring:b", "sg:{default}:state:b"

Corruption = tuple[tuple[str, ...], ...]

CORRUPTIONS: dict[str, Corruption] = {
    "index value": (("HSET", INDEX, "b", "nonsense"),),
    "index past the clock": (("HSET", INDEX, "b", f"{FAR} 10"),),
    "index of another type": (("DEL", INDEX), ("SET", INDEX, "x")),
    "ring of another type": (("DEL", RING), ("SET", RING, "x")),
    "ring past the clock": (("XADD", RING, FAR, "d", "x"),),
    "ring that was past the clock": (("XADD", RING, FAR, "d", "x"), ("XDEL", RING, FAR)),
    "state of another type": (("DEL", STATE), ("RPUSH", STATE, "x")),
    "bus of another type": (("DEL", BUS), ("SET", BUS, "x")),
    "bus past the clock": (("XADD", BUS, FAR, "d", "x"),),
    "bus that was past the clock": (("XSETID", BUS, FAR),),
    "meta of another type": (("DEL", META), ("SET", META, "x")),
    "clock": (("HSET", META, "clock", "soon"),),
    "floor": (("HSET", META, "floor", "-"),),
    "last": (("HDEL", META, "last"),),
    "bytes": (("HDEL", META, "bytes"),),
    "generation": (("HSET", META, "generation", "x"),),
    "cuts": (("HSET", META, "cuts", "x y"),),
    "reducer": (("HDEL", META, "reducer"),),
    "idempotency key of another type": (("RPUSH", "sg:{default}:idem:-:t", "x"),),
    "idempotency record": (("SET", "sg:{default}:idem:-:t", "x"),),
}
INDEX_CORRUPTIONS = ("index value", "index past the clock")


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url, DEFAULT, KEYED) as opened:
        yield opened


async def corrupt(redis: Valkey, corruption: Corruption) -> None:
    async with redis.client() as client:
        for command in corruption:
            await client.execute_command(*command)


async def assert_nothing_written(
    redis: Valkey, action: Callable[[], Awaitable[object]], *errors: type[Exception]
) -> str:
    before = await dump(redis)
    with pytest.raises(errors) as caught:
        await action()
    assert await dump(redis) == before
    return str(caught.value)


async def test_an_error_midway_in_lua_keeps_earlier_writes(redis: Valkey) -> None:
    async with redis.client() as client:
        with pytest.raises(ResponseError, match="halfway"):
            await client.eval("redis.call('SET', KEYS[1], 'x'); error('halfway')", 1, "kept")
        assert await client.get("kept") == b"x"


@pytest.mark.parametrize("what", CORRUPTIONS)
async def test_corrupt_data_refuses_a_batch_before_its_first_write(
    redis: Valkey, store: RedisStore, what: str
) -> None:
    await publish(store, new("a"), new("b"))
    await corrupt(redis, CORRUPTIONS[what])
    batch = (new("a", "2"), new("b", "2", idempotency_key="t"), new("c", "2"))
    said = await assert_nothing_written(redis, lambda: publish(store, *batch), StoreRefused)
    assert "default" in said


@pytest.mark.parametrize("what", [*INDEX_CORRUPTIONS, "bus past the clock", "bytes"])
async def test_corrupt_data_refuses_a_deletion_before_its_first_write(
    redis: Valkey, store: RedisStore, what: str
) -> None:
    await publish(store, new("a"), new("b"))
    await corrupt(redis, CORRUPTIONS[what])
    await assert_nothing_written(redis, lambda: store.delete("default", "b"), StoreRefused)


@pytest.mark.parametrize("what", INDEX_CORRUPTIONS)
async def test_corrupt_data_refuses_a_sweep_before_its_first_write(
    redis: Valkey, store: RedisStore, what: str
) -> None:
    await publish(store, new("a"), new("b"))
    await store.delete("default", "a")
    await store.delete("default", "b")
    await corrupt(redis, CORRUPTIONS[what])
    await assert_nothing_written(redis, lambda: store.sweep("default", ["a", "b"]), StoreRefused)


async def test_a_keyed_state_without_its_size_refuses_the_batch(
    redis: Valkey, store: RedisStore
) -> None:
    await publish(store, new("keyed/a", key="k"), namespace="keyed")
    await corrupt(redis, (("HSET", "sg:{keyed}:state:keyed/a", "#", "many"),))
    batch = (new("keyed/b", key="k"), new("keyed/a", key="l"))
    await assert_nothing_written(
        redis, lambda: publish(store, *batch, namespace="keyed"), StoreRefused
    )


async def test_strange_entries_within_the_clock_do_not_break_a_publish_midway(
    redis: Valkey,
) -> None:
    rules = replace(DEFAULT, ring_limit_bytes=300)
    async with open_store(redis.url, rules) as store:
        await store.greet("default")
        await corrupt(redis, (("XADD", RING, "5-0", "d", "x"), ("XADD", BUS, "5-0", "d", "x")))
        for _ in range(3):
            await publish(store, new("b", b'"%b"' % (b"x" * 800_000)))
        assert len(await read_ring(store, "b")) == 1


async def test_a_large_ring_that_refuses_is_begun_anew_and_the_batch_is_stored_whole(
    redis: Valkey, store: RedisStore
) -> None:
    """Its size makes asking for its highest id too dear; a refusal midway would leave a half."""
    last = (await publish(store, new("a"), new("b", b'"%b"' % (b"x" * 20_000))))[1]
    await corrupt(redis, CORRUPTIONS["ring that was past the clock"])
    await publish(store, new("a", "2"), new("b", "2"), new("c", "2"))
    await publish(store, new("b", "3"))
    assert len(await read_ring(store, "a")) == 2
    ring = await read_ring(store, "b")
    # What stands before the first of them is not in the ring: whoever resumes there sees a gap.
    assert ([event.data for event in ring], ring[0].prev) == ([b"2", b"3"], last)


async def test_an_index_value_without_dropped_bytes_is_read(
    redis: Valkey, store: RedisStore
) -> None:
    first = (await publish(store, new("b")))[0]
    await corrupt(redis, (("HSET", INDEX, "b", f"{first} 65 x"),))
    with pytest.raises(UnknownChannel):
        await store.delete("default", "b")
    await corrupt(redis, (("HSET", INDEX, "b", f"{first} 65"),))
    await publish(store, new("b"))
    async with redis.client() as client:
        assert (await client.hget(INDEX, "b")).split()[1:] == [b"130", b"0"]


async def test_a_full_server_stores_nothing_of_a_batch(redis: Valkey, store: RedisStore) -> None:
    await publish(store, new("a"))
    async with redis.client() as client:
        await client.config_set("maxmemory", 1)
    said = await assert_nothing_written(
        redis, lambda: publish(store, new("a", "2"), new("b", "2")), StoreUnavailable
    )
    assert "full" in said


async def test_a_replica_stores_nothing_of_a_batch(redis: Valkey, store: RedisStore) -> None:
    await publish(store, new("a"))
    async with redis.client() as client:
        await client.replicaof("127.0.0.1", "1")
    await assert_nothing_written(
        redis, lambda: publish(store, new("a", "2"), new("b", "2")), StoreUnavailable
    )


async def test_a_batch_whose_second_event_breaks_a_rule_leaves_nothing(redis: Valkey) -> None:
    rules = (
        replace(DEFAULT, channels_limit=3, state_limit_bytes=1000),
        replace(KEYED, keys_limit=2, state_limit_bytes=1000),
    )
    big = f'"{"x" * 1000}"'
    breaking: list[tuple[NewEvent, type[Exception], dict[str, str]]] = [
        (new("c", "2", idempotency_key="used"), IdempotencyConflict, {}),
        (new("d", "2"), LimitExceeded, {}),
        (new("a", big), LimitExceeded, {}),
        (new("b", "2"), PositionMismatch, {"if_match": str(Position(1, 1))}),
    ]
    async with open_store(redis.url, *rules) as store:
        await publish(store, new("a"), new("b", idempotency_key="used"))
        await publish(store, new("keyed/a", key="1"), new("keyed/a", key="2"), namespace="keyed")
        for event, error, call in breaking:
            action = partial(publish, store, new("c", "2"), event, **call)
            await assert_nothing_written(redis, action, error)
        for event in (new("keyed/a", key="3"), new("keyed/a", big, key="1")):
            batch = (new("keyed/a", "2", key="2"), event)
            action = partial(publish, store, *batch, namespace="keyed")
            await assert_nothing_written(redis, action, LimitExceeded)


async def test_a_limit_names_the_event_that_breaks_it(redis: Valkey) -> None:
    async with open_store(
        redis.url, replace(DEFAULT, channels_limit=2), replace(KEYED, keys_limit=1)
    ) as store:
        await publish(store, new("a"))
        with pytest.raises(LimitExceeded, match="at most 2 channels") as caught:
            await publish(store, new("a"), new("b"), new("a"), new("c"))
        assert (caught.value.line, caught.value.value) == (4, "c")
        with pytest.raises(LimitExceeded, match="at most 1 keys") as caught:
            await publish(
                store, new("keyed/a", key="1"), new("keyed/a", key="2"), namespace="keyed"
            )
        assert (caught.value.line, caught.value.value) == (2, "2")


async def test_an_index_entry_that_changed_since_it_was_listed_is_not_swept(
    redis: Valkey, store: RedisStore
) -> None:
    await publish(store, new("a"))
    await store.delete("default", "a")
    async with redis.client() as client:
        listed = await client.hget(INDEX, "a")
        assert listed is not None
        await publish(store, new("a"))
        await store.delete("default", "a")
        before = await dump(redis)
        run = (await client.info("server"))["run_id"]
        keys = (META, INDEX, BUS, "sg:{default}:ring:a", "sg:{default}:state:a")
        arguments = (run, "0-0", "token", 1000, "last", "a", listed)
        reply = await client.eval(SWEEP.source, len(keys), *keys, *arguments)
    assert reply[1] == 0
    assert await dump(redis) == before

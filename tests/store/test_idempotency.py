"""Idempotency keys: the same answer for a day, to the same publisher and namespace only."""

from collections.abc import AsyncIterator

import pytest

from gateway.protocol.errors import IdempotencyConflict, PositionMismatch
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position
from gateway.store.redis import PublishCall, RedisStore
from tests.running import Valkey
from tests.store.opening import DEFAULT, new, open_store, publish, read_ring

OTHER = Namespace("other")
DAY_MS = 24 * 3600 * 1000


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url, DEFAULT, OTHER) as opened:
        yield opened


async def test_a_key_gives_the_same_position_again_and_stores_once(store: RedisStore) -> None:
    call = PublishCall([new("a", idempotency_key="t")])
    first = await store.publish("default", call)
    again = await store.publish("default", call)
    assert [one.replayed for one in first + again] == [False, True]
    assert first[0].position == again[0].position
    assert len(await read_ring(store, "a")) == 1
    await publish(store, new("a", "2"))
    assert (await store.publish("default", call))[0].position == first[0].position


async def test_a_key_of_another_event_is_a_conflict(store: RedisStore) -> None:
    event = new("a", idempotency_key="t")
    await publish(store, event)
    for other in (
        event._replace(data=b"2"),
        event._replace(channel="b"),
        event._replace(type="x"),
        event._replace(key="x"),
        event._replace(json=False),
    ):
        with pytest.raises(IdempotencyConflict) as caught:
            await publish(store, new("c"), other)
        assert (caught.value.key, caught.value.line) == ("t", 2)
    assert len(await read_ring(store, "c")) == 0


async def test_a_key_may_repeat_within_a_batch(store: RedisStore) -> None:
    event = new("a", idempotency_key="t")
    stored = await store.publish("default", PublishCall([event, new("b"), event]))
    assert stored[0].position == stored[2].position
    assert [one.replayed for one in stored] == [False, False, True]
    assert len(await read_ring(store, "a")) == 1
    with pytest.raises(IdempotencyConflict):
        await publish(store, new("a", idempotency_key="u"), new("b", idempotency_key="u"))


async def test_a_batch_sent_again_with_more_stores_only_the_rest(store: RedisStore) -> None:
    first = await publish(store, new("a", idempotency_key="1"))
    stored = await store.publish(
        "default",
        PublishCall([new("a", f"{at}", idempotency_key=f"{at}") for at in (1, 2)]),
    )
    assert [one.replayed for one in stored] == [True, False]
    assert [event.id for event in await read_ring(store, "a")] == [*first, stored[1].position]


async def test_keys_are_kept_for_a_day(redis: Valkey, store: RedisStore) -> None:
    await publish(store, new("a", idempotency_key="t"))
    async with redis.client() as client:
        left = await client.pttl("sg:{default}:idem:-:t")
        assert DAY_MS - 60_000 < left <= DAY_MS
        await publish(store, new("a", idempotency_key="t"))
        assert await client.pttl("sg:{default}:idem:-:t") <= left
        await client.delete("sg:{default}:idem:-:t")
    await publish(store, new("a", idempotency_key="t"))
    assert len(await read_ring(store, "a")) == 2


async def test_keys_of_another_namespace_or_publisher_are_others(store: RedisStore) -> None:
    event = new("a", idempotency_key="t")
    one = (await publish(store, event))[0]
    await publish(store, new("other/a", idempotency_key="t"), namespace="other")
    two = (await publish(store, event._replace(data=b"2"), publisher="p"))[0]
    assert one < two
    assert len(await read_ring(store, "a")) == 2


async def test_a_replay_is_answered_before_if_match_is_looked_at(store: RedisStore) -> None:
    first = (await publish(store, new("a")))[0]
    call = PublishCall([new("a", "2", idempotency_key="t")], if_match=str(first))
    second = await store.publish("default", call)
    # The channel has moved on, and the position no longer matches: still the same answer.
    again = await store.publish("default", call)
    assert again[0].position == second[0].position
    assert again[0].replayed
    with pytest.raises(IdempotencyConflict):
        await publish(store, new("a", "3", idempotency_key="t"), if_match="1-1")
    with pytest.raises(PositionMismatch) as caught:
        await publish(store, new("a", "3", idempotency_key="u"), if_match=str(first))
    assert caught.value.current == second[0].position
    # A refused call leaves its key free.
    await publish(store, new("a", "4", idempotency_key="u"))


async def test_if_match_needs_the_last_position(store: RedisStore) -> None:
    for expected in ("*", str(Position(0, 0))):
        with pytest.raises(PositionMismatch) as caught:
            await publish(store, new("a"), if_match=expected)
        assert caught.value.current is None
    first = (await publish(store, new("a")))[0]
    second = (await publish(store, new("a"), if_match=str(first)))[0]
    with pytest.raises(PositionMismatch):
        await publish(store, new("a"), if_match=str(first))
    await publish(store, new("a"), if_match="*")
    assert len(await read_ring(store, "a")) == 3
    assert second > first

"""Single events of many callers on the real store: one call for all, each with its own answer."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.protocol.errors import (
    IdempotencyConflict,
    LimitExceeded,
    PositionMismatch,
    StoreBusy,
    StoreUnavailable,
)
from gateway.protocol.event import NewEvent
from gateway.store.publish_queue import SinglesQueue
from gateway.store.publisher import Publisher
from gateway.store.redis import PublishCall, RedisStore, Stored
from tests.running import Valkey, until
from tests.store.opening import DEFAULT, KEYED, calls, new, open_store, publish, read_ring


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    async with open_store(redis.url, replace(DEFAULT, channels_limit=5), KEYED) as opened:
        await opened.greet("default")
        yield opened


@pytest.fixture
def publisher(store: RedisStore) -> Publisher:
    return Publisher(store, store.namespaces)


async def all_at_once(
    publisher: Publisher, *events: NewEvent, namespace: str = "default"
) -> list[list[Stored] | BaseException]:
    return await asyncio.gather(
        *(publisher.publish(namespace, [event]) for event in events), return_exceptions=True
    )


async def test_many_callers_are_stored_by_few_calls_each_at_its_own_position(
    redis: Valkey, store: RedisStore, publisher: Publisher
) -> None:
    before = await calls(redis)
    events = [new("a", str(at)) for at in range(100)]
    answers = await all_at_once(publisher, *events)
    assert await calls(redis) - before <= 2
    stored = {event.id: event.data for event in await read_ring(store, "a")}
    assert len(stored) == publisher.events == 100
    for event, answer in zip(events, answers, strict=True):
        assert isinstance(answer, list)
        assert [stored[one.position] for one in answer] == [event.data]


async def test_a_refusal_is_for_the_caller_that_it_concerns(
    store: RedisStore, publisher: Publisher
) -> None:
    await publish(store, new("a", idempotency_key="t"), *(new(f"c/{at}") for at in range(3)))
    answers = await all_at_once(
        publisher,
        new("a", "2"),
        new("a", "other", json=False, idempotency_key="t"),
        new("c/1", "3"),
        new("last/free/name"),
        new("one/too/many"),
        new("c/2", "4"),
    )
    refused = [type(answer) for answer in answers if not isinstance(answer, list)]
    assert refused == [IdempotencyConflict, LimitExceeded]
    assert isinstance(answers[1], IdempotencyConflict)
    assert isinstance(answers[4], LimitExceeded)
    # As if it had been alone.
    assert answers[1].line == answers[4].line == 1
    assert [event.data for event in await read_ring(store, "a")] == [b"1", b"2"]
    assert await read_ring(store, "last/free/name")


async def test_one_idempotency_key_of_many_callers_is_stored_once(
    store: RedisStore, publisher: Publisher
) -> None:
    answers = await all_at_once(publisher, *(new("a", idempotency_key="t") for _ in range(20)))
    stored = [one for answer in answers if isinstance(answer, list) for one in answer]
    assert [one.replayed for one in stored] == [False] + [True] * 19
    assert len({one.position for one in stored}) == len(await read_ring(store, "a")) == 1


async def test_keys_of_a_keyed_channel_that_come_together_are_all_in_its_state(
    store: RedisStore, publisher: Publisher
) -> None:
    events = [new("keyed/a", str(at), key=f"k{at % 7}") for at in range(21)]
    await all_at_once(publisher, *events, namespace="keyed")
    _, contents, _ = await store.read("keyed", ["keyed/a"], "state")
    fields = {name: value for name, value in contents[0].state.items() if name != b"#"}
    assert fields == {b"kk%d" % at: b"j%d" % (at + 14) for at in range(7)}


async def test_if_match_sees_what_was_stored_before_it(
    store: RedisStore, publisher: Publisher
) -> None:
    first = (await publish(store, new("a")))[0]
    matching = [publisher.publish("default", [new("a", "x")], str(first)) for _ in range(5)]
    answers = await asyncio.gather(*matching, return_exceptions=True)
    assert sum(isinstance(answer, PositionMismatch) for answer in answers) == 4
    assert len(await read_ring(store, "a")) == 2


async def test_callers_that_left_before_their_round_store_nothing(store: RedisStore) -> None:
    queue = SinglesQueue(store, "default")
    for stays in (1, 0):
        callers = [
            asyncio.create_task(queue.publish(PublishCall([new("a", str(at))]))) for at in range(4)
        ]
        while queue.waiting < 4:
            await asyncio.sleep(0)
        for caller in callers[stays:]:
            caller.cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [isinstance(answer, list) for answer in answers] == [True] * stays + [False] * (
            4 - stays
        )
    await queue.publish(PublishCall([new("a", "last")]))
    assert [event.data for event in await read_ring(store, "a")] == [b"0", b"last"]


async def test_no_more_callers_wait_than_the_bound(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.publish_queue._WAITING_CALLS", 3)
    answers = await all_at_once(publisher, *(new("a") for _ in range(10)))
    assert [isinstance(answer, list) for answer in answers] == [True] * 3 + [False] * 7
    assert all(isinstance(answer, StoreBusy) for answer in answers[3:])


async def test_a_store_that_dies_fails_all_of_a_round_and_the_next_goes_on(
    redis: Valkey, store: RedisStore
) -> None:
    queue = SinglesQueue(store, "default")
    async with redis.client() as client:
        await client.client_pause(60_000)
        callers = [asyncio.create_task(queue.publish(PublishCall([new("a")]))) for _ in range(10)]
        while not callers[0].done() and queue.waiting == 0:
            await asyncio.sleep(0)
        await until(lambda: queue.waiting == 0)
        assert not any(caller.done() for caller in callers)
        await redis.stop(signal.SIGKILL)
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    await redis.start()
    await queue.publish(PublishCall([new("a")]))
    assert len(await read_ring(store, "a")) == 1


async def test_a_batch_whose_caller_leaves_is_stored_whole(
    redis: Valkey, store: RedisStore, publisher: Publisher
) -> None:
    before = await calls(redis)
    async with redis.client() as client:
        await client.client_pause(500)  # Until its caller has gone.
        caller = asyncio.create_task(publisher.publish("default", [new("a"), new("a", "2")]))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    while await calls(redis) == before:
        await asyncio.sleep(0.005)
    assert [event.data for event in await read_ring(store, "a")] == [b"1", b"2"]


async def test_nobody_is_told_the_refusal_of_one_who_left(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, channels_limit=2)) as store:
        queue = SinglesQueue(store, "default")
        for channel in ("one", "two"):
            await queue.publish(PublishCall([new(channel)]))
        refused = asyncio.create_task(queue.publish(PublishCall([new("three")])))
        valid = asyncio.create_task(queue.publish(PublishCall([new("one")])))
        for waiting in (2, 0):  # Both go into one call, which the first of them spoils.
            while queue.waiting != waiting:
                await asyncio.sleep(0)
        refused.cancel()
        assert len(await valid) == 1

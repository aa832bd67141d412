"""Merged states on the real store: grouped on a worker, compared and set between workers."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.protocol.errors import (
    IdempotencyConflict,
    InvalidField,
    LimitExceeded,
    MergeContention,
    PositionMismatch,
    StoreBusy,
    StoreRefused,
)
from gateway.store.connection import ConnectionOptions, open_server
from gateway.store.merge import MergeQueue
from gateway.store.publisher import Publisher
from gateway.store.redis import PublishCall, RedisStore, Stored, StoreLimits
from tests.running import Valkey
from tests.store.opening import (
    MERGED,
    calls,
    dump,
    new,
    open_publisher,
    open_store,
    read_ring,
    read_state,
)

CHANNEL = "merged/a"


@pytest.fixture
async def publisher(redis: Valkey) -> AsyncIterator[Publisher]:
    async with open_publisher(redis.url, MERGED) as opened:
        yield opened


async def stored_text(redis: Valkey, channel: str = CHANNEL) -> bytes:
    async with open_store(redis.url, MERGED) as store:
        return (await read_state(store, channel, "merged"))[b"v"]


@pytest.fixture
async def queue(redis: Valkey) -> AsyncIterator[MergeQueue]:
    async with open_store(redis.url, MERGED) as store:
        yield MergeQueue(store, "merged")


async def start_callers(queue: MergeQueue, *patches: str) -> list[asyncio.Task[list[Stored]]]:
    """Start a caller for each patch; all of them wait for a round when this returns."""
    await queue.publish(PublishCall([new(CHANNEL, "{}")]))
    callers = [
        asyncio.create_task(queue.publish(PublishCall([new(CHANNEL, patch)]))) for patch in patches
    ]
    async with asyncio.timeout(10):
        while queue.waiting < len(callers):
            await asyncio.sleep(0)
    return callers


async def merge(publisher: Publisher, *patches: str, channel: str = CHANNEL) -> None:
    await publisher.publish("merged", [new(channel, patch) for patch in patches])


async def test_concurrent_merges_of_a_channel_are_grouped_and_all_of_them_count(
    redis: Valkey, publisher: Publisher
) -> None:
    await merge(publisher, "{}")
    before = await calls(redis)
    answers = await asyncio.gather(
        *(publisher.publish("merged", [new(CHANNEL, f'{{"k{at}":{at}}}')]) for at in range(200))
    )
    # A read and a publish a round; the first round may take the first caller alone.
    assert await calls(redis) - before <= 6
    positions = [answer[0].position for answer in answers]
    assert positions == sorted(set(positions))
    assert json.loads((await stored_text(redis))[1:]) == {f"k{at}": at for at in range(200)}
    async with open_store(redis.url, MERGED) as store:
        ring = await read_ring(store, CHANNEL, "merged")
    assert [event.id for event in ring[1:]] == positions


async def test_two_workers_that_merge_one_channel_at_once_lose_nothing(redis: Valkey) -> None:
    async with (
        open_publisher(redis.url, MERGED) as one,
        open_publisher(redis.url, MERGED) as two,
    ):

        async def run(publisher: Publisher, name: str) -> None:
            async def caller(number: int) -> None:
                for at in range(5):
                    await merge(publisher, f'{{"{name}{number}-{at}":1}}', '{"both":2}')

            await asyncio.gather(*map(caller, range(10)))

        await asyncio.gather(run(one, "one"), run(two, "two"))
    state = json.loads((await stored_text(redis))[1:])
    assert len(state) == 101
    async with open_store(redis.url, MERGED) as store:
        ring = await read_ring(store, CHANNEL, "merged")
    folded: dict[str, int] = {}
    for event in ring:
        folded |= json.loads(event.data)
    assert (len(ring), folded) == (200, state)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('["a","b"]', '["c","d"]', '["c","d"]'),
        ('{"a":"b"}', '["c"]', '["c"]'),
        ('{"a":"foo"}', "null", "null"),
        ('{"a":"foo"}', '"bar"', '"bar"'),
        ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ],
)
async def test_stored_states_follow_the_appendix_of_rfc_7396(
    appendix: Publisher, redis: Valkey, target: str, patch: str, result: str
) -> None:
    """All of appendix A but `{"e":null}`, a target that no merge leaves behind."""
    await merge(appendix, target)
    await merge(appendix, patch)
    assert await stored_text(redis) == b"j" + result.encode()
    # Folding both in one call leads to the same.
    await merge(appendix, target, patch, channel="merged/b")
    assert await stored_text(redis, "merged/b") == b"j" + result.encode()


@pytest.fixture
async def appendix(redis: Valkey) -> AsyncIterator[Publisher]:
    async with open_publisher(redis.url, MERGED) as opened:
        yield opened


async def test_big_integers_and_empty_arrays_survive_merging(
    redis: Valkey, publisher: Publisher
) -> None:
    big = '{"big":12345678901234567890123,"empty":[],"nested":{"array":[],"object":{}}}'
    await merge(publisher, big)
    await merge(publisher, '{"other":9007199254740993}')
    text = await stored_text(redis)
    assert b'"big":12345678901234567890123' in text
    assert b'"other":9007199254740993' in text
    assert json.loads(text[1:]) == json.loads(big) | {"other": 9007199254740993}


async def test_a_deleted_channel_is_merged_from_nothing(
    redis: Valkey, publisher: Publisher
) -> None:
    await merge(publisher, '{"a":1}')
    end = await publisher.delete("merged", CHANNEL)
    await merge(publisher, '{"b":2}')
    assert await stored_text(redis) == b'j{"b":2}'
    async with open_store(redis.url, MERGED) as store:
        assert (await read_ring(store, CHANNEL, "merged"))[0].prev == end


async def test_a_batch_whose_second_event_breaks_a_rule_leaves_nothing(redis: Valkey) -> None:
    rules = replace(MERGED, state_limit_bytes=100, channels_limit=1)
    async with open_publisher(redis.url, rules) as publisher:
        await merge(publisher, '{"a":1}')
        before = await dump(redis)
        long = f'{{"b":"{"x" * 100}"}}'
        for second in (new(CHANNEL, long), new("merged/other")):
            with pytest.raises(LimitExceeded):
                await publisher.publish("merged", [new(CHANNEL, '{"a":2}'), second])
        with pytest.raises(InvalidField) as caught:
            await publisher.publish(
                "merged", [new(CHANNEL, '{"a":2}'), new(CHANNEL, "text", json=False)]
            )
        assert caught.value.line == 2
        assert await dump(redis) == before


async def test_one_refused_caller_does_not_fail_those_it_is_grouped_with(redis: Valkey) -> None:
    rules = replace(MERGED, channels_limit=2, state_limit_bytes=1000)
    async with open_publisher(redis.url, rules) as publisher:
        await merge(publisher, "{}")
        used = new("merged/b", '{"t":1}', idempotency_key="used")
        await publisher.publish("merged", [used])
        over = f'{{"b":"{"x" * 1000}"}}'
        answers = await asyncio.gather(
            merge(publisher, '{"1":1}'),
            merge(publisher, "{}", channel="merged/c"),
            merge(publisher, over),
            publisher.publish("merged", [used._replace(data=b"{}")]),
            publisher.publish("merged", [new(CHANNEL, '{"m":1}')], if_match="1-1"),
            merge(publisher, '{"2":2}'),
            return_exceptions=True,
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [
            type(None),
            LimitExceeded,
            LimitExceeded,
            IdempotencyConflict,
            PositionMismatch,
            type(None),
        ]
        assert await stored_text(redis) == b'j{"1":1,"2":2}'


async def test_a_caller_that_leaves_takes_nobody_with_it(redis: Valkey, queue: MergeQueue) -> None:
    callers = await start_callers(queue, *(f'{{"k{at}":{at}}}' for at in range(10)))
    callers[0].cancel()
    callers[5].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    left = [at for at, answer in enumerate(answers) if isinstance(answer, list)]
    assert left == [1, 2, 3, 4, 6, 7, 8, 9]
    state = json.loads((await stored_text(redis))[1:])
    assert state.keys() >= {f"k{at}" for at in left}


async def test_callers_that_all_left_before_their_round_store_nothing(
    redis: Valkey, queue: MergeQueue
) -> None:
    callers = await start_callers(queue, *(3 * ['{"left":1}']))
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    await queue.publish(PublishCall([new(CHANNEL, '{"stayed":1}')]))
    assert await stored_text(redis) == b'j{"stayed":1}'


async def test_merges_are_idempotent_alone_grouped_and_within_a_call(
    redis: Valkey, publisher: Publisher
) -> None:
    once = new(CHANNEL, '{"a":[1]}', idempotency_key="t")
    first = await publisher.publish("merged", [once])
    await merge(publisher, '{"a":[2]}')
    answers = await asyncio.gather(
        publisher.publish("merged", [once]),
        publisher.publish("merged", [new(CHANNEL, '{"b":1}'), once, once]),
        publisher.publish("merged", [new(CHANNEL, '{"c":1}', idempotency_key="u")]),
        publisher.publish("merged", [new(CHANNEL, '{"c":1}', idempotency_key="u")]),
    )
    assert answers[0] == [(first[0].position, True)]
    assert answers[1][1] == answers[1][2] == (first[0].position, True)
    assert answers[2][0].position == answers[3][0].position
    assert [one.replayed for answer in answers[2:] for one in answer] == [False, True]
    assert await stored_text(redis) == b'j{"a":[2],"b":1,"c":1}'
    with pytest.raises(IdempotencyConflict) as caught:
        await publisher.publish("merged", [new(CHANNEL, "{}"), once._replace(data=b"{}")])
    assert caught.value.line == 2


async def test_two_workers_store_one_idempotent_merge_once(redis: Valkey) -> None:
    async with (
        open_publisher(redis.url, MERGED) as one,
        open_publisher(redis.url, MERGED) as two,
    ):
        for at in range(10):
            event = new(CHANNEL, f'{{"k":{at}}}', idempotency_key=f"t{at}")
            stored = await asyncio.gather(
                *(publisher.publish("merged", [event]) for publisher in (one, two))
            )
            assert stored[0][0].position == stored[1][0].position
            assert sorted(answer[0].replayed for answer in stored) == [False, True]


async def test_if_match_holds_for_merges_one_after_the_other(
    redis: Valkey, publisher: Publisher
) -> None:
    with pytest.raises(PositionMismatch):
        await publisher.publish("merged", [new(CHANNEL, "{}")], if_match="*")
    first = (await publisher.publish("merged", [new(CHANNEL, '{"a":1}')]))[0].position
    answers = await asyncio.gather(
        *(
            publisher.publish("merged", [new(CHANNEL, f'{{"by":{at}}}')], if_match=str(first))
            for at in range(5)
        ),
        return_exceptions=True,
    )
    assert [isinstance(answer, PositionMismatch) for answer in answers] == [False] + 4 * [True]
    assert json.loads((await stored_text(redis))[1:]) == {"a": 1, "by": 0}
    await publisher.publish("merged", [new(CHANNEL, '{"a":2}')], if_match="*")


async def test_groups_are_bounded_by_events_and_bytes(redis: Valkey, publisher: Publisher) -> None:
    value = "x" * 3_000_000
    await asyncio.gather(
        *(merge(publisher, f'{{"v":"{value}"}}', '{"v":null}') for _ in range(5)),
        *(merge(publisher, *(9000 * ["{}"])) for _ in range(2)),
    )
    async with redis.client() as client:
        stats = await client.info("commandstats")
    # Three of the large ones do not fit 8 MiB, nor two of the many 10,000 events.
    assert stats["cmdstat_hset"]["calls"] >= 2 * 4
    assert await stored_text(redis) == b"j{}"


async def test_a_merged_state_that_is_no_json_is_the_stores_fault(
    redis: Valkey, publisher: Publisher
) -> None:
    await merge(publisher, "{}")
    async with redis.client() as client:
        await client.hset("sg:{merged}:state:merged/a", "v", "j{")
    before = await dump(redis)
    with pytest.raises(StoreRefused, match="merged/a"):
        await merge(publisher, '{"a":1}')
    assert await dump(redis) == before
    await merge(publisher, '{"a":1}', channel="merged/b")


async def test_the_line_that_makes_a_state_too_large_is_named(redis: Valkey) -> None:
    rules = replace(MERGED, state_limit_bytes=100)
    async with open_publisher(redis.url, rules) as publisher:
        first = [new(CHANNEL, "{}")._replace(idempotency_key="t")]
        await publisher.publish("merged", first)
        large = [new(CHANNEL, '{"x":"' + "x" * 60 + '"}'), new(CHANNEL, '{"y":"' + "y" * 60 + '"}')]
        with pytest.raises(LimitExceeded, match="100 bytes") as caught:
            # Its first event was stored before, and still counts as a line.
            await publisher.publish("merged", [*first, *large, new("merged/other", "{}")])
        assert caught.value.line == 3
    assert await stored_text(redis) == b"j{}"


@pytest.mark.parametrize(("bound", "limit"), [("CALLS", 3), ("BYTES", 3 * (500 + 8))])
async def test_no_more_callers_wait_than_the_bounds(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, bound: str, limit: int
) -> None:
    monkeypatch.setattr(f"gateway.store.publish_queue._WAITING_{bound}", limit)
    answers = await asyncio.gather(
        *(merge(publisher, f'{{"k{at}":{at}}}') for at in range(10)), return_exceptions=True
    )
    assert answers[:3] == [None, None, None]
    for answer in answers[3:]:
        assert isinstance(answer, StoreBusy)
        assert "3 publishes of 1524 bytes are waiting" in str(answer)
    # What was stored makes room; what is larger than the bound may wait alone.
    await merge(publisher, *(5 * ['{"more":1}']))


class Outpaced(RedisStore):
    """Another worker changes what it reads before it can build on it."""

    other: Publisher

    async def read(self, *args: Any, **named: Any) -> Any:
        contents = await super().read(*args, **named)
        await merge(self.other, '{"other":1}')
        return contents


async def test_a_merge_that_others_outpace_every_time_is_given_up_and_stores_nothing(
    redis: Valkey, publisher: Publisher
) -> None:
    server = open_server(redis.url, ConnectionOptions())
    store = Outpaced(server, {"merged": MERGED}, StoreLimits())
    store.other = publisher
    try:
        with pytest.raises(MergeContention, match="other workers"):
            await MergeQueue(store, "merged").publish(PublishCall([new(CHANNEL, '{"mine":1}')]))
    finally:
        await store.aclose()
    assert await stored_text(redis) == b'j{"other":1}'

"""`POST /publish`: a batch of lines, all or nothing."""

import asyncio
import io

import aiohttp
import orjson
import pytest

from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import NDJSON, Client, digest, event, first_id
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy


def batch(*lines: object) -> bytes:
    return b"\n".join(
        line if isinstance(line, bytes) else orjson.dumps(line) for line in lines
    )  # fmt: skip


async def test_every_line_gets_its_position_in_order(client: Client) -> None:
    answer = await client.post(
        "/publish",
        batch(
            {"channel": "a", "data": {"n": 1}, "type": "t", "key": "k"},
            b"",
            {"channel": "b/c", "data": "text"},
            {"channel": "a", "data": None},
            b"",
        ),
        NDJSON,
    )
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"ids", "count"}
    assert answer.json["count"] == 3
    ids = answer.json["ids"]
    positions = [Position.parse(id) for id in ids]
    assert positions == sorted(set(positions))
    await client.settle()
    assert (await client.get("/history/a")).json["events"] == [
        {"id": ids[0], "channel": "a", "type": "t", "key": "k", "data": {"n": 1}},
        {"id": ids[2], "channel": "a", "data": None},
    ]
    assert await client.data_of("b/c") == ["text"]


async def test_big_integers_stay_exact_everywhere(client: Client) -> None:
    data = b'{"n":12345678901234567890123,"m":-9223372036854775809}'
    async with (
        client.follow("/events/a") as one,
        client.follow("/events?channel=a&channel=b") as two,
    ):
        await first_id(one)
        await first_id(two)
        answer = await client.post("/publish", b'{"channel":"a","data":%b}' % data, NDJSON)
        assert answer.status == 200
        assert (await event(one))[2] == data.decode()
        assert (await event(two))[2] == f'{{"channel":"a","data":{data.decode()}}}'
    assert data in (await client.get("/snapshots/a")).body
    assert data in (await client.get("/history/a")).body


async def test_a_bad_batch_names_each_bad_line_and_stores_nothing(
    start: Start, redis: Valkey
) -> None:
    client = await start(
        {"publish": {"event_limit_bytes": 1000}, "namespaces": {"n": {"reducer": "keyed"}}}
    )
    before = await digest(redis)
    good = {"channel": "a", "data": 1}
    answer = await client.post(
        "/publish",
        batch(
            good,
            b"{",
            {"channel": "a b", "data": 1},
            {"channel": "a"},
            b"",
            {"channel": "a", "data": 1, "colour": "red"},
            {"channel": "a", "data": "x" * 1001},
            {"channel": "a", "data": 1, "type": "a\nb"},
            {"channel": "n/a", "data": 1, "key": "k"},
            b'{"channel":123456789012345678901234567890,"data":1}',
            b'{"channel":"a","data":1,"%b":1}' % (b"long" * 10_000),
            b"\xff",
            good,
        ),
        NDJSON,
    )
    assert answer.status == 422
    problem = answer.problem
    assert problem["detail"].startswith("nothing was stored: 10 bad line(s), the first in line 2")
    assert [(error["line"], error["field"]) for error in problem["errors"]] == [
        (2, "line"),
        (3, "channel"),
        (4, "data"),
        (6, "colour"),
        (7, "data"),
        (8, "type"),
        (9, "channel"),
        (10, "channel"),
        (11, ("long" * 25)),
        (12, "line"),
    ]
    assert all(error["rule"] and "value" in error for error in problem["errors"])
    assert problem["errors"][1]["value"] == "a b"
    assert len(answer.body) < 10_000
    assert await digest(redis) == before


async def test_what_the_reducer_cannot_take_is_named_line_by_line(
    start: Start, redis: Valkey
) -> None:
    client = await start(
        {"namespaces": {"keyed": {"reducer": "keyed"}, "merge": {"reducer": "merge"}}}
    )
    before = await digest(redis)
    cases: list[tuple[list[dict[str, object]], list[int], str]] = [
        ([{"data": 1, "key": "k"}, {"data": 1}, {"data": 1, "key": ""}], [2, 3], "key"),
        ([{"data": "text"}, {"data": {}}, {"data": ""}], [1, 3], "data"),
    ]
    for lines, wrong, field in cases:
        name = "keyed/a" if field == "key" else "merge/a"
        answer = await client.post(
            "/publish", batch(*({"channel": name, **line} for line in lines)), NDJSON
        )
        assert answer.status == 422
        errors = answer.problem["errors"]
        assert [error["line"] for error in errors] == wrong
        assert {error["field"] for error in errors} == {field}
    assert await digest(redis) == before


async def test_what_the_store_refuses_is_named_by_its_line(start: Start, redis: Valkey) -> None:
    client = await start({"namespaces": {"n": {"reducer": "keyed", "keys_limit": 2}}})
    before = await digest(redis)
    lines = [{"channel": "n/a", "key": str(n), "data": 1} for n in range(3)]
    answer = await client.post("/publish", batch(lines[0], b"", lines[1], b"", lines[2]), NDJSON)
    assert answer.status == 422
    [error] = answer.problem["errors"]
    assert (error["line"], error["field"], error["value"]) == (5, "key", "2")
    assert await digest(redis) == before


async def test_a_batch_over_a_limit_is_refused_whole(start: Start, redis: Valkey) -> None:
    client = await start(
        {
            "publish": {
                "event_limit_bytes": 1000, "batch_limit_bytes": 5000, "batch_limit_events": 10,
            }
        }
    )  # fmt: skip
    before = await digest(redis)
    line = {"channel": "a", "data": 1}
    for body, rule in (
        (batch(*[line] * 11), "a batch is at most 10 lines"),
        (b"x" * 5001, "must be at most 5000 bytes"),
        (b"x" * 60_000, "must be at most 5000 bytes"),
    ):
        answer = await client.post("/publish", body, NDJSON)
        assert answer.status == 413, rule
        assert (answer.problem["field"], answer.problem["rule"]) == ("body", rule)
    assert await digest(redis) == before
    assert (await client.post("/publish", batch(*[line] * 10), NDJSON)).json["count"] == 10
    full = batch(*[{"channel": "a", "data": "x" * 900}] * 5)
    assert (await client.post("/publish", full.ljust(5000), NDJSON)).status == 200


async def test_a_request_that_is_no_batch_is_told_what_one_is(
    client: Client, redis: Valkey
) -> None:
    before = await digest(redis)
    line = b'{"channel":"a","data":1}'
    cases: list[tuple[str, bytes, dict[str, str], int, str]] = [
        ("", b"", NDJSON, 422, "body"),
        ("", b"\n \r\n", NDJSON, 422, "body"),
        ("", line, {}, 415, "Content-Type"),
        ("", line, {"Content-Type": "application/json"}, 415, "Content-Type"),
        ("?x=1", line, NDJSON, 400, "x"),
        ("?type=t", line, NDJSON, 400, "type"),
        ("", line, {**NDJSON, "Idempotency-Key": "k"}, 400, "Idempotency-Key"),
        ("", line, {**NDJSON, "If-Match": "*"}, 400, "If-Match"),
    ]
    for query, body, headers, status, field in cases:
        answer = await client.post(f"/publish{query}", body, headers)
        assert (answer.status, answer.problem["field"]) == (status, field), (query, headers)
    assert await digest(redis) == before
    kind = {"Content-Type": "Application/X-NDJSON; charset=utf-8"}
    assert (await client.post("/publish", line, kind)).status == 200


async def test_a_line_that_was_stored_before_is_not_stored_again(client: Client) -> None:
    lines: list[dict[str, object]] = [
        {"channel": "b", "data": 0},
        {"channel": "a", "data": 1, "idempotency_key": "k1"},
        {"channel": "b", "data": 2},
        {"channel": "a", "data": 3, "idempotency_key": "k3"},
    ]
    first = await client.post("/publish", batch(*lines), NDJSON)
    assert "replayed" not in first.json
    again = await client.post("/publish", batch(*lines), NDJSON)
    assert again.status == 200
    assert again.json["replayed"] == 2
    assert [again.json["ids"][n] == first.json["ids"][n] for n in range(4)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert await client.data_of("a") == [1, 3]
    assert await client.data_of("b") == [0, 2, 0, 2]
    # A single publish knows the keys of lines.
    single = await client.post(
        "/publish/a", b"1", {"Content-Type": "application/json", "Idempotency-Key": "k1"}
    )
    assert single.json["id"] == first.json["ids"][1]


@pytest.mark.parametrize("reducer", ["last", "merge"])
async def test_a_line_whose_key_stood_for_another_event_is_a_conflict_of_the_whole(
    start: Start, redis: Valkey, reducer: str
) -> None:
    client = await start({"namespaces": {"n": {"reducer": reducer}}})
    line = {"channel": "n/a", "data": {"n": 1}, "idempotency_key": "k"}
    same = await client.post("/publish", batch(line, line), NDJSON)
    assert same.json["ids"][0] == same.json["ids"][1]
    before = await digest(redis)
    for lines, wrong in (
        ([{"channel": "n/b", "data": 1}, b"", {**line, "data": {"n": 2}}], 3),
        ([{**line, "idempotency_key": "new"}, {**line, "data": 0, "idempotency_key": "new"}], 2),
    ):
        answer = await client.post("/publish", batch(*lines), NDJSON)
        assert answer.status == 409
        assert answer.problem["line"] == wrong
    assert await digest(redis) == before


async def test_ten_thousand_lines_are_one_round_trip(
    session: aiohttp.ClientSession, start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        client = await start({"store": {"block_ms": 60_000}}, proxy.url)
        await client.publish("warm", b"1")
        await until(lambda: client.gateway.tails["default"].events == 1)
        async with redis.client() as store:
            await store.config_resetstat()
            body = batch(*({"channel": f"c{n % 100}", "data": n} for n in range(10_000)))
            async with session.post(
                client.url("/publish"), data=io.BytesIO(body), headers=NDJSON
            ) as response:
                answer = orjson.loads(await response.read())
            calls = await store.info("commandstats")
        assert answer["count"] == 10_000
        assert len(set(answer["ids"])) == 10_000
        assert calls["cmdstat_evalsha"]["calls"] == 1
        await until(lambda: client.gateway.tails["default"].events == 10_001)


async def test_a_merged_batch_is_a_read_and_a_write(start: Start, redis: Valkey) -> None:
    client = await start(
        {"namespaces": {"n": {"reducer": "merge"}}, "store": {"block_ms": 60_000}}
    )  # fmt: skip
    await client.publish("n/a", b"{}")
    async with redis.client() as store:
        await store.config_resetstat()
        ids = await client.publish_lines(
            [{"channel": "n/a", "data": {str(n): n}} for n in range(100)]
        )
        calls = await store.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 2
    snapshot = await client.get(f"/snapshots/n/a?min={ids[-1]}")
    assert snapshot.json["state"] == {str(n): n for n in range(100)}


async def test_batches_at_once_do_not_mix(client: Client) -> None:
    bodies = [batch(*({"channel": "a", "data": [b, n]} for n in range(50))) for b in range(8)]
    answers = await asyncio.gather(*(client.post("/publish", body, NDJSON) for body in bodies))
    assert all(answer.status == 200 for answer in answers)
    await client.settle()
    stored = (await client.get("/history/a?limit=1000")).json["events"]
    assert len(stored) == 400
    for at in range(0, 400, 50):
        first = stored[at]["data"][0]
        assert [entry["data"] for entry in stored[at : at + 50]] == [[first, n] for n in range(50)]


@pytest.mark.timeout(400)
async def test_batches_as_fast_as_they_are_taken_do_not_outrun_the_tail(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Five times what the bus holds, by sixteen callers; the follower gets each in its order."""
    size, left = 2000, iter(range(100))
    client = await start({"namespaces": {"default": {"ring_limit_events": 10_000}}})
    body = batch(*({"channel": f"a/{at % 50}", "data": at} for at in range(size)))
    stored: list[str] = []

    async def send() -> None:
        for _ in left:
            answer = await client.post("/publish", body, NDJSON)
            assert answer.status == 200
            stored.extend(answer.json["ids"])

    async with client.follow("/events?channel=a/*") as stream:
        await first_id(stream)
        sending = asyncio.gather(*(send() for _ in range(16)))
        seen = [(await event(stream))[0] for _ in range(100 * size)]
        await sending
    assert seen == sorted(stored, key=Position.parse)
    assert "break" not in caplog.text

"""`POST /publish/{channel}`: one event in, its position out; or a refusal and nothing stored."""

import asyncio
import gzip
from urllib.parse import urlsplit

import orjson
import pytest

from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import Client, digest
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


async def test_the_answer_is_the_position_and_no_cache_keeps_it(client: Client) -> None:
    answer = await client.post("/publish/a/b", b"1")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"channel", "id"}
    assert answer.json["channel"] == "a/b"
    position = answer.json["id"]
    assert str(Position.parse(position)) == position
    assert answer.headers["ETag"] == f'"{position}"'
    assert "Access-Control-Allow-Origin" not in answer.headers
    later = await client.post("/publish/other", b"1")
    assert Position.parse(later.json["id"]) > Position.parse(position)


async def test_what_is_json_and_what_is_text(client: Client) -> None:
    big = b'{"n":12345678901234567890123,"f":1.50}'
    cases: list[tuple[bytes, dict[str, str], bytes]] = [
        (big, JSON, big),
        (b"[1, 2]", {"Content-Type": "application/merge-patch+json"}, b"[1, 2]"),
        (b'"s"', JSON, b'"s"'),
        (b"{}", TEXT, b'"{}"'),
        (b"{}", {}, b"{}"),
        (b"{oops", {}, b'"{oops"'),
        ("a … ü".encode(), {}, '"a … ü"'.encode()),
        (b"", {}, b'""'),
        (b"", JSON, b'""'),
    ]
    for body, headers, state in cases:
        answer = await client.post("/publish/a", body, headers)
        assert answer.status == 200, (body, headers)
        snapshot = await client.get(f"/snapshots/a?min={answer.json['id']}")
        assert b'"state":' + state + b"}" in snapshot.body, (body, headers)


async def test_a_bad_event_names_the_field_and_stores_nothing(start: Start, redis: Valkey) -> None:
    client = await start(
        {
            "publish": {"event_limit_bytes": 1000, "key_limit_bytes": 5, "type_limit_bytes": 5},
            "namespaces": {"keyed": {"reducer": "keyed"}, "merge": {"reducer": "merge"}},
        }
    )
    before = await digest(redis)
    cases: list[tuple[str, bytes, dict[str, str], int, str]] = [
        ("a", b"\xff", {}, 422, "data"),
        ("a", b"ab\xc3", TEXT, 422, "data"),
        ("a", b"{", JSON, 422, "data"),
        ("a", b"NaN", JSON, 422, "data"),
        ("a", b" ", JSON, 422, "data"),
        ("a", b"\xef\xbb\xbf{}", JSON, 422, "data"),
        ("a", b"[" * 200 + b"]" * 200, JSON, 422, "data"),
        ("a", b"x" * 1001, {}, 413, "data"),
        ("a", b"x" * 9_000_000, {}, 413, "data"),
        ("a?type=a%0Ab", b"1", {}, 422, "type"),
        ("a?type=a%0Db", b"1", {}, 422, "type"),
        ("a?type=%00", b"1", {}, 422, "type"),
        ("a?key=a%0Ab", b"1", {}, 422, "key"),
        ("a?key=%00", b"1", {}, 422, "key"),
        ("a?type=123456", b"1", {}, 422, "type"),
        ("a?key=%C3%BC%C3%BC%C3%BC", b"1", {}, 422, "key"),
        ("keyed/a", b"1", {}, 422, "key"),
        ("keyed/a?key=", b"1", {}, 422, "key"),
        ("merge/a", b"text", {}, 422, "data"),
        ("merge/a", b"", {}, 422, "data"),
        ("a", b"1", {"Idempotency-Key": ""}, 400, "Idempotency-Key"),
        ("a", b"1", {"Idempotency-Key": "k" * 256}, 422, "idempotency_key"),
        ("a?x=1", b"1", {}, 400, "x"),
        ("a?type=a&type=b", b"1", {}, 400, "type"),
        ("a//b", b"1", {}, 400, "channel"),
        ("a/../b%20", b"1", {}, 400, "channel"),
        ("a/*", b"1", {}, 400, "channel"),
        ("a", b"gzip?", {"Content-Encoding": "gzip"}, 400, "body"),
    ]
    for path, body, headers, status, field in cases:
        answer = await client.post(f"/publish/{path}", body, headers)
        case = (path, body[:20], headers, answer)
        assert answer.status == status, case
        assert answer.problem["field"] == field, case
        assert answer.problem["rule"], case
        assert answer.headers["Cache-Control"] == "no-store"
    assert await digest(redis) == before
    assert client.gateway.publisher.events == 0


async def test_limits_are_inclusive(start: Start) -> None:
    client = await start({"publish": {"event_limit_bytes": 1000, "channel_limit_bytes": 10}})
    assert (await client.post("/publish/" + "a" * 10, b"x" * 1000)).status == 200
    longer = await client.post("/publish/" + "a" * 11, b"x")
    assert longer.status == 422
    assert longer.problem["rule"] == "must be at most 10 bytes"
    compressed = await client.get("/snapshots/" + "a" * 11)
    assert compressed.status == 422


async def test_too_large_an_event_is_refused_before_its_body_has_come(start: Start) -> None:
    client = await start({"publish": {"event_limit_bytes": 1000, "batch_limit_bytes": 5000}})
    address = urlsplit(client.worker.url)
    for sent in (
        b"Content-Length: 1001\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n%b\r\n" % (b"x" * 1001),
        b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n64\r\n%b"
        % gzip.compress(b"x" * 60_000)[:100],
    ):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /publish/a HTTP/1.1\r\nHost: x\r\n" + sent)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            body = orjson.loads(await reader.readuntil(b"}"))
        assert head.split(b" ", 2)[1] == b"413", sent
        assert (body["field"], body["rule"]) == ("data", "must be at most 1000 bytes")
        writer.close()
        await writer.wait_closed()
    assert (await client.post("/publish/a", b"x" * 1000)).status == 200


async def test_a_body_that_came_compressed_is_published_as_it_was(client: Client) -> None:
    body = gzip.compress(b'{"a":1}')
    answer = await client.post("/publish/a", body, {**JSON, "Content-Encoding": "gzip"})
    assert answer.status == 200
    assert await client.data_of("a") == [{"a": 1}]


async def test_header_bytes_that_are_no_text_are_refused_in_words(client: Client) -> None:
    address = urlsplit(client.worker.url)
    for header in (b"If-Match", b"Idempotency-Key"):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            b"POST /publish/a HTTP/1.0\r\nHost: x\r\n%b: \xff\xfe\r\nContent-Length: 1\r\n\r\n1"
            % header
        )
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.split(b" ", 2)[1] in (b"400", b"422")
        assert b"udcff" in orjson.loads(body)["value"].encode()
        writer.close()
        await writer.wait_closed()


# -- idempotency ------------------------------------------------------------------------------


async def test_the_same_key_and_body_get_the_same_answer_and_one_event(client: Client) -> None:
    key = {"Idempotency-Key": '"order 7"'}
    first = await client.post("/publish/a?type=t&key=k", b"1", key)
    assert "Idempotency-Replayed" not in first.headers
    again = await client.post("/publish/a?type=t&key=k", b"1", {"Idempotency-Key": "order 7"})
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await client.data_of("a") == ["1"]


async def test_at_once_the_same_key_stores_one_event(client: Client) -> None:
    key = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(*(client.post("/publish/a", b"1", key) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 19
    assert await client.data_of("a") == ["1"]


@pytest.mark.parametrize("reducer", ["last", "merge"])
async def test_the_same_key_with_another_event_is_a_conflict(
    start: Start, redis: Valkey, reducer: str
) -> None:
    client = await start({"namespaces": {"n": {"reducer": reducer}}})
    key = {"Idempotency-Key": "k", **JSON}
    assert (await client.post("/publish/n/a?type=t", b"1", key)).status == 200
    before = await digest(redis)
    for path, body, headers in (
        ("n/a?type=t", b"2", key),
        ("n/a", b"1", key),
        ("n/a?type=t&key=k", b"1", key),
        ("n/b?type=t", b"1", key),
    ):
        answer = await client.post(f"/publish/{path}", body, headers)
        assert answer.status == 409, (path, body)
        assert answer.problem["field"] == "Idempotency-Key"
        assert answer.problem["value"] == "k"
        assert "line" not in answer.problem
    assert await digest(redis) == before
    # Text and JSON of the same bytes are two events.
    if reducer == "last":
        text = await client.post("/publish/n/a?type=t", b"1", {**key, **TEXT})
        assert text.status == 409


async def test_a_key_is_forgotten_after_its_time(start: Start, redis: Valkey) -> None:
    client = await start({"publish": {"idempotency_seconds": 100}})
    await client.post("/publish/a", b"1", {"Idempotency-Key": "k"})
    async with redis.client() as store:
        [name] = await store.keys("sg:*:idem:*")
        assert 90_000 < await store.pttl(name) <= 100_000


# -- If-Match ---------------------------------------------------------------------------------


async def test_if_match_publishes_only_onto_the_position_it_names(
    client: Client, redis: Valkey
) -> None:
    first = await client.publish("a", b"1")
    await client.publish("b", b"1")
    second = await client.post("/publish/a", b"2", {"If-Match": f'"{first}"'})
    assert second.status == 200
    before = await digest(redis)
    stale = await client.post("/publish/a", b"3", {"If-Match": f'"{first}"'})
    assert stale.status == 412
    assert stale.problem["field"] == "If-Match"
    assert stale.problem["value"] == first
    assert stale.problem["current"] == second.json["id"]
    assert await digest(redis) == before
    # The answer's own ETag is what the next publish needs.
    third = await client.post("/publish/a", b"3", {"If-Match": second.headers["ETag"]})
    assert third.status == 200
    assert await client.data_of("a") == ["1", "2", "3"]


async def test_if_match_star_wants_any_event_before(client: Client) -> None:
    star = {"If-Match": "*"}
    unknown = await client.post("/publish/a", b"1", star)
    assert unknown.status == 412
    assert unknown.problem["current"] is None
    await client.publish("a", b"1")
    assert (await client.post("/publish/a", b"2", star)).status == 200
    assert (await client.ask("DELETE", "/channels/a")).status == 200
    assert (await client.post("/publish/a", b"3", star)).status == 412


async def test_of_publishes_onto_one_position_one_wins(client: Client) -> None:
    first = await client.publish("a", b"0")
    answers = await asyncio.gather(
        *(client.post("/publish/a", b"%d" % n, {"If-Match": f'"{first}"'}) for n in range(10))
    )
    assert sorted(answer.status for answer in answers) == [200] + 9 * [412]


async def test_a_malformed_if_match_is_refused(client: Client, redis: Valkey) -> None:
    before = await digest(redis)
    for header in ("1-0", '"1-0', 'W/"1-0"', '"1-0", "2-0"', '"x"', "", '"01-0"'):
        answer = await client.post("/publish/a", b"1", {"If-Match": header})
        assert (answer.status, answer.problem["field"]) == (400, "If-Match"), header
    answer = await client.ask(
        "POST", "/publish/a", [("If-Match", '"1-0"'), ("If-Match", '"2-0"')], b"1"
    )
    assert (answer.status, answer.problem["field"]) == (400, "If-Match")
    assert await digest(redis) == before


async def test_if_match_of_a_replay_is_not_judged_again(client: Client) -> None:
    first = await client.publish("a", b"0")
    headers = {"If-Match": f'"{first}"', "Idempotency-Key": "k"}
    stored = await client.post("/publish/a", b"1", headers)
    again = await client.post("/publish/a", b"1", headers)
    assert (again.status, again.body) == (200, stored.body)


# -- who may publish --------------------------------------------------------------------------


async def test_a_page_of_another_site_cannot_publish_through_its_readers_browser(
    client: Client, redis: Valkey
) -> None:
    before = await digest(redis)
    cross: list[dict[str, str]] = [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": client.worker.url},
        # A browser on plain HTTP says only this.
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ]
    for headers in cross:
        for method, path in (
            ("POST", "/publish/a"),
            ("POST", "/publish"),
            ("DELETE", "/channels/a"),
        ):
            answer = await client.ask(method, path, headers, b"1")
            assert answer.status == 403, headers
            assert answer.problem["title"] == "Cross-site"
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert await digest(redis) == before
    same: list[dict[str, str]] = [
        {"Sec-Fetch-Site": "same-origin", "Origin": client.worker.url},
        {"Sec-Fetch-Site": "none"},
        {"Origin": client.worker.url},
        {"Origin": "http://127.0.0.1"},
        {},
    ]
    for headers in same:
        assert (await client.post("/publish/a", b"1", headers)).status == 200, headers
    # Reading stays open to every site.
    assert (await client.get("/snapshots/a", cross[0])).status == 200


async def test_the_limits_of_a_namespace_hold(start: Start, redis: Valkey) -> None:
    client = await start(
        {
            "namespaces": {
                "default": {"channels_limit": 2},
                "keyed": {"reducer": "keyed", "keys_limit": 2, "state_limit_bytes": 100},
                "merge": {"reducer": "merge", "state_limit_bytes": 20},
            }
        }
    )
    await client.publish("a", b"1")
    await client.publish("b", b"1")
    await client.publish("keyed/a", b"1", "?key=x")
    await client.publish("keyed/a", b"1", "?key=y")
    await client.publish("merge/a", b'{"a":1}')
    before = await digest(redis)
    for path, body, field, limit in (
        ("c", b"1", "channel", "at most 2 channels"),
        ("keyed/a?key=z", b"1", "key", "at most 2 keys"),
        ("keyed/a?key=x", b"1" * 100, "data", "at most 100 bytes"),
        ("merge/a", b'{"b":"0123456789"}', "data", "at most 20 bytes"),
    ):
        answer = await client.post(f"/publish/{path}", body)
        assert answer.status == 422, path
        assert answer.problem["field"] == field
        assert limit in answer.problem["rule"]
    assert await digest(redis) == before


async def test_a_publisher_that_leaves_does_not_undo_its_event(start: Start, redis: Valkey) -> None:
    async with redis_proxy(redis.socket) as proxy:
        client = await start(None, proxy.url)
        publisher = client.gateway.publisher
        proxy.hold(b"EVALSHA")
        address = urlsplit(client.worker.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"POST /publish/left HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
        await until(lambda: proxy.seen(b"left"))
        writer.close()
        await writer.wait_closed()
        # The handler is gone once another request was answered on the same loop.
        assert (await client.get("/livez")).status == 200
        assert publisher.events == 0
        proxy.release()
        await until(lambda: publisher.events == 1)
        assert await client.data_of("left") == ["1"]

"""`GET /events`: what a stream begins with, what it carries, and from which position."""

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp
import orjson
import pytest

from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import EVENT_SOURCE, Client, event, first_id, gap_of, open_raw
from tests.web.conftest import Start
from tests.web.transports import transport

__all__ = ["transport"]


async def test_the_head_forbids_caches_and_proxies_to_touch_a_stream(client: Client) -> None:
    async with client.follow("/events/a") as stream:
        headers = stream.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("says", ["Via", "X-Varnish"])
async def test_a_cache_in_between_gets_chunks(
    client: Client, session: aiohttp.ClientSession, says: str
) -> None:
    async with session.get(client.url("/events/a"), headers={says: "1.1 cache"}) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert (await answer.content.readany()).startswith(b"retry: ")


async def test_the_first_block_has_the_retry_time_and_the_tailed_position(start: Start) -> None:
    client = await start({"streams": {"retry_ms": 1234}})
    published = await client.publish("a", b"1")
    await client.settle()
    async with open_raw(client.worker, "/events/a") as stream:
        body = await stream.read_until(b"\n\n")
    assert body == f"retry: 1234\nid: {published}\n\n".encode()


async def test_the_first_block_has_the_position_asked_for_and_no_later_one(client: Client) -> None:
    ids = [await client.publish("a", b"%d" % n) for n in range(3)]
    async with open_raw(
        client.worker, "/events/a", b"Last-Event-ID: %b\r\n" % ids[0].encode()
    ) as stream:
        body = await stream.read_until(b"data: 2\n\n")
    assert body == (
        f"retry: 2000\nid: {ids[0]}\n\n"
        f"id: {ids[1]}\ndata: 1\n\n"
        f"id: {ids[2]}\ndata: 2\n\n"
    ).encode()  # fmt: skip


async def test_one_channel_carries_its_data_verbatim_and_the_type(client: Client) -> None:
    async with client.follow("/events/a/b") as stream:
        await first_id(stream)
        await client.publish("a/other", b"no")
        first = await client.publish("a/b", b'{"n": 1.0}', "?type=tick")
        second = await client.publish("a/b", "plain … text".encode())
        assert await event(stream) == (first, "tick", '{"n": 1.0}')
        assert await event(stream) == (second, "", "plain … text")


async def test_every_line_end_of_the_data_begins_a_data_line(client: Client) -> None:
    cases = [
        (b"a\nb", b"data: a\ndata: b\n\n"),
        (b"a\rb", b"data: a\ndata: b\n\n"),
        (b"a\r\nb", b"data: a\ndata: b\n\n"),
        (b"a\n\rb\n", b"data: a\ndata: \ndata: b\ndata: \n\n"),
        (b" a:b", b"data:  a:b\n\n"),
        (b"", b"data: \n\n"),
    ]
    before = await client.publish("a", b"0")
    for data, frame in cases:
        published = await client.publish("a", data)
        position = b"Last-Event-ID: %b\r\n" % before.encode()
        async with open_raw(client.worker, "/events/a", position) as stream:
            body = await stream.read_until(frame)
        assert body.endswith(b"\n\nid: %b\n" % published.encode() + frame), data
        before = published


async def test_several_channels_come_in_one_order_each_event_in_an_envelope(
    client: Client,
) -> None:
    async with client.follow("/events?channel=a/b&channel=c") as stream:
        await first_id(stream)
        ids = await client.publish_lines(
            [
                {"channel": "a/b", "data": {"n": 1}, "type": "t"},
                {"channel": "a/x", "data": 2},
                {"channel": "c", "data": "text\nlines"},
                {"channel": "a/b", "data": [3], "key": "k"},
            ]
        )
        got = [await event(stream) for _ in range(3)]
    assert got == [
        (ids[0], "t", '{"channel":"a/b","data":{"n":1}}'),
        (ids[2], "", '{"channel":"c","data":"text\\nlines"}'),
        (ids[3], "", '{"channel":"a/b","key":"k","data":[3]}'),
    ]


@pytest.mark.parametrize("path", ["/events/a/*", "/events?channel=a/*", "/events/a/%2A"])
async def test_a_wildcard_follows_everything_below_its_prefix(client: Client, path: str) -> None:
    async with client.follow(path) as stream:
        await first_id(stream)
        names = ["a", "ab/c", "a/b", "b/a", "a/b/c/d", "a/new"]
        await client.publish_lines([{"channel": name, "data": 0} for name in names])
        got = [orjson.loads((await event(stream))[2])["channel"] for _ in range(3)]
    assert got == ["a/b", "a/b/c/d", "a/new"]


async def test_a_wildcard_replays_all_its_channels_in_the_order_of_the_namespace(
    client: Client,
) -> None:
    before = await client.publish("a/0", b"0")
    ids = await client.publish_lines(
        [{"channel": f"a/{n % 7}", "data": n} for n in range(300)]
    )  # fmt: skip
    async with client.follow("/events/a/*", before) as stream:
        assert await first_id(stream) == before
        got = [await event(stream) for _ in ids]
    assert [id for id, _, _ in got] == ids
    assert [orjson.loads(data)["data"] for _, _, data in got] == list(range(300))


async def test_a_keyed_channel_has_envelopes_and_deletions_are_empty(start: Start) -> None:
    client = await start({"namespaces": {"board": {"reducer": "keyed"}}})
    async with client.follow("/events/board/a") as stream:
        await first_id(stream)
        await client.publish("board/a", b'{"n":1}', "?key=x%20y")
        await client.publish("board/a", b"", "?key=x%20y")
        assert (await event(stream))[2] == '{"channel":"board/a","key":"x y","data":{"n":1}}'
        assert (await event(stream))[2] == '{"channel":"board/a","key":"x y","data":""}'


async def test_channels_of_two_namespaces_are_refused(start: Start) -> None:
    client = await start({"namespaces": {"other": {}}})
    answer = await client.get("/events?channel=a&channel=other/b", EVENT_SOURCE)
    assert answer.status == 400
    assert "one namespace" in answer.problem["rule"]
    assert "other/b is in other" in answer.problem["rule"]
    # The wildcard of an undeclared first segment belongs to `default` as much as a plain name.
    async with client.follow("/events?channel=a&channel=b/*") as stream:
        await first_id(stream)


async def test_a_bad_request_is_refused_and_names_the_field(client: Client) -> None:
    cases = [
        ("/events/a?x=1", "x"),
        ("/events/a?channel=b", "channel"),
        ("/events/a?since=5m&since=5m", "since"),
        ("/events/a?last_event_id=1-0&last_event_id=1-0", "last_event_id"),
        ("/events/a?last_event_id=1-0&since=5m", "since"),
        ("/events/a?last_event_id=yesterday", "last_event_id"),
        ("/events/a?last_event_id=", "last_event_id"),
        ("/events/a?last_event_id=99999999999999999-0", "last_event_id"),
        ("/events/a?since=5", "since"),
        ("/events/a?since=-5m", "since"),
        ("/events/a?since=5w", "since"),
        ("/events/a?since=%D9%A5m", "since"),
        ("/events", "channel"),
        ("/events?channel=", "channel"),
        ("/events?channel=*", "channel"),
        ("/events?channel=a/*/b", "channel"),
        ("/events/a//b", "channel"),
        ("/events/a%20b", "channel"),
        ("/events/" + "a" * 256, "channel"),
        ("/events?" + "&".join(f"channel=c{n}" for n in range(101)), "channel"),
    ]
    for path, field in cases:
        answer = await client.get(path, EVENT_SOURCE)
        assert answer.status == (422 if "a" * 256 in path else 400), path
        assert answer.problem["field"] == field, path
        assert answer.problem["rule"]


async def test_the_header_wins_over_the_query(client: Client) -> None:
    ids = [await client.publish("a", b"%d" % n) for n in range(3)]
    for query in (f"last_event_id={ids[0]}", "since=1h"):
        async with client.follow(f"/events/a?{query}", ids[1]) as stream:
            assert await first_id(stream) == ids[1]
            assert await event(stream) == (ids[2], "", "2")


async def test_the_query_resumes_when_there_is_no_header(client: Client) -> None:
    ids = [await client.publish("a", b"%d" % n) for n in range(2)]
    async with client.follow(f"/events/a?last_event_id={ids[0]}") as stream:
        assert await first_id(stream) == ids[0]
        assert await event(stream) == (ids[1], "", "1")


@pytest.mark.parametrize("header", [b"yesterday", b"1-0-0", b"01-0", b"\xff\xfe\x80"])
async def test_a_malformed_header_is_a_gap_and_the_stream_goes_on(
    client: Client, header: bytes
) -> None:
    newest = await client.publish("a", b"0")
    await client.settle()
    async with open_raw(
        client.worker, "/events/a", b"Last-Event-ID: %b\r\n" % header
    ) as stream:  # fmt: skip
        body = await stream.read_until(b"}\n\n")
        assert body.startswith(f"retry: 2000\nid: {newest}\n\nid: {newest}\nevent: gap\n".encode())
        gap = orjson.loads(body.partition(b"data: ")[2])
        assert gap["reason"] == "malformed"
        assert gap["newest"] == newest
        assert gap["snapshot"] == "/snapshots/a"
        published = await client.publish("a", b"1")
        await stream.read_until(f"id: {published}\ndata: 1\n\n".encode())


async def test_two_positions_are_none(client: Client) -> None:
    position = (await client.publish("a", b"0")).encode()
    twice = b"Last-Event-ID: %b\r\nLast-Event-ID: %b\r\n" % (position, position)
    async with open_raw(client.worker, "/events/a", twice) as stream:
        assert b'"reason":"malformed"' in await stream.read_until(b"}\n\n")


async def test_a_position_that_was_never_given_out_is_a_gap(client: Client) -> None:
    newest = await client.publish("a", b"0")
    await client.settle()
    async with client.follow("/events/a", "9000000000000-0") as stream:
        assert await first_id(stream) == "9000000000000-0"
        gap = await stream.next()
        assert gap_of(gap)["reason"] == "unknown"
        assert gap_of(gap)["requested"] == "9000000000000-0"
        assert stream.last_id == newest
        published = await client.publish("a", b"1")
        assert await event(stream) == (published, "", "1")


async def test_an_evicted_position_is_a_gap_that_names_what_is_left(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 2, "ring_spares_young": False}}}
    )
    ids = [await client.publish("a/b", b"%d" % n) for n in range(4)]
    async with client.follow("/events/a/*", ids[0]) as stream:
        assert await first_id(stream) == ids[0]
        gap = await stream.next()
        assert gap_of(gap) == {
            "reason": "evicted",
            "requested": ids[0],
            "oldest": ids[1],
            "newest": ids[3],
            "snapshots": ["/snapshots/a/b"],
            "snapshot": "/snapshots/a/b",
        }
        assert stream.last_id == ids[3]


# -- since ------------------------------------------------------------------------------------


async def test_since_replays_what_is_younger(client: Client) -> None:
    old = Position.parse(await client.publish("a", b"old"))
    await until(lambda: time.time() * 1000 > old.ms + 1001)
    young = await client.publish("a", b"young")
    async with client.follow("/events/a?since=1s") as stream:
        first = Position.parse(await first_id(stream))
        assert time.time() * 1000 - first.ms < 5000
        assert await event(stream) == (young, "", "young")


@pytest.mark.parametrize("span", ["0s", "1s", "5m", "3h", "2d", "999999999d"])
async def test_since_of_a_quiet_or_younger_namespace_is_no_gap(client: Client, span: str) -> None:
    quiet = await client.publish("other", b"0")
    await until(lambda: time.time() * 1000 > Position.parse(quiet).ms + 1)
    async with client.follow(f"/events/a?since={span}") as stream:
        first = await first_id(stream)
        assert Position.parse(first) <= Position.parse(quiet)
        published = await client.publish("a", b"1")
        assert await event(stream) == (published, "", "1")
    # A drop right after the first block must not make a gap of it either.
    async with client.follow("/events/a", first) as stream:
        assert await first_id(stream) == first
        assert await event(stream) == (published, "", "1")


async def test_since_beyond_the_ring_is_a_gap_and_then_what_is_left(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 2, "ring_spares_young": False}}}
    )
    ids = [await client.publish("a", b"%d" % n) for n in range(4)]
    async with client.follow("/events/a?since=1h") as stream:
        await first_id(stream)
        gap = gap_of(await stream.next())
        assert (gap["reason"], gap["oldest"]) == ("evicted", ids[1])
        assert [await event(stream) for _ in range(2)] == [(ids[2], "", "2"), (ids[3], "", "3")]


# -- deletion ---------------------------------------------------------------------------------


async def test_a_deletion_is_a_gap_for_exact_and_wildcard_streams(client: Client) -> None:
    before = await client.publish("a/b", b"1")
    async with client.follow("/events/a/b") as exact, client.follow("/events/a/*") as wild:
        await first_id(exact)
        await first_id(wild)
        ended = (await client.ask("DELETE", "/channels/a/b")).json["id"]
        again = await client.publish("a/b", b"2")
        for stream in (exact, wild):
            gap = await stream.next()
            assert gap_of(gap)["reason"] == "deleted"
            assert gap_of(gap)["snapshot"] == "/snapshots/a/b"
            assert stream.last_id == ended
            assert (await event(stream))[0] == again
    # Whoever comes back from before the end learns of it too.
    for path in ("/events/a/b", "/events/a/*"):
        async with client.follow(path, before) as stream:
            assert await first_id(stream) == before
            assert gap_of(await stream.next())["requested"] == before
            assert stream.last_id == again


# -- other methods ----------------------------------------------------------------------------


async def test_head_answers_as_get_without_opening_a_stream(client: Client) -> None:
    answer = await client.ask("HEAD", "/events/a", EVENT_SOURCE)
    assert answer.status == 200
    assert answer.body == b""
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert client.gateway.hub.subscribers == 0
    assert (await client.ask("HEAD", "/events/a?x=1")).status == 400


@pytest.mark.parametrize("path", ["/events", "/events/a", "/snapshots/a", "/history/a"])
async def test_options_allows_reading_from_any_site(client: Client, path: str) -> None:
    answer = await client.ask(
        "OPTIONS",
        path,
        {"Origin": "https://other.example", "Access-Control-Request-Method": "GET"},
    )
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "Last-Event-ID" in answer.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    ("path", "publish"), [("/events", "/publish"), ("/events/a/b", "/publish/a/b")]
)
async def test_post_to_a_stream_names_the_path_for_publishing(
    client: Client, path: str, publish: str
) -> None:
    answer = await client.post(path, b"1")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert answer.problem["detail"].endswith(f"POST {publish}")


# -- what streams cost ------------------------------------------------------------------------


async def test_all_streams_share_one_heartbeat_and_no_task_of_ours_is_added(
    start: Start,
) -> None:
    client = await start({"streams": {"heartbeat_seconds": 0.05}})
    ours = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(open_raw(client.worker, f"/events/c{n % 5}"))
            for n in range(50)
        ]
        for stream in streams:
            await stream.read_until(b"\n\n: heartbeat\n\n")
        assert client.gateway.hub.subscribers == 50
        added = [task.get_coro() for task in asyncio.all_tasks() - ours]
        names = {getattr(coro, "__qualname__", "") for coro in added}
        # What aiohttp has of each connection, and nothing else.
        assert names <= {"RequestHandler.start", "RequestHandler._handle_request"}
    await until(lambda: client.gateway.hub.subscribers == 0)
    await until(lambda: not asyncio.all_tasks() - ours)


async def test_heartbeats_come_only_after_the_silence_that_the_setting_names(
    start: Start,
) -> None:
    client = await start({"streams": {"heartbeat_seconds": 0.2}})
    started = time.monotonic()
    async with open_raw(client.worker, "/events/a") as stream:
        body = await stream.read_until(b": heartbeat\n\n: heartbeat\n\n")
    assert time.monotonic() - started >= 0.2
    assert body.count(b"\n\n") == 3


async def test_a_stream_resumes_on_another_worker_of_the_same_store(
    start: Start, redis: Valkey
) -> None:
    one, two = await start(), await start()
    async with one.follow("/events/a") as stream:
        await first_id(stream)
        first = await two.publish("a", b"1")
        assert await event(stream) == (first, "", "1")
    second = await one.publish("a", b"2")
    async with two.follow("/events/a", first) as stream:
        assert await first_id(stream) == first
        assert await event(stream) == (second, "", "2")

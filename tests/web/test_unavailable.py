"""Passing conditions: an EventSource is told to come back, everybody else gets the true status."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.app import build_gateway
from gateway.settings import Settings
from gateway.settings_schema import StreamSettings
from gateway.web.routes import build_application
from tests.running import Valkey, Worker, until
from tests.web.client import EVENT_SOURCE, Answer, Client, event, first_id, open_raw
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy
from tests.web.transports import transport

__all__ = ["transport"]

RETRY_MS = 1000
EVENT_SOURCE_HEADER = b"Accept: text/event-stream\r\n"


def assert_told_to_come_back(answer: Answer, reason: str, last_event_id: str = "") -> int:
    """Check that the answer keeps an EventSource alive; return its retry time."""
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    # It comes back with the position that it came with: an event without an id could unset it.
    position = f"id: {last_event_id}\n\n".encode() if last_event_id else b""
    assert answer.body.startswith(position)
    retry, name, data, *rest = answer.body.removeprefix(position).split(b"\n")
    assert retry.startswith(b"retry: ")
    assert name == b"event: unavailable"
    assert orjson.loads(data.removeprefix(b"data: ")) == {"reason": reason}
    assert rest == [b"", b""]
    retry_ms = int(retry.removeprefix(b"retry: "))
    assert RETRY_MS <= retry_ms <= 2 * RETRY_MS
    return retry_ms


async def assert_refused_both_ways(client: Client, reason: str, last_event_id: str = "") -> None:
    position = {"Last-Event-ID": last_event_id} if last_event_id else {}
    answer = await client.get("/events/a", {**EVENT_SOURCE, **position})
    assert_told_to_come_back(answer, reason, last_event_id)
    plain = await client.get("/events/a", {"Accept": "*/*", **position})
    assert plain.status == 503
    assert plain.problem["reason"] == reason
    assert plain.headers["Cache-Control"] == "no-store"
    assert int(plain.headers["Retry-After"]) >= 1


@asynccontextmanager
async def without_store(session: aiohttp.ClientSession, socket: Path) -> AsyncIterator[Client]:
    """Serve from a gateway whose store has never answered."""
    gateway = build_gateway(Settings(streams=StreamSettings(retry_ms=RETRY_MS)), f"unix://{socket}")
    application = build_application(gateway.handlers, base_path="", requests=gateway.requests)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    running = asyncio.create_task(gateway.run())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield Client(session, Worker(gateway, url, running))
    finally:
        await runner.cleanup()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await gateway.store.aclose()


async def test_before_the_store_has_answered_nothing_pretends_to_know(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with without_store(session, tmp_path / "nobody.sock") as client:
        await assert_refused_both_ways(client, "store")
        await assert_refused_both_ways(client, "store", "1-0")
        # What cannot be read now is a gap when it comes again, not a new beginning.
        garbled = await client.get("/events/a", {**EVENT_SOURCE, "Last-Event-ID": "x"})
        assert_told_to_come_back(garbled, "store", "0-0")
        for path in ("/snapshots/a", "/history/a", "/channels"):
            answer = await client.get(path)
            assert answer.status == 503, path
            assert answer.problem["title"] == "Store unavailable"
            assert answer.headers["Cache-Control"] == "no-store"
        assert (await client.post("/publish/a", b"1")).status == 503
        assert (await client.get("/livez")).status == 200
        ready = await client.get("/readyz")
        assert ready.status == 503
        assert ready.json == {"ready": False, "draining": False, "following": {"default": False}}


async def test_one_stream_over_the_limit_is_told_to_come_back(start: Start) -> None:
    client = await start({"streams": {"subscribers_limit": 2, "retry_ms": RETRY_MS}})
    async with client.follow("/events/a") as one:
        await first_id(one)
        async with client.follow("/events/b") as two:
            await first_id(two)
            await assert_refused_both_ways(client, "overload")
        await until(lambda: client.gateway.hub.subscribers == 1)
        async with client.follow("/events/a") as three:
            await first_id(three)


async def test_of_many_who_come_at_once_no_more_than_the_limit_are_taken(start: Start) -> None:
    client = await start({"streams": {"subscribers_limit": 5}})
    position = b"Last-Event-ID: %b\r\n" % (await client.publish("a", b"1")).encode()
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                open_raw(client.worker, "/events/a", EVENT_SOURCE_HEADER + position)
            )
            for _ in range(20)
        ]
        bodies = await asyncio.gather(*(stream.read_until(b"\n\n") for stream in streams))
        assert client.gateway.hub.subscribers == 5
        assert sum(b"unavailable" in body for body in bodies) == 15


async def test_retry_times_are_spread(start: Start) -> None:
    client = await start({"streams": {"subscribers_limit": 1, "retry_ms": RETRY_MS}})
    async with client.follow("/events/a") as stream:
        await first_id(stream)
        answers = await asyncio.gather(*(client.get("/events/a", EVENT_SOURCE) for _ in range(12)))
    assert len({assert_told_to_come_back(answer, "overload") for answer in answers}) > 3


async def test_draining_ends_open_streams_and_takes_no_new_ones(start: Start) -> None:
    client = await start({"streams": {"retry_ms": RETRY_MS}})
    async with client.follow("/events/a") as stream:
        await first_id(stream)
        published = await client.publish("a", b"1")
        assert await event(stream) == (published, "", "1")
        client.gateway.drain()
        block = await stream.next()
        assert block is not None
        assert (block.type, block.data) == ("unavailable", '{"reason":"draining"}')
        # No id of its own: the position to come back with is still the last event's.
        assert stream.last_id == published
        assert await stream.next() is None
    await assert_refused_both_ways(client, "draining")
    ready = await client.get("/readyz")
    assert (ready.status, ready.json["draining"]) == (503, True)
    assert (await client.get("/livez")).status == 200


async def test_a_stream_that_waited_while_draining_began_is_not_opened(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start(
            {"streams": {"retry_ms": RETRY_MS}, "snapshots": {"wait_seconds": 20.0}}, proxy.url
        )
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"1")
        waiting = asyncio.create_task(
            behind.get("/events/a", {**EVENT_SOURCE, "Last-Event-ID": published})
        )
        await until(lambda: proxy.seen(b"EVALSHA") and not waiting.done())
        behind.gateway.drain()
        proxy.release()
        assert_told_to_come_back(await waiting, "draining", published)


async def test_a_worker_that_stays_behind_the_position_says_so(start: Start, redis: Valkey) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start(
            {"streams": {"retry_ms": RETRY_MS}, "snapshots": {"wait_seconds": 0.1}}, proxy.url
        )
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"1")
        await assert_refused_both_ways(behind, "behind", published)
        proxy.release()
        async with behind.follow("/events/a", published) as stream:
            assert await first_id(stream) == published


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html, text/event-stream;q=0.9"])
async def test_whoever_accepts_a_stream_is_an_event_source(start: Start, accept: str) -> None:
    client = await start({"streams": {"retry_ms": RETRY_MS}})
    client.gateway.handlers.streams.draining = True
    assert_told_to_come_back(await client.get("/events/a", {"Accept": accept}), "draining")


async def test_a_bad_request_stays_a_400_even_then(client: Client) -> None:
    client.gateway.handlers.streams.draining = True
    assert (await client.get("/events/a?x=1", EVENT_SOURCE)).status == 400


async def test_a_position_that_a_lost_store_alone_could_judge_is_asked_for_again(
    start: Start, redis: Valkey
) -> None:
    client = await start({"streams": {"retry_ms": RETRY_MS}})
    tailed = await client.publish("a", b"1")
    await client.settle()
    await redis.stop()
    await until(lambda: not client.gateway.tails["default"].connected)
    await assert_refused_both_ways(client, "store", "9000000000000-0")
    # What this worker has tailed it can serve.
    async with client.follow("/events/a", tailed) as stream:
        assert await first_id(stream) == tailed


async def test_a_publish_whose_outcome_is_unknown_says_so_and_is_stored_once(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        client = await start(None, proxy.url)
        proxy.hold(b"EVALSHA")
        publishing = asyncio.create_task(
            client.post("/publish/lost/reply", b"1", {"Idempotency-Key": "k"})
        )
        await until(lambda: proxy.seen(b"lost/reply"))
        proxy.cut()
        answer = await publishing
        assert answer.status == 503
        assert answer.problem["title"] == "Outcome unknown"
        assert answer.problem["outcome"] == "unknown"
        assert answer.headers["Retry-After"] == "1"
        proxy.release()
        again = await client.post("/publish/lost/reply", b"1", {"Idempotency-Key": "k"})
        assert again.status == 200
        assert await client.data_of("lost/reply") == ["1"]


async def test_stored_data_that_nothing_may_build_on_is_a_failure_that_names_it(
    start: Start, redis: Valkey
) -> None:
    client = await start()
    async with redis.client() as store:
        await store.set("sg:{default}:ring:a", "not a stream")
    answer = await client.post("/publish/a", b"1")
    assert answer.status == 500
    assert "sg:{default}:ring:a" in answer.problem["detail"]
    assert (await client.post("/publish/b", b"1")).status == 200


async def test_a_failure_of_ours_is_a_problem_and_a_line_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await client.publish("a", b"1")
    await client.settle()
    monkeypatch.delattr(client.gateway.tails["default"].mirror, "index")
    answer = await client.get("/channels")
    assert (answer.status, answer.problem["title"]) == (500, "Internal error")
    assert "index" not in answer.problem["detail"]
    assert "GET /channels" in caplog.text

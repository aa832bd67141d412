"""The client against servers that answer as proxies, strangers and failing gateways do."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.cli.client import (
    GatewayClient,
    Problem,
    Refused,
    Unreachable,
    reconnect_delay_ms,
)
from gateway.cli.event_file import InvalidFile, Line
from gateway.cli.file_sender import BATCH_LIMIT_EVENTS, FileSender, PublishingStopped, batches
from gateway.protocol.errors import InvalidField
from gateway.protocol.stream_reader import Block, MalformedStream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(
    handler: Handler, chance: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[GatewayClient]:
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_route("*", "/live/{path:.*}", handler)
    async with (
        TestServer(app, host="127.0.0.1") as server,
        GatewayClient(str(server.make_url("/live/")), chance=chance) as client,
    ):
        yield client


def answering(body: str, status: int = 200, content_type: str = "application/json") -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, status=status, content_type=content_type)

    return answer


async def read(client: GatewayClient, count: int, reasons: list[str]) -> list[Block]:
    blocks: list[Block] = []
    async with aclosing(client.follow(["a"], after="1-0", on_reconnect=reasons.append)) as stream:
        async for block in stream:
            blocks.append(block)
            if len(blocks) == count:
                break
    return blocks


async def test_a_refusal_carries_what_the_problem_document_says() -> None:
    errors = '[{"line":1,"field":"data","value":null,"rule":"must be JSON"}]'
    body = f'{{"title":"Bad","detail":"no","field":"f","value":1,"rule":"r","errors":{errors}}}'
    async with serving(answering(body, 422, "application/problem+json")) as client:
        with pytest.raises(Refused, match="no") as raised:
            await client.publish("a", b"1", json=True)
    line = {"line": 1, "field": "data", "value": None, "rule": "must be JSON"}
    assert raised.value.problem == Problem(422, "Bad", "no", "f", 1, "r", (line,))


@pytest.mark.parametrize("body", ["<html>", "[]", ""])
async def test_a_refusal_of_a_proxy_is_one_too(body: str) -> None:
    async with serving(answering(body, 502, "text/html")) as client:
        with pytest.raises(Refused, match="Bad Gateway") as raised:
            await client.snapshot("a")
    assert raised.value.problem == Problem(502, "Bad Gateway")


@pytest.mark.parametrize("body", ["<html>", "[]"])
async def test_a_stranger_is_no_gateway(body: str) -> None:
    async with serving(answering(body)) as client:
        with pytest.raises(Unreachable, match="what answers there is no sse-gateway"):
            await client.publish("a", b"1", json=True)


async def test_a_page_is_no_stream() -> None:
    async with serving(answering("<html>", content_type="text/html")) as client:
        with pytest.raises(MalformedStream, match="answered with text/html"):
            await read(client, 1, [])


async def test_what_no_request_can_carry_is_not_sent() -> None:
    async with serving(answering("{}")) as client:
        with pytest.raises(InvalidField):
            await client.snapshot("a/../b")
        with pytest.raises(InvalidField):
            await client.publish("a", b"", json=False, idempotency_key="a\nb")
        with pytest.raises(InvalidField):
            await client.publish("a", b"", json=False, if_match="7")


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://[", "http://"])
async def test_a_url_must_be_one(url: str) -> None:
    with pytest.raises(Unreachable, match="URL"):
        async with GatewayClient(url) as client:
            await client.snapshot("a")


async def test_nobody_there_is_said_in_plain_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with GatewayClient(url) as client:
            with pytest.raises(Unreachable) as raised:
                await client.snapshot("a")
    assert (
        str(raised.value) == f"cannot reach {url}: Connection refused (does the gateway run there?)"
    )


async def test_a_connection_that_is_cut_is_said_so() -> None:
    async def cut(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with serving(cut) as client:
        with pytest.raises(Unreachable, match="Server disconnected"):
            await client.snapshot("a")


async def test_a_stream_resumes_after_every_kind_of_cut() -> None:
    asked: list[tuple[str | None, str | None]] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        query = request.query.get("last_event_id")
        asked.append((request.headers.get("Last-Event-ID"), query))
        if len(asked) == 2:
            return web.Response(status=503, text='{"detail":"draining"}')
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if len(asked) == 1:
            await response.write(b"retry: 1\nid: 1-0\n\nid: 2-0\ndata: a\n\nid: 3-0\ndata: half")
        elif len(asked) == 3:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(b"id: 3-0\ndata: whole\n\n")
        return response

    reasons: list[str] = []
    async with serving(stream) as client:
        blocks = await read(client, 3, reasons)
    assert blocks == [
        Block("1-0", retry_ms=1),
        Block("2-0", data="a"),
        Block("3-0", data="whole"),
    ]
    assert asked == [(None, "1-0"), ("2-0", "1-0"), ("2-0", "1-0"), ("2-0", "1-0")]
    assert reasons[:2] == ["the gateway closed the stream", "draining"]
    assert len(reasons) == 3


async def test_a_stream_is_asked_for_as_it_is() -> None:
    async def stream(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b"id: 1-0\n\n", content_type="text/event-stream")

    async with serving(stream) as client:
        assert await read(client, 1, []) == [Block("1-0")]


async def test_a_stream_ends_for_good_when_the_gateway_says_no() -> None:
    asked = 0

    async def stream(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        if asked == 2:
            return web.Response(status=403, text='{"title":"Forbidden"}')
        return web.Response(text="retry: 1\nid: 1-0\n\n", content_type="text/event-stream")

    async with serving(stream) as client:
        with pytest.raises(Refused, match="Forbidden"):
            await read(client, 2, [])
    async with serving(answering("", 503)) as client:
        with pytest.raises(Refused, match="Service Unavailable"):
            await read(client, 1, [])


@pytest.mark.parametrize(
    ("retry_ms", "failures", "chance", "delay_ms"),
    [
        (2000, 0, 0.0, 2000),
        (2000, 1, 0.0, 4000),
        (2000, 9, 0.0, 30_000),
        (60_000, 0, 0.0, 30_000),
        (1, 9, 0.0, 32),
        (2000, 0, 0.5, 2500),
        (60_000, 9, 1.0, 45_000),
    ],
)
def test_a_wait_doubles_with_each_failure_and_is_spread(
    retry_ms: int, failures: int, chance: float, delay_ms: float
) -> None:
    assert reconnect_delay_ms(retry_ms, failures, chance) == delay_ms


async def test_a_stream_is_asked_for_again_only_after_the_spread_wait() -> None:
    loop = asyncio.get_running_loop()
    asked: list[float] = []

    async def stream(request: web.Request) -> web.Response:
        asked.append(loop.time())
        return web.Response(text="retry: 100\nid: 1-0\n\n", content_type="text/event-stream")

    async with serving(stream, chance=lambda: 1.0) as client:
        await read(client, 2, [])
    # A hundred milliseconds and half as many again, however slow the machine is.
    assert asked[1] - asked[0] >= 0.15


async def test_bodies_above_a_mebibyte_are_sent() -> None:
    async def measure(request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response({"bytes": len(body), "type": request.content_type})

    data = b"x" * (2 * 1024 * 1024)
    async with serving(measure) as client:
        one = await client.publish("a", data, json=False)
        batch = await client.publish_batch([data, data])
    assert one == {"bytes": len(data), "type": "text/plain"}
    assert batch == {"bytes": 2 * len(data) + 2, "type": "application/x-ndjson"}


async def test_all_pages_of_channels_are_read() -> None:
    asked: list[dict[str, str]] = []

    async def page(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        after = request.query.get("after")
        names = ["a", "b"] if after is None else ["c"]
        return web.json_response(
            {"channels": [{"channel": name} for name in names], "next": None if after else "b"}
        )

    async with serving(page) as client:
        names = [one["channel"] async for one in client.channels("", limit=2)]
    assert names == ["a", "b", "c"]
    assert asked == [{"limit": "2"}, {"limit": "2", "after": "b"}]


def lines(groups: str, size: int = 1) -> list[Line]:
    return [
        Line(number * 10, number, group, group.encode() * size)
        for number, group in enumerate(groups, 1)
    ]


def storing(refuse: Callable[[list[str]], dict[str, Any] | None]) -> tuple[Handler, list[str]]:
    """A gateway that keeps what `refuse` returns no problem for."""
    stored: list[str] = []

    async def publish(request: web.Request) -> web.Response:
        batch = (await request.text()).splitlines()
        problem = refuse(batch)
        if problem is not None:
            return web.json_response(problem, status=422)
        stored.extend(batch)
        return web.json_response({"ids": [f"{len(stored)}-0"], "count": len(batch)})

    return publish, stored


def test_batches_are_bounded_by_events_and_bytes() -> None:
    assert [len(batch) for batch in batches(lines("a" * 1100))] == [500, 500, 100]
    assert [len(batch) for batch in batches(lines("aaa", 400_000))] == [2, 1]
    assert [len(batch) for batch in batches(lines("aa", 2_000_000))] == [1, 1]
    assert list(batches([])) == []


async def test_a_batch_of_several_namespaces_is_sent_in_runs() -> None:
    handler, stored = storing(
        lambda batch: {"title": "several namespaces"} if len(set(batch)) > 1 else None
    )
    seen: list[tuple[int, int]] = []
    async with serving(handler) as client:
        sender = FileSender(client, lambda events, at: seen.append((events, at)))
        await sender.send(lines("aabba"))
    assert stored == ["a", "a", "b", "b", "a"]
    assert seen == [(2, 2), (2, 4), (1, 5)]
    assert (sender.stored, sender.last_id) == (5, "5-0")


async def test_a_refused_line_is_named_as_it_stands_in_the_file() -> None:
    def refuse(batch: list[str]) -> dict[str, Any] | None:
        bad = [number for number, line in enumerate(batch, 1) if line == "x"]
        errors = [{"line": number, "field": "data", "rule": "r"} for number in bad]
        return {"title": "bad", "errors": errors} if bad else None

    handler, stored = storing(refuse)
    async with serving(handler) as client:
        sender = FileSender(client)
        with pytest.raises(PublishingStopped) as raised:
            await sender.send(lines("aabx"))
        assert stored == ["a", "a", "b"]
        assert (raised.value.line, raised.value.stored) == (40, 3)
        with pytest.raises(PublishingStopped) as raised:
            await FileSender(client).send(lines("x"))
    assert str(raised.value) == "stopped at line 10 after 0 stored events: bad"


async def test_a_gateway_that_goes_away_stops_the_file() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with GatewayClient(f"http://127.0.0.1:{taken.getsockname()[1]}") as client:
            with pytest.raises(PublishingStopped, match="stopped at line 10 after 0 stored"):
                await FileSender(client).send(lines("ab"))


async def test_a_bad_line_in_mid_file_says_what_is_stored(tmp_path: Any) -> None:
    def broken(line: int | None) -> Iterator[Line]:
        yield from lines("a" * BATCH_LIMIT_EVENTS + "b")
        raise InvalidFile(tmp_path, "must be JSON", line)

    handler, stored = storing(lambda batch: None)
    async with serving(handler) as client:
        with pytest.raises(PublishingStopped, match="stopped at line 7 after 500 stored events"):
            await FileSender(client).send(broken(7))
        assert len(stored) == BATCH_LIMIT_EVENTS
        with pytest.raises(InvalidFile):
            await FileSender(client).send(broken(None))


async def test_a_rate_is_kept() -> None:
    sizes: list[int] = []
    handler, stored = storing(lambda batch: sizes.append(len(batch)))
    loop = asyncio.get_running_loop()
    async with serving(handler) as client:
        started = loop.time()
        await FileSender(client).send_at(lines("a" * 21), rate=100)
        seconds = loop.time() - started
    assert len(stored) == 21
    # The first goes at once, so twenty intervals of 10 ms, however slow the machine is.
    assert seconds >= 0.2
    assert len(sizes) > 1

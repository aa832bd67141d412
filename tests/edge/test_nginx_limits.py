"""What the shipped NGINX configuration allows one address, and how it says no."""

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.clients import test_browser
from tests.edge.running import nginx, origin_of, publish
from tests.edge.test_nginx import Answer, ask
from tests.running import Valkey, follow, until, worker

page = test_browser.page

STREAM = {"Accept": "text/event-stream", "Last-Event-ID": "1795566071928-0"}
LIMITED = b'event: unavailable\ndata: {"reason":"limit"}\n\n'


def lowered(*limits: tuple[str, str]) -> Callable[[str], str]:
    """Return an edit that lowers some limits of the configuration."""

    def edit(text: str) -> str:
        for old, new in limits:
            assert old in text
            text = text.replace(old, new)
        return text

    return edit


TWO_STREAMS = lowered(("limit_conn streams 400;", "limit_conn streams 2;"))
# Two at once, and one more a minute.
TWO_OPENINGS = lowered(
    ("zone=openings:10m rate=50r/s;", "zone=openings:10m rate=1r/m;"),
    ("zone=openings burst=400 nodelay;", "zone=openings burst=1 nodelay;"),
)
TWO_WAITS = lowered(("limit_conn waits 400;", "limit_conn waits 2;"))


async def refused(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> Answer:
    """Return an answer that is none of a stream which goes on."""
    async with asyncio.timeout(20):
        return await ask(session, url, headers)


async def begun(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> bytes:
    """Return a stream's first block, and leave it."""
    async with session.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return await response.content.readuntil(b"\n\n")


async def test_too_many_streams_of_one_address_are_told_to_come_back(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_STREAMS) as edge,
        follow(session, f"{edge.url}/events/a"),
        follow(session, f"{edge.url}/events/b"),
    ):
        answer = await refused(session, f"{edge.url}/events/c", STREAM)
        assert answer.status == 200
        assert answer.body.startswith(b"retry: ")
        assert answer.body.endswith(LIMITED)
        assert (await ask(session, f"{edge.url}/events/c")).status == 503
        assert (await ask(session, f"{edge.url}/slices/e/1/c", STREAM)).status == 429
        assert origin.gateway.requests["/events"] == 2


@pytest.mark.parametrize("path", ["/events/a", "/slices/current/a"])
async def test_a_storm_of_reconnects_is_told_to_come_back_and_harms_nobody_else(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, path: str
) -> None:
    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_OPENINGS) as edge,
    ):
        for _ in range(2):
            assert LIMITED not in await begun(session, edge.url + path, STREAM)
        route = path.removesuffix("/a")
        before = origin.gateway.requests[route]
        for _ in range(20):
            answer = await refused(session, edge.url + path, STREAM)
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store, no-transform"
            retry, rest = answer.body.split(b"\n", 1)
            assert 1000 <= int(retry.removeprefix(b"retry: ")) <= 4500
            # With its position, which would be forgotten else.
            assert rest == b"id: 1795566071928-0\n" + LIMITED
        assert (await ask(session, edge.url + path)).status == 503
        assert origin.gateway.requests[route] == before == 2
        # Snapshots have a limit of their own, and other readers have theirs.
        assert (await ask(session, f"{edge.url}/snapshots/a")).status == 404
        other = await begun(session, edge.url + path, {**STREAM, "X-Forwarded-For": "192.0.2.7"})
        assert LIMITED not in other


async def test_programs_that_ask_for_slices_too_often_get_the_true_status(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_OPENINGS) as edge,
    ):
        url = f"{edge.url}/slices/e/1/a"
        for _ in range(2):
            assert (await ask(session, url, STREAM)).status not in (200, 429, 502, 503)
        answer = await ask(session, url, STREAM)
        assert answer.status == 429
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Retry-After"] == "2"
        # A page of another origin may read why, and when to come back.
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
        document = orjson.loads(answer.body)
        assert (document["status"], document["title"]) == (429, "Too many requests")


async def test_long_polls_of_one_address_have_a_limit_and_pages_have_not(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_WAITS) as edge,
    ):
        published = await publish(session, origin, "a", "1")
        after = f"{edge.url}/history/a?after={published}"
        arrivals = origin.gateway.arrivals
        mine = [asyncio.create_task(ask(session, f"{after}&wait=20&limit={at}")) for at in (1, 2)]
        await until(lambda: arrivals.waiting == 2)
        for name in ("wait", "%77ait"):
            third = await ask(session, URL(f"{after}&{name}=20&limit=3", encoded=True))
            assert (third.status, third.headers["Retry-After"]) == (429, "2")
        # Whoever does not wait is not counted, and others have a limit of their own.
        assert (await ask(session, after)).status == 200
        assert (await ask(session, f"{edge.url}/snapshots/a")).status == 200
        elsewhere = {"X-Forwarded-For": "192.0.2.7"}
        other = asyncio.create_task(ask(session, f"{after}&wait=20&limit=4", elsewhere))
        await until(lambda: arrivals.waiting == 3)
        await publish(session, origin, "a", "2")
        answers = await asyncio.gather(*mine, other)
        assert [one.status for one in answers] == [200] * 3
        assert all(orjson.loads(one.body)["events"] for one in answers)
        # They are gone, and there is room again.
        assert (await ask(session, f"{after}&wait=20&limit=5")).status == 200


async def test_a_network_of_ipv6_is_one_reader(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    def at(address: str) -> dict[str, str]:
        return {**STREAM, "X-Forwarded-For": address}

    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_OPENINGS) as edge,
    ):
        url = f"{edge.url}/events/a"
        # In one of them there are bytes that end lines.
        for network in ("2001:db8", "2001:db8:a0a:a0a", "2001:db8:0:1"):
            for reader in (1, 2):
                first = await begun(session, url, at(f"{network}::{reader}"))
                assert LIMITED not in first
            third = await refused(session, url, at(f"{network}::a0a:3"))
            assert third.body.endswith(LIMITED)


async def test_chromium_comes_back_when_there_is_room_again(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, page: Any
) -> None:
    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_STREAMS) as edge,
    ):
        async with (
            follow(session, f"{edge.url}/events/b"),
            follow(session, f"{edge.url}/events/c"),
        ):
            await page.goto(f"{edge.url}/snapshots/a")
            await page.evaluate(
                """() => {
                    window.seen = { ids: [], reasons: [] };
                    window.source = new EventSource("/events/a");
                    source.onmessage = event => seen.ids.push(event.lastEventId);
                    source.addEventListener("unavailable",
                        ({ data }) => seen.reasons.push(JSON.parse(data).reason));
                }"""
            )
            await page.wait_for_function("seen.reasons.includes('limit')")
            assert await page.evaluate("source.readyState !== EventSource.CLOSED")
        await page.wait_for_function("source.readyState === EventSource.OPEN")
        await until(lambda: origin.gateway.requests["/events"] >= 3)
        seen: list[str] = []
        while not seen:
            await publish(session, origin, "a", "1")
            await asyncio.sleep(0.05)
            seen = await page.evaluate("seen.ids")


async def test_client_js_comes_back_to_its_slices(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, page: Any
) -> None:
    settings = {"namespaces": {"default": {"slice_seconds": 5}}}
    async with (
        worker(redis.url, settings) as origin,
        nginx(tmp_path, origin_of(origin.url), edit=TWO_STREAMS) as edge,
    ):
        async with (
            follow(session, f"{edge.url}/events/b"),
            follow(session, f"{edge.url}/events/c"),
        ):
            await publish(session, origin, "a", "0")
            await page.goto(f"{edge.url}/snapshots/a")
            await page.evaluate(
                """async () => {
                    const { follow } = await import("/client.js");
                    window.seen = [];
                    const followed = follow("/", "a", { transports: ["slices"] });
                    followed.addEventListener("event", ({ detail }) => seen.push(detail.data));
                }"""
            )
            log = tmp_path / "access.log"
            refused = re.compile(r'"GET /slices/\w+/\d+/a HTTP/1.1" 429 ')
            await until(lambda: refused.search(log.read_text()))
        await publish(session, origin, "a", "1")
        await page.wait_for_function("seen.at(-1) === 1")
        served = re.compile(r'"GET /slices/\w+/\d+/a HTTP/1.1" 200 ')
        await until(lambda: served.search(log.read_text()), 40)

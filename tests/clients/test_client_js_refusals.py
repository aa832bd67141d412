"""`/client.js` where it is refused, lied to, or given no storage: it goes on, hammering nobody."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Browser, Page

from tests.clients.edges import lying_cache
from tests.clients.test_client_js import (
    QUICK,
    SETTINGS,
    browser,
    connected,
    eventually,
    gateway,
    open_page,
    order,
    page,
    publish,
    reached,
    read,
    snapshot,
)
from tests.running import Valkey, Worker, worker

__all__ = ["browser", "gateway", "page"]


async def three_heartbeats(session: aiohttp.ClientSession, url: str) -> None:
    """Return when a stream has been silent three times: after two seconds or more."""
    async with session.get(f"{url}/events/quiet") as stream:
        for _ in range(3):
            while await stream.content.readline() != b": heartbeat\n":
                pass


# -- refusals ---------------------------------------------------------------------------------


async def test_a_gateway_that_lets_nobody_wait_for_so_long_is_asked_for_less(
    redis: Valkey, browser: Browser, session: aiohttp.ClientSession
) -> None:
    settings = {**SETTINGS, "history": {"wait_limit_seconds": 2}}
    async with worker(redis.url, settings) as running:
        page = await open_page(await browser.new_page(), running.url)
        await read(page, running.url, "plain/a", transports=["poll", "snapshots"])
        await connected(page, "plain/a", "poll")
        ids = [await publish(session, running.url, "plain/a", number) for number in range(2)]
        await reached(page, "plain/a", ids[-1])
        before = running.gateway.requests["/history"]
        await three_heartbeats(session, running.url)
        # One for every two seconds: each waits as long as it may.
        assert running.gateway.requests["/history"] - before <= 10
        ids.append(await publish(session, running.url, "plain/a", 2))
        found = await reached(page, "plain/a", ids[-1])
        assert (found["ids"], found["gaps"]) == (ids, [])
        used = "name => [...new Set(readers[name].told.statuses.map((s) => s.transport))]"
        assert await page.evaluate(used, "plain/a") == ["poll"]
        await page.close()


@asynccontextmanager
async def answering(handler: Any) -> AsyncIterator[str]:
    """Run a server that gives every request to a handler; yields its URL."""
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


SHARED = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Retry-After",
}


@pytest.mark.parametrize("seconds", ["99999999999", "1e99", "-5", "Fri, 31 Dec 2099 23:59:59 GMT"])
async def test_no_retry_after_makes_it_hammer(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, seconds: str
) -> None:
    asked: Counter[str] = Counter()

    async def refuse(request: web.Request) -> web.Response:
        asked[request.path] += 1
        return web.Response(status=503, headers={**SHARED, "Retry-After": seconds})

    async with answering(refuse) as url:
        await read(page, url, "plain/a")
        await three_heartbeats(session, gateway.url)
        assert 1 <= asked.total() <= 10
        await page.goto("about:blank")


async def test_streams_that_end_at_once_and_ask_for_no_pause_get_one(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    asked: Counter[str] = Counter()
    first = await publish(session, gateway.url, "plain/a", 1)
    held = await snapshot(session, gateway.url, "plain/a")

    async def end(request: web.Request) -> web.Response:
        asked[request.path] += 1
        text = f"retry: 0\nid: {first}\n\n"
        return web.Response(text=text, content_type="text/event-stream", headers=SHARED)

    async with answering(end) as url:
        await read(page, url, "plain/a", transports=["events"], snapshot=held)
        await three_heartbeats(session, gateway.url)
        assert 1 <= asked.total() <= 100
        await page.goto("about:blank")


async def test_a_snapshot_from_before_what_was_seen_is_not_taken_after_a_gap(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "short/back"
    async with lying_cache(gateway.url, session) as cache:
        await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel)
        await publish(session, gateway.url, channel, "seen")
        held = await snapshot(session, gateway.url, channel)
        for number in range(10):
            await publish(session, gateway.url, channel, number)
        cache.lies, cache.heeds_query = True, False
        await read(page, cache.url, channel, transports=["poll"], snapshot=held)

        def asked_twice() -> bool:
            return cache.asked["snapshots"] >= 3  # The first was ours.

        async with asyncio.timeout(25):
            while not asked_twice():
                found = await eventually(page, channel, lambda found: found["position"])
                assert order(found["position"]) >= order(held["id"])
        cache.lies = False
        found = await eventually(page, channel, lambda found: found["state"] == 9)
        assert found["gaps"] == ["evicted"]


async def test_a_tab_that_is_back_asks_again_for_what_it_missed_when_it_is_refused(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel, refusals = "plain/missed", 0

    async def pass_on(request: web.Request) -> web.Response:
        nonlocal refusals
        # The tab that leads waits; the one that is back asks for what there is.
        if request.path.startswith("/history") and "wait" not in request.query and refusals:
            refusals -= 1
            return web.Response(status=503, headers=SHARED)
        async with session.get(f"{gateway.url}{request.rel_url}") as answer:
            body, kind = await answer.read(), answer.content_type
            return web.Response(body=body, status=answer.status, content_type=kind, headers=SHARED)

    async with answering(pass_on) as url:
        other = await open_page(await page.context.new_page(), gateway.url)
        for tab in (page, other):
            await read(tab, url, channel, transports=["poll"], share=True)
            await connected(tab, channel, "poll")
        await other.goto(f"{gateway.url}/client.js")
        ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
        await reached(page, channel, ids[-1])
        refusals = 2
        await other.evaluate("history.back()")
        await other.wait_for_url("**/openapi.json", wait_until="commit")
        found = await reached(other, channel, ids[-1])
        assert (found["ids"], found["gaps"], refusals) == (ids, [], 0)
        assert not found["status"]["leads"]
        for tab in (page, other):
            await tab.goto("about:blank")


# -- storage ----------------------------------------------------------------------------------

BLOCK = """() => new Promise((resolve, reject) => {
  const first = indexedDB.open("sse-gateway", 1);
  first.onupgradeneeded = () => first.result.createObjectStore("channels");
  first.onerror = reject;
  first.onsuccess = () => {
    globalThis.kept = first.result; // Never closed, so whoever opens it after this one waits.
    indexedDB.open("sse-gateway", 2).onblocked = resolve;
  };
})"""
DELETE = """() => new Promise((resolve, reject) => {
  const deleting = indexedDB.deleteDatabase("sse-gateway");
  deleting.onsuccess = () => resolve("deleted");
  deleting.onblocked = () => resolve("blocked");
  deleting.onerror = reject;
})"""


async def test_a_database_that_never_opens_does_not_keep_a_page_from_its_channel(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    last = await publish(session, gateway.url, "plain/a", 1)
    other = await open_page(await page.context.new_page(), gateway.url)
    await other.evaluate(BLOCK)
    await read(page, gateway.url, "plain/a", persist=True)
    found = await reached(page, "plain/a", last)
    assert found["state"] == 1
    await connected(page, "plain/a", "events")


async def test_what_is_kept_may_be_deleted_under_a_page_and_is_kept_again(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    await read(page, gateway.url, "plain/a", persist=True)
    await connected(page, "plain/a", "events")
    other = await open_page(await page.context.new_page(), gateway.url)
    assert await other.evaluate(DELETE) == "deleted"
    last = await publish(session, gateway.url, "plain/a", 1)
    await reached(page, "plain/a", last)
    there = "indexedDB.databases().then((all) => all.length)"
    async with asyncio.timeout(25):
        while not await other.evaluate(there):
            await asyncio.sleep(0.02)
    await page.goto("about:blank")
    await page.goto(f"{gateway.url}/openapi.json")
    asked = gateway.gateway.requests["/snapshots"]
    await read(page, gateway.url, "plain/a", persist=True)
    assert (await reached(page, "plain/a", last))["state"] == 1
    assert gateway.gateway.requests["/snapshots"] == asked


FRAME = """([module, base, channel, options]) => new Promise((resolve) => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  addEventListener("message", ({ data }) => resolve(data));
  frame.srcdoc = `<script type="module">
    import { follow } from ${JSON.stringify(module)};
    const wrong = [];
    addEventListener("unhandledrejection", ({ reason }) => wrong.push(String(reason)));
    const followed = follow(...${JSON.stringify([base, channel, options])});
    followed.addEventListener("status", ({ detail }) => {
      if (!detail.connected || !followed.position) return;
      const told = followed.state;
      followed.close();
      // A turn or two later than whatever would be thrown away.
      setTimeout(() => parent.postMessage([told, wrong], "*"), 200);
    });
  <\\/script>`;
  document.documentElement.append(frame);
})"""


async def test_a_frame_that_may_share_and_keep_nothing_follows_all_the_same(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    await publish(session, gateway.url, "plain/a", "told")
    options = {**QUICK, "share": True, "persist": True}
    async with asyncio.timeout(25):
        found = await page.evaluate(
            FRAME, [f"{gateway.url}/client.js", gateway.url, "plain/a", options]
        )
    assert found == ["told", []]

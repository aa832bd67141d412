"""`/client.js` where it is refused or lied to: it goes on, hammering nobody."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.clients.edges import lying_cache
from tests.clients.pages import (
    SETTINGS,
    connected,
    eventually,
    for_each,
    open_page,
    order,
    publish,
    reached,
    read,
    snapshot,
    three_heartbeats,
)
from tests.clients.together import Scenario, Stage
from tests.running import until, worker


@asynccontextmanager
async def answering(handler: Any) -> AsyncIterator[str]:
    """Run a server that gives every request to a handler; yields its URL."""
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
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


async def a_gateway_that_lets_nobody_wait_for_so_long_is_asked_for_less(stage: Stage) -> None:
    session = stage.session
    settings = {**SETTINGS, "history": {"wait_limit_seconds": 2}}
    async with worker(stage.redis.url, settings) as running:
        page = await stage.page(running.url)
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


async def no_retry_after_makes_it_hammer(stage: Stage) -> None:
    async def be_refused(seconds: str) -> None:
        asked: Counter[str] = Counter()

        async def refuse(request: web.Request) -> web.Response:
            asked[request.path] += 1
            return web.Response(status=503, headers={**SHARED, "Retry-After": seconds})

        page = await stage.page()
        async with answering(refuse) as url:
            await read(page, url, "plain/a")
            await three_heartbeats(stage.session, stage.gateway.url)
            assert 1 <= asked.total() <= 10
            await page.goto("about:blank")

    await for_each(["99999999999", "1e99", "-5", "Fri, 31 Dec 2099 23:59:59 GMT"], be_refused)


async def a_proxy_that_drops_the_query_is_not_hammered(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    asked: Counter[str] = Counter()

    async def drop(request: web.Request) -> web.Response:
        asked[request.path.split("/")[1]] += 1
        async with session.get(f"{gateway.url}{request.path}") as answer:
            body, kind = await answer.read(), answer.content_type
            return web.Response(body=body, status=answer.status, content_type=kind, headers=SHARED)

    await publish(session, gateway.url, "plain/a", 1)
    held = await snapshot(session, gateway.url, "plain/a")
    page = await stage.page()
    async with answering(drop) as url:
        await read(page, url, "plain/a", transports=["poll"], snapshot=held)
        await until(lambda: asked["history"], 60)
        await three_heartbeats(session, gateway.url)
        assert asked.total() <= 40
        await page.goto("about:blank")


async def streams_that_end_at_once_and_ask_for_no_pause_get_one(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    asked: Counter[str] = Counter()
    first = await publish(session, gateway.url, "plain/a", 1)
    held = await snapshot(session, gateway.url, "plain/a", first)

    async def end(request: web.Request) -> web.Response:
        asked[request.path] += 1
        text = f"retry: 0\nid: {first}\n\n"
        return web.Response(text=text, content_type="text/event-stream", headers=SHARED)

    async with answering(end) as url:
        await read(page, url, "plain/a", transports=["events"], snapshot=held)
        await three_heartbeats(session, gateway.url)
        assert 1 <= asked.total() <= 100
        await page.goto("about:blank")


async def a_snapshot_from_before_what_was_seen_is_not_taken_after_a_gap(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    channel = "short/back"
    async with lying_cache(gateway.url, session) as cache:
        old = await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel, old)
        seen = await publish(session, gateway.url, channel, "seen")
        held = await snapshot(session, gateway.url, channel, seen)
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


async def a_tab_that_is_back_asks_again_for_what_it_missed_when_it_is_refused(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
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


SCENARIOS: list[Scenario] = [
    a_gateway_that_lets_nobody_wait_for_so_long_is_asked_for_less,
    no_retry_after_makes_it_hammer,
    a_proxy_that_drops_the_query_is_not_hammered,
    streams_that_end_at_once_and_ask_for_no_pause_get_one,
    a_snapshot_from_before_what_was_seen_is_not_taken_after_a_gap,
    a_tab_that_is_back_asks_again_for_what_it_missed_when_it_is_refused,
]

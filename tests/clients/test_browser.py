"""A real browser on the console, through crashes of the gateway and of the network."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Page, async_playwright

from tests.clients.chromium import ARGUMENTS, find_chromium
from tests.clients.faults import narrow
from tests.clients.pages import publish_batch
from tests.clients.proxy import proxy
from tests.clients.serving import Serving, Writer, live_through_crashes, reach, serving
from tests.running import Valkey, until, worker


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    """An empty page of a browser with a profile of its own."""
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=find_chromium(), args=ARGUMENTS
        )
        yield context.pages[0]
        await context.close()


async def open_console(page: Page, url: str, selector: str) -> None:
    """Return when the console follows."""
    await page.goto(f"{url}/console#{selector}")
    await page.locator("html[data-state=live]").wait_for(state="attached")


async def test_the_console_has_every_event_once_though_the_gateway_is_killed(
    gateway: Serving, session: aiohttp.ClientSession, page: Page
) -> None:
    async with session.post(f"{gateway.url}/publish/live/a", data="before") as response:
        before = (await response.json())["id"]
    await open_console(page, gateway.url, "live/a")
    async with Writer(session, gateway.url, "live/a") as writer:

        async def count() -> int:
            return int(await page.evaluate("globalThis.sseConsole.ids.length"))

        await live_through_crashes(gateway, writer, count)
    ids = [id for id, _ in writer.stored]
    assert await page.evaluate("globalThis.sseConsole.ids") == ids
    assert before not in ids
    assert await page.evaluate("globalThis.sseConsole.gaps") == 0
    assert await page.evaluate("globalThis.sseConsole.reconnects") >= 2
    # What people see is the same.
    position = page.locator("#position")
    await position.filter(has_text=ids[-1]).wait_for()
    assert await position.inner_text() == ids[-1]
    data = writer.stored[-1][1]
    await page.locator("#rows").get_by_text(data, exact=False).first.wait_for()


async def test_the_browsers_own_eventsource_has_every_event_once_though_the_gateway_is_killed(
    gateway: Serving, session: aiohttp.ClientSession, page: Page
) -> None:
    await page.goto(f"{gateway.url}/livez")
    async with Writer(session, gateway.url, "live/a") as writer:
        await reach(writer.count, 5)
        await page.evaluate(
            """url => {
                globalThis.seen = [];
                const source = new EventSource(url);
                const see = ({type, lastEventId, data}) => seen.push([lastEventId, type, data]);
                for (const type of ["message", "gap"])
                    source.addEventListener(type, see);
            }""",
            f"{gateway.url}/events/live/a?last_event_id={writer.stored[0][0]}",
        )

        async def count() -> int:
            return 1 + int(await page.evaluate("seen.length"))

        await live_through_crashes(gateway, writer, count)
    assert await page.evaluate("seen") == [[id, "message", data] for id, data in writer.stored[1:]]


async def test_the_browser_sends_back_the_id_of_a_block_without_data(
    redis: Valkey, session: aiohttp.ClientSession, page: Page
) -> None:
    async with worker(redis.url) as running:
        hub = running.gateway.hub
        await page.goto(f"{running.url}/livez")
        await page.evaluate(
            """url => {
                globalThis.seen = [];
                new EventSource(url).onmessage = ({lastEventId}) => seen.push(lastEventId);
            }""",
            f"{running.url}/events/quiet",
        )
        await until(lambda: hub.subscribers == 1)
        # All that it has had is the first block. It is away while the first event comes.
        hub.drain()
        async with session.post(f"{running.url}/publish/quiet", data="first") as response:
            published = (await response.json())["id"]
        assert hub.subscribers == 0
        await page.wait_for_function("seen.length > 0")
        assert await page.evaluate("seen") == [published]


@pytest.mark.parametrize("selector", ["boards/a", "boards/*"])
async def test_the_console_takes_a_state_in_place_of_the_events_that_it_was_too_slow_for(
    redis: Valkey, session: aiohttp.ClientSession, page: Page, selector: str
) -> None:
    settings = {
        "streams": {"send_buffer_bytes": 4096},
        "namespaces": {"boards": {"reducer": "keyed", "conflate": True}},
    }
    async with worker(redis.url, settings) as running, narrow(running.url) as way:
        store = partial(publish_batch, session, running.url)
        await store([("boards/a", key, 1) for key in ("kept", "many", "old")])
        await store([("boards/b", "price", 1), ("boards/c", "price", 1)])
        await open_console(page, f"http://127.0.0.1:{way.port}", selector)
        names = page.locator("#state tbody th button")
        figures = page.locator("#state tbody td.figure")
        shown = ["kept", "many", "old"] if selector == "boards/a" else ["a", "b", "c"]
        await names.get_by_text(shown[-1], exact=True).wait_for()
        assert await names.all_inner_texts() == shown
        way.open.clear()
        counters, idle = running.gateway.hub.counters, 0
        while idle < 5:  # Until every buffer on the way is full.
            written = counters.delivered_bytes
            await store([("boards/a", "many", "x" * 2000)] * 100)
            idle = idle + 1 if counters.lags and counters.delivered_bytes == written else 0
        async with session.delete(f"{running.url}/channels/boards/c") as response:
            assert response.status == 200
        await store([("boards/a", "old", ""), ("boards/b", "price", 2), ("boards/a", "many", 77)])
        way.open.set()
        if selector == "boards/a":
            await figures.get_by_text("77").wait_for()
            assert await names.all_inner_texts() == ["kept", "many"]
            assert await figures.all_inner_texts() == ["1", "77"]
        else:
            await names.get_by_text("c", exact=True).wait_for(state="detached")
            assert await names.all_inner_texts() == ["a", "b"]
            assert await figures.all_inner_texts() == ["1", "2"]
        assert counters.conflations > 0
        told = page.locator("#gaps-sub")
        async with asyncio.timeout(30):
            # One more may be on its way while we look.
            while not (await told.inner_text()).startswith(f"none; {counters.conflations} reset"):
                await asyncio.sleep(0.02)
        # And the stream goes on from there.
        last = await store([("boards/a", "kept", 5)])
        await page.locator(f"html[data-last-id='{last}']").wait_for(state="attached")
        assert await page.evaluate("globalThis.sseConsole.gaps") == 0


async def test_the_console_forgets_a_channel_that_was_deleted_while_it_was_away(
    gateway: Serving, session: aiohttp.ClientSession, page: Page
) -> None:
    async def publish(channel: str, data: str) -> None:
        async with session.post(f"{gateway.url}/publish/{channel}", data=data) as response:
            assert response.status == 200

    async with proxy(gateway.port) as way:
        await publish("live/gone", "1")
        await publish("live/kept", "1")
        await open_console(page, f"http://127.0.0.1:{way.port}", "live/*")
        channels = page.locator("#state tbody")
        await channels.get_by_text("gone").wait_for()
        await channels.get_by_text("kept").wait_for()
        way.refuses = True
        way.cut()
        await page.locator("html[data-state=waiting]").wait_for(state="attached")
        async with session.delete(f"{gateway.url}/channels/live/gone") as response:
            assert response.status == 200
        way.refuses = False
        await page.locator("html[data-gaps='1']").wait_for(state="attached")
        await channels.get_by_text("gone").wait_for(state="detached")
        await channels.get_by_text("kept").wait_for()

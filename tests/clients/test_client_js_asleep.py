"""`/client.js` in pages that are hidden, frozen or off line, and what it does when they are back.

In a Chromium as people have it: the one that tests drive by default never hides a page.
"""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page

from tests.clients.chromium import chromium_as_people_have_it
from tests.clients.faults import Way
from tests.clients.pages import (
    ONE_LOOP,
    PATIENT,
    TRANSPORTS,
    connected,
    eventually,
    open_page,
    publish,
    reached,
    read,
    redis,
    report,
    session,
    way,
)
from tests.running import Valkey, Worker, until, worker

__all__ = ["redis", "session", "way"]

pytestmark = ONE_LOOP


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(redis: Valkey) -> AsyncIterator[Worker]:
    async with worker(redis.url, PATIENT) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def profile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BrowserContext]:
    async with chromium_as_people_have_it(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def context(profile: BrowserContext) -> AsyncIterator[BrowserContext]:
    """The browser, with a page of nothing; every other one is closed after the test."""
    blank = profile.pages[0]
    yield profile
    await profile.set_offline(False)
    for page in profile.pages:
        if page is not blank:
            await page.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext, gateway: Worker) -> Page:
    return await open_page(await context.new_page(), gateway.url)


async def hide(page: Page) -> None:
    """Put a page behind another one."""
    await (await page.context.new_page()).bring_to_front()
    await page.wait_for_function("document.visibilityState === 'hidden'", polling=50)


async def show(page: Page) -> None:
    await page.bring_to_front()
    await page.wait_for_function("document.visibilityState === 'visible'", polling=50)


async def keep_quiet(page: Page) -> None:
    """Be a browser that freezes pages without a word to them."""
    quiet = """() => ["freeze", "resume"].forEach((type) =>
        window.addEventListener(type, (event) => event.stopImmediatePropagation(), true))"""
    await page.evaluate(quiet)


async def set_lifecycle(page: Page, state: str) -> None:
    """Let a page be `frozen`, hidden and without a turn of its own, or `active` again."""
    session = await page.context.new_cdp_session(page)
    await session.send("Page.setWebLifecycleState", {"state": state})
    await session.detach()


async def lost(page: Page, channel: str) -> None:
    """Return when a reader has noticed that its connection is gone, and waits."""
    await eventually(page, channel, lambda found: not found["status"]["connected"])


async def test_a_page_that_was_hidden_connects_as_soon_as_it_is_seen(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/hidden"
    await read(page, way.url, channel, transports=["events"])
    await connected(page, channel, "events")
    await hide(page)
    way.refuses = True
    way.cut()
    await lost(page, channel)
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    way.refuses = False
    await show(page)
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])


async def test_a_page_that_learns_of_a_network_connects_at_once(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page
) -> None:
    await read(page, way.url, "plain/awake")
    await connected(page, "plain/awake", "events")
    way.refuses = True
    way.cut()
    await lost(page, "plain/awake")
    ids = [await publish(session, gateway.url, "plain/awake", 1)]
    way.refuses = False
    await page.evaluate("dispatchEvent(new Event('online'))")
    found = await reached(page, "plain/awake", ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])


async def test_a_page_that_is_hidden_and_seen_again_keeps_a_connection_that_works(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/seen"
    await read(page, gateway.url, channel, transports=["events"], heartbeatSeconds=15)
    await connected(page, channel, "events")
    for number in range(3):
        await hide(page)
        last = await publish(session, gateway.url, channel, number)
        await reached(page, channel, last)
        await show(page)
    await reached(page, channel, await publish(session, gateway.url, channel, 3))
    assert gateway.gateway.requests["/events"] == 1


async def test_a_connection_that_turns_out_to_be_dead_after_sleep_is_made_anew_at_once(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/dead"
    # As if the sleep were too short to give up the connection for it.
    await read(page, way.url, channel, transports=["events"], heartbeatSeconds=60)
    await connected(page, channel, "events")
    await hide(page)
    await show(page)
    way.cut()
    await until(lambda: gateway.gateway.requests["/events"] == 2)
    last = await publish(session, gateway.url, channel, 1)
    found = await reached(page, channel, last)
    assert (found["ids"], found["gaps"]) == ([last], [])


async def test_a_page_that_was_frozen_has_what_it_missed_as_soon_as_it_wakes(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page
) -> None:
    channels = {f"plain/{transport}": transport for transport in TRANSPORTS}
    await keep_quiet(page)
    for channel, transport in channels.items():
        await read(page, way.url, channel, transports=[transport])
        await connected(page, channel, transport)
    await hide(page)
    await set_lifecycle(page, "frozen")
    # The network forgets who sleeps, who learns of it when awake again.
    way.refuses = True
    way.cut()
    await until(lambda: way.connections == 0)
    ids = {
        channel: [await publish(session, gateway.url, channel, n) for n in range(3)]
        for channel in channels
    }
    way.refuses = False
    await set_lifecycle(page, "active")
    await show(page)
    for channel in channels:
        found = await reached(page, channel, ids[channel][-1])
        assert (found["ids"], found["gaps"]) == (ids[channel], [])


async def test_a_page_that_is_told_of_its_freezing_lets_go_of_its_connection(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/told"
    await read(page, gateway.url, channel)
    await connected(page, channel, "events")
    for _ in range(2):
        begin = (await report(page, channel))["ids"]
        await hide(page)
        await set_lifecycle(page, "frozen")
        await until(lambda: gateway.gateway.hub.subscribers == 0)
        ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
        await set_lifecycle(page, "active")
        found = await reached(page, channel, ids[-1])
        assert (found["ids"], found["gaps"]) == (begin + ids, [])


async def test_a_page_without_a_network_goes_on_as_soon_as_there_is_one(
    gateway: Worker,
    way: Way,
    session: aiohttp.ClientSession,
    context: BrowserContext,
    page: Page,
) -> None:
    channels = {f"plain/{transport}": transport for transport in TRANSPORTS}
    for channel, transport in channels.items():
        await read(page, way.url, channel, transports=[transport])
        await connected(page, channel, transport)
    for _ in range(2):
        begins = {channel: (await report(page, channel))["ids"] for channel in channels}
        await context.set_offline(True)  # Nothing new gets out, and what is under way is lost.
        way.refuses = True
        way.cut()
        for channel in channels:
            await lost(page, channel)
        ids = {
            channel: [await publish(session, gateway.url, channel, n) for n in range(3)]
            for channel in channels
        }
        assert [(await report(page, channel))["ids"] for channel in channels] == [*begins.values()]
        way.refuses = False
        await context.set_offline(False)
        for channel, begin in begins.items():
            found = await reached(page, channel, ids[channel][-1])
            assert (found["ids"], found["gaps"]) == (begin + ids[channel], [])


@pytest.mark.parametrize("told", [True, False])
async def test_a_tab_that_is_frozen_while_it_leads_is_relieved_by_another(
    gateway: Worker,
    session: aiohttp.ClientSession,
    page: Page,
    context: BrowserContext,
    told: bool,
) -> None:
    channel = "plain/relieved"
    if not told:
        await keep_quiet(page)
    other = await open_page(await context.new_page(), gateway.url)
    for tab in (page, other):
        await read(tab, gateway.url, channel, share=True)
        await connected(tab, channel, "events")
    assert (await report(page, channel))["status"]["leads"]
    await set_lifecycle(page, "frozen")
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    await show(other)
    found = await reached(other, channel, ids[-1])
    assert (found["ids"], found["gaps"], found["status"]["leads"]) == (ids, [], True)
    await set_lifecycle(page, "active")
    found = await reached(page, channel, ids[-1])
    await eventually(page, channel, lambda found: not found["status"]["leads"])
    ids.append(await publish(session, gateway.url, channel, 3))
    for tab in (page, other):
        found = await reached(tab, channel, ids[-1])
        assert (found["ids"], found["gaps"]) == (ids, [])
    await until(lambda: gateway.gateway.hub.subscribers == 1)
    # And when that one goes, the first one leads again.
    await other.close()
    await eventually(page, channel, lambda found: found["status"]["leads"])
    ids.append(await publish(session, gateway.url, channel, 4))
    assert (await reached(page, channel, ids[-1]))["ids"] == ids

"""Many channels in one page: a browser's few connections to a host must do for all of them."""

from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Page

from tests.clients.pages import (
    ONE_LOOP,
    SETTINGS,
    TRANSPORTS,
    browser,
    connected,
    eventually,
    gateway,
    open_page,
    opener,
    page,
    publish,
    reached,
    read,
    redis,
    report,
    session,
    snapshot,
    state_in_page,
)
from tests.edge.running import nginx, origin_of
from tests.running import Worker, until

__all__ = ["browser", "gateway", "opener", "page", "redis", "session"]

pytestmark = ONE_LOOP

CHANNELS = [f"plain/{number}" for number in range(12)]
HELD = 4  # As the module does by default.


async def all_come(session: aiohttp.ClientSession, url: str, page: Page) -> None:
    """Publish to every channel twice; each reader must get both events, once."""
    begins = {channel: (await report(page, channel))["ids"] for channel in CHANNELS}
    ids = {
        channel: [await publish(session, url, channel, number) for number in range(2)]
        for channel in CHANNELS
    }
    for channel in CHANNELS:
        found = await reached(page, channel, ids[channel][-1])
        assert (found["ids"], found["gaps"]) == (begins[channel] + ids[channel], [])
        expected = (await snapshot(session, url, channel))["state"]
        assert await state_in_page(page, channel) == expected


async def follow_all(page: Page, url: str, transport: str) -> None:
    for channel in CHANNELS:
        await read(page, url, channel, transports=[transport])
    for channel in CHANNELS:
        await eventually(page, channel, lambda found: found["status"]["connected"])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_many_channels_get_along_with_the_six_connections_of_a_browser(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, transport: str
) -> None:
    await follow_all(page, gateway.url, transport)
    await all_come(session, gateway.url, page)
    # A short request of the page's own is not held up either.
    assert await page.evaluate("fetch('/livez').then(({ status }) => status)") == 200
    used = [(await report(page, channel))["status"]["transport"] for channel in CHANNELS]
    if transport == "poll":
        assert set(used) == {"poll"}
    else:
        assert sorted(used) == sorted([transport] * HELD + ["poll"] * (len(CHANNELS) - HELD))


async def test_a_channel_has_a_connection_of_its_own_when_another_one_is_closed(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    await follow_all(page, gateway.url, "events")
    await until(lambda: gateway.gateway.hub.subscribers == HELD)
    for channel in CHANNELS[:8]:
        await page.evaluate("name => readers[name].followed.close()", channel)
    for channel in CHANNELS[8:]:
        await connected(page, channel, "events")
    last = await publish(session, gateway.url, CHANNELS[-1], 1)
    found = await reached(page, CHANNELS[-1], last)
    assert (found["ids"], found["gaps"]) == ([last], [])
    await until(lambda: gateway.gateway.hub.subscribers == HELD)


@pytest.mark.parametrize("own", [True, False])
async def test_over_http_2_each_channel_has_its_stream(
    gateway: Worker, tmp_path: Path, session: aiohttp.ClientSession, browser: Browser, own: bool
) -> None:
    context = await browser.new_context(ignore_https_errors=True)
    async with nginx(tmp_path / "nginx", origin_of(gateway.url), settings=SETTINGS) as edge:
        # The page is the edge's own, or of another site.
        page = await open_page(await context.new_page(), edge.tls_url if own else gateway.url)
        await follow_all(page, edge.tls_url, "events")
        for channel in CHANNELS:
            await connected(page, channel, "events")
        assert gateway.gateway.hub.subscribers == len(CHANNELS)
        await all_come(session, gateway.url, page)
        await page.close()


async def test_a_page_may_say_that_connections_are_plenty(
    gateway: Worker, tmp_path: Path, browser: Browser
) -> None:
    context = await browser.new_context(ignore_https_errors=True)
    async with nginx(tmp_path / "nginx", origin_of(gateway.url), settings=SETTINGS) as edge:
        page = await open_page(await context.new_page(), gateway.url)
        for channel in CHANNELS:
            await read(page, edge.tls_url, channel, connections=float("inf"))
        for channel in CHANNELS:
            found = await connected(page, channel, "events")
            assert found["transports"] == ["events"]
        await page.close()

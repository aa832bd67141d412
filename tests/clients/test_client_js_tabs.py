"""`/client.js` over the tabs of a browser, and in pages that go and come back."""

import aiohttp
import pytest
from playwright.async_api import Page

from tests.clients.pages import (
    ONE_LOOP,
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
    way,
)
from tests.running import Worker, until

__all__ = ["browser", "gateway", "opener", "page", "redis", "session", "way"]

pytestmark = ONE_LOOP


async def test_tabs_share_one_connection_and_outlive_the_one_that_has_it(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "keyed/shared"
    ids = [await publish(session, gateway.url, channel, 1, "a")]
    tabs = [page] + [await open_page(await page.context.new_page(), gateway.url) for _ in "ab"]
    for tab in tabs:
        await read(tab, gateway.url, channel, share=True)
        await connected(tab, channel, "events")
    looks = 0
    for rest in (tabs, tabs[1:], tabs[2:]):
        leads = [(await report(tab, channel))["status"]["leads"] for tab in rest]
        assert leads == [True, *[False] * (len(rest) - 1)]
        # The gateway may not have noticed yet that a tab was closed.
        await until(lambda: gateway.gateway.hub.subscribers == 1)
        ids += [await publish(session, gateway.url, channel, n, str(n)) for n in range(5)]
        for tab in rest:
            found = await reached(tab, channel, ids[-1])
            assert found["ids"] == ids[1:]
            assert found["gaps"] == []
            expected = await snapshot(session, gateway.url, channel)
            looks += 1
            assert await state_in_page(tab, channel) == expected["state"]
        await rest[0].close()
        # One that comes while nobody has the connection for certain.
        ids.append(await publish(session, gateway.url, channel, 7, "between"))
        if len(rest) > 1:
            await eventually(rest[1], channel, lambda found: found["status"]["leads"])
            await connected(rest[1], channel, "events")
    assert gateway.gateway.requests["/events"] == 3
    assert gateway.gateway.requests["/snapshots"] == 1 + looks


async def test_a_page_that_is_loaded_again_goes_on_with_what_was_kept(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "merged/kept"
    ids = [await publish(session, gateway.url, channel, {"a": 1})]
    await read(page, gateway.url, channel, persist=True)
    await connected(page, channel, "events")
    ids.append(await publish(session, gateway.url, channel, {"b": 2}))
    await reached(page, channel, ids[-1])
    await page.goto("about:blank")
    ids += [await publish(session, gateway.url, channel, {"c": n}) for n in range(3)]
    await page.goto(f"{gateway.url}/openapi.json")
    asked = gateway.gateway.requests["/snapshots"]
    await read(page, gateway.url, channel, persist=True)
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids[2:], [])
    assert found["state"] == {"a": 1, "b": 2, "c": 2}
    assert gateway.gateway.requests["/snapshots"] == asked


@pytest.mark.parametrize("share", [False, True])
async def test_a_page_that_comes_back_out_of_the_cache_of_pages_goes_on_where_it_was(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, share: bool
) -> None:
    channel = "plain/back"
    await read(page, gateway.url, channel, share=share)
    mark = (await connected(page, channel, "events"))["mark"]
    await page.goto(f"{gateway.url}/client.js")
    await until(lambda: gateway.gateway.hub.subscribers == 0)
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    await page.evaluate("history.back()")
    await page.wait_for_url("**/openapi.json", wait_until="commit")
    found = await reached(page, channel, ids[-1])
    assert found["mark"] == mark, "the page was loaded anew"
    assert (found["ids"], found["gaps"]) == (ids, [])
    await page.evaluate("name => readers[name].followed.close()", channel)
    await until(lambda: gateway.gateway.hub.subscribers == 0)


async def test_a_tab_that_was_away_learns_what_the_leading_one_told_meanwhile(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/tabs"
    other = await open_page(await page.context.new_page(), gateway.url)
    for tab in (page, other):
        await read(tab, gateway.url, channel, share=True)
        await connected(tab, channel, "events")
    mark = (await report(other, channel))["mark"]
    await other.goto(f"{gateway.url}/client.js")
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    await reached(page, channel, ids[-1])
    await other.evaluate("history.back()")
    await other.wait_for_url("**/openapi.json", wait_until="commit")
    found = await reached(other, channel, ids[-1])
    assert found["mark"] == mark, "the page was loaded anew"
    ids.append(await publish(session, gateway.url, channel, 3))
    for tab in (page, other):
        found = await reached(tab, channel, ids[-1])
        assert (found["ids"], found["gaps"], found["state"]) == (ids, [], 3)
    assert gateway.gateway.hub.subscribers == 1

"""`/client.js` on slices: one after the other, shared or not, in a real browser."""

import aiohttp
from playwright.async_api import Page

from tests.clients.pages import (
    ONE_LOOP,
    SETTINGS,
    Opener,
    browser,
    connected,
    opener,
    publish,
    reached,
    read,
    redis,
    session,
    snapshot,
)
from tests.running import ENDLESS, ENDLESS_SECONDS, Valkey, Worker, worker

__all__ = ["browser", "opener", "redis", "session"]

pytestmark = ONE_LOOP

LASTING = {**SETTINGS, "namespaces": {"default": ENDLESS}}


async def test_slices_are_walked_from_an_old_position_without_asking_for_each(
    redis: Valkey, session: aiohttp.ClientSession, opener: Opener
) -> None:
    async with worker(redis.url, LASTING) as gateway:
        await walk(gateway, session, await opener(gateway.url))


async def walk(gateway: Worker, session: aiohttp.ClientSession, page: Page) -> None:
    first = await publish(session, gateway.url, "plain/old", 1)
    later = [await publish(session, gateway.url, "plain/old", number) for number in (2, 3)]
    # A snapshot that is four slices old, of a reader whose clock may be anywhere.
    held = await snapshot(session, gateway.url, "plain/old", later[-1])
    await page.evaluate(
        "ahead => { const now = Date.now; Date.now = () => now() + ahead }",
        4 * ENDLESS_SECONDS * 1000,
    )
    await read(
        page, gateway.url, "plain/old",
        transports=["slices"], snapshot={**held, "id": first, "state": 1},
    )  # fmt: skip
    found = await reached(page, "plain/old", later[-1])
    await connected(page, "plain/old", "slices")
    later.append(await publish(session, gateway.url, "plain/old", 4))
    found = await reached(page, "plain/old", later[-1])
    assert (found["ids"], found["state"], found["gaps"]) == (later, 4, [])
    # One that is yet to come, and one or two that hold the position.
    assert gateway.gateway.requests["/slices"] <= 4
    assert gateway.gateway.requests["/history"] <= 4


async def test_slices_are_connected_before_the_channels_first_event(
    redis: Valkey, session: aiohttp.ClientSession, opener: Opener
) -> None:
    # Nothing but a slice's first bytes comes for days.
    async with worker(redis.url, LASTING) as running:
        page = await opener(running.url)
        await read(page, running.url, "plain/quiet", transports=["slices"])
        found = await connected(page, "plain/quiet", "slices")
        assert (found["ids"], found["state"]) == ([], None)
        last = await publish(session, running.url, "plain/quiet", 1)
        assert (await reached(page, "plain/quiet", last))["ids"] == [last]

"""`/client.js` on slices that end: what comes after them."""

import asyncio
from functools import partial
from time import time

from playwright.async_api import Page

from tests.clients.crowds import follow_each_its_own_way
from tests.clients.pages import (
    SLICE_SECONDS,
    Report,
    connected,
    eventually,
    open_page,
    order,
    publish,
    reached,
    read,
    report,
)
from tests.clients.together import Scenario, Stage
from tests.running import Worker, until


async def a_slice_that_is_gone_is_made_up_for_by_history(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    channel = "short/a"
    while True:
        ids = [await publish(session, gateway.url, channel, number) for number in range(10)]
        if len({order(id)[0] // 1000 // SLICE_SECONDS for id in ids}) == 1:
            break
    # The ring has dropped what the slice began with.
    await read(page, gateway.url, channel, transports=["slices"])
    await connected(page, channel, "slices")
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])
    # Two slices later it reads one that is whole.
    asked = gateway.gateway.requests["/history"]
    assert asked > 0
    await until(lambda: gateway.gateway.slices.readers == 1, seconds=60)
    asked = gateway.gateway.requests["/history"]
    ids += [await publish(session, gateway.url, channel, number) for number in range(3)]
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])
    assert gateway.gateway.requests["/history"] == asked


async def two_readers_in_one_browser_read_one_slice_at_the_same_time(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    # A browser that let the second wait for what the first stores would hold it back.
    channel = "plain/both"
    other = await open_page(await page.context.new_page(), gateway.url)
    readers = [(page, "one"), (page, "two"), (other, "three")]
    for tab, name in readers:
        await read(tab, gateway.url, channel, name, transports=["slices"])
        await connected(tab, name, "slices")
    async with asyncio.timeout(30):
        ids: list[str] = []
        while gateway.gateway.slices.counters.ended < 1:
            ids.append(await publish(session, gateway.url, channel, len(ids)))
            for tab, name in readers:
                await reached(tab, name, ids[-1])
    for tab, name in readers:
        found = await report(tab, name)
        assert (found["ids"], found["gaps"]) == (ids, [])


POSITIONS = """() => Object.entries(readers)
    .map(([name, { followed }]) => [name, followed.position])"""


async def stop_the_clock_within_a_slice(page: Page, gateway: Worker, count: int) -> dict[str, str]:
    """Let a page's clock move only when it is told to; returns where its readers are.

    The clock of the gateway goes on: the slice that they read will end.
    """
    slices, requests = gateway.gateway.slices, gateway.gateway.requests
    while True:
        await until(lambda: slices.readers == count and time() % SLICE_SECONDS < SLICE_SECONDS / 2)
        asked = requests["/slices"]
        # It stops at a time to come: far enough for any machine, and less than readers give up at.
        await page.clock.pause_at(await page.evaluate("Date.now()") / 1000 + 60)
        positions = dict(await page.evaluate(POSITIONS))
        # Nobody came to the end of a slice meanwhile: all read it for longer than a moment.
        if slices.readers == count and requests["/slices"] == asked:
            return positions
        await page.clock.resume()


def is_past(begin: str, found: Report) -> bool:
    return order(found["position"]) > order(begin)


async def readers_of_a_slice_that_ends_ask_for_the_next_one_by_one(stage: Stage) -> None:
    slices, count = stage.gateway.gateway.slices, 24
    page = await stage.page()
    await page.clock.install()
    await page.reload()
    patience = {"heartbeatSeconds": 120, "patienceSeconds": 120}
    await follow_each_its_own_way(
        page, stage.gateway.url, stage.closing, "slices", count, **patience
    )
    positions = await stop_the_clock_within_a_slice(page, stage.gateway, count)
    for name, begin in positions.items():
        await eventually(page, name, partial(is_past, begin))
    await until(lambda: slices.readers == 0)
    await page.clock.run_for(100)  # Of the 200 ms that they are spread over.
    await until(lambda: slices.readers > 0)
    await page.evaluate("fetch('/livez').then(({ status }) => status)")
    assert slices.readers < count
    await page.clock.run_for(100)
    await until(lambda: slices.readers == count)


SCENARIOS: list[Scenario] = [
    a_slice_that_is_gone_is_made_up_for_by_history,
    two_readers_in_one_browser_read_one_slice_at_the_same_time,
    readers_of_a_slice_that_ends_ask_for_the_next_one_by_one,
]

"""`/client.js` in a real browser: every event once, over every transport, whatever breaks."""

import asyncio
import gzip
import json
import random
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import brotli
import pytest
import zstandard
from playwright.async_api import Browser, Page, async_playwright

from tests.clients.edges import buffering_nginx, lying_cache
from tests.clients.faults import Way, way_to
from tests.clients.serving import RETRY_MS, Writer, live_through_crashes, serving
from tests.clients.test_browser import ARGUMENTS, CHROMIUM, narrow
from tests.clients.test_browser import publish as publish_batch
from tests.running import Valkey, Worker, until, worker

READER = (Path(__file__).parent / "client_pages" / "reader.js").read_text()
SLICE_SECONDS = 5
SETTINGS: dict[str, Any] = {
    "streams": {"retry_ms": RETRY_MS, "heartbeat_seconds": 1.0},
    "slices": {"retry_ms": RETRY_MS},
    "namespaces": {
        "default": {"slice_seconds": SLICE_SECONDS},
        "merged": {"reducer": "merge", "slice_seconds": SLICE_SECONDS},
        "keyed": {"reducer": "keyed", "slice_seconds": SLICE_SECONDS},
        "bare": {"reducer": "none", "slice_seconds": SLICE_SECONDS},
        "short": {
            "ring_limit_events": 5,
            "ring_spares_young": False,
            "slice_seconds": SLICE_SECONDS,
        },
    },
}
QUICK = {"heartbeatSeconds": 1, "patienceSeconds": 2, "refreshSeconds": 0.2}
CHANNELS = ["plain/a", "merged/a", "keyed/a"]
Report = dict[str, Any]


@pytest.fixture
async def gateway(redis: Valkey) -> AsyncIterator[Worker]:
    async with worker(redis.url, SETTINGS) as running:
        yield running


@pytest.fixture
async def way(gateway: Worker) -> AsyncIterator[Way]:
    async with way_to(gateway.url) as opened:
        yield opened


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert binary is not None, "the tests need Chromium"
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=binary,
            args=ARGUMENTS,
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield running
        await running.close()


@pytest.fixture
async def page(browser: Browser, gateway: Worker) -> Page:
    """A page of the gateway's own site that knows how to read."""
    context = await browser.new_context()
    return await open_page(await context.new_page(), gateway.url)


async def open_page(page: Page, url: str) -> Page:
    await page.add_init_script(READER)
    # A document that browsers may keep when they go elsewhere.
    await page.goto(f"{url}/openapi.json")
    return page


async def read(page: Page, base: str, channel: str, name: str = "", **options: Any) -> None:
    """Let a page follow a channel."""
    await page.evaluate(
        "args => read(...args)",
        [name or channel, f"{page.url.rpartition('/')[0]}/client.js", base, channel,
         {**QUICK, **options}],
    )  # fmt: skip


async def report(page: Page, name: str) -> Report:
    found: Report = await page.evaluate("name => report(name)", name)
    assert found["wrong"] == []
    return found


async def eventually(
    page: Page, name: str, condition: Callable[[Report], object], seconds: float = 25
) -> Report:
    """Return the first report that fulfils a condition."""
    found: Report = {}
    try:
        async with asyncio.timeout(seconds):
            while not condition(found := await report(page, name)):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came: {found}") from None
    return found


def order(position: str) -> tuple[int, ...]:
    return tuple(int(part) for part in position.split("-"))


async def reached(page: Page, name: str, position: str) -> Report:
    """Return when the reader has come as far as a position."""

    def has_it(found: Report) -> bool:
        return bool(found["position"]) and order(found["position"]) >= order(position)

    return await eventually(page, name, has_it)


async def connected(page: Page, name: str, transport: str) -> Report:
    def is_connected(found: Report) -> bool:
        status = found["status"]
        return bool(status["connected"] and status["transport"] == transport)

    return await eventually(page, name, is_connected)


async def publish(
    session: aiohttp.ClientSession, url: str, channel: str, data: object, key: str = ""
) -> str:
    """Publish JSON, but the empty text as it is: it deletes a key. Returns the position."""
    query = {"key": key} if key else {}
    body = b"" if data == "" else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    async with session.post(
        f"{url}/publish/{channel}", data=body, params=query, headers=headers
    ) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["id"])


async def snapshot(session: aiohttp.ClientSession, url: str, channel: str) -> Any:
    async with session.get(f"{url}/snapshots/{channel}") as response:
        return await response.json(content_type=None)


async def delete(session: aiohttp.ClientSession, url: str, channel: str) -> str:
    async with session.delete(f"{url}/channels/{channel}") as response:
        return str((await response.json())["id"])


class Changes:
    """Publishes to a channel of every reducer, and remembers the positions."""

    def __init__(self, session: aiohttp.ClientSession, url: str, seed: int) -> None:
        self.ids: dict[str, list[str]] = {channel: [] for channel in CHANNELS}
        self._session = session
        self._url = url
        self._chance = random.Random(seed)

    async def publish(self, count: int, pause_seconds: float = 0.0) -> None:
        for _ in range(count):
            for channel in CHANNELS:
                data, key = self._change(channel)
                self.ids[channel].append(
                    await publish(self._session, self._url, channel, data, key)
                )
            await asyncio.sleep(pause_seconds)

    def _change(self, channel: str) -> tuple[object, str]:
        name, number = self._chance.choice(["a", "b", "__proto__"]), self._chance.randrange(100)
        if channel == "plain/a":
            return {"n": number, "text": "é" * number}, ""
        if channel == "merged/a":
            return {name: self._chance.choice([None, number, {"in": {name: number}}])}, ""
        return self._chance.choice(["", number, [name]]), name


async def state_in_page(page: Page, name: str) -> Any:
    """Return the state as JSON has it: a key `__proto__` is one like any other."""
    return json.loads(
        await page.evaluate("name => JSON.stringify(readers[name].followed.state)", name)
    )


# -- every transport --------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["events", "slices", "poll"])
async def test_every_event_comes_once_though_connections_are_cut_in_their_middle(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page, transport: str
) -> None:
    changes = Changes(session, gateway.url, seed=1)
    await changes.publish(3)
    chance = random.Random(2)
    for channel in CHANNELS:
        await read(page, way.url, channel, transports=[transport])
        await connected(page, channel, transport)
    begins = {channel: len(ids) for channel, ids in changes.ids.items()}
    # A page of history has to fit in now and then.
    least = 1500 if transport == "poll" else 400
    way.budget = lambda: chance.randrange(least, 10 * least)
    way.cut()
    async with asyncio.timeout(30):
        await changes.publish(50, 0.02)
        while way.cuts <= 5:
            await changes.publish(10, 0.02)
    way.budget = lambda: None
    way.cut()
    await changes.publish(3)
    for channel in CHANNELS:
        wanted = changes.ids[channel]
        found = await reached(page, channel, wanted[-1])
        assert found["ids"] == wanted[begins[channel] :]
        assert found["gaps"] == []
        assert found["transports"] == [transport]
        expected = await snapshot(session, gateway.url, channel)
        assert await state_in_page(page, channel) == expected["state"]


async def test_snapshots_alone_bring_the_state_and_say_that_events_are_not_told(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    changes = Changes(session, gateway.url, seed=3)
    await changes.publish(2)
    for channel in CHANNELS:
        await read(page, gateway.url, channel, transports=["snapshots"])
        await connected(page, channel, "snapshots")
    await changes.publish(10, 0.05)
    for channel in CHANNELS:
        found = await reached(page, channel, changes.ids[channel][-1])
        assert found["ids"] == []
        assert set(found["gaps"]) == {"polled"}
        expected = await snapshot(session, gateway.url, channel)
        assert await state_in_page(page, channel) == expected["state"]


@pytest.mark.parametrize("transport", ["events", "slices", "poll"])
async def test_a_channel_is_followed_from_before_its_first_event(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, transport: str
) -> None:
    for channel in ("plain/new", "bare/new"):
        await read(page, gateway.url, channel, transports=[transport])
        found = await connected(page, channel, transport)
        assert found["state"] is None
        ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
        found = await reached(page, channel, ids[-1])
        assert (found["ids"], found["data"], found["gaps"]) == (ids, [0, 1, 2], [])
        # A namespace that keeps no state has none here either.
        assert found["state"] == (2 if channel == "plain/new" else None)


async def test_text_stays_text_and_types_are_told(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    for transport in ("events", "poll"):
        channel = f"plain/{transport}"
        await read(page, gateway.url, channel, transports=[transport])
        await connected(page, channel, transport)
        for query, kind in (("", "application/json"), ("?type=told", "text/plain")):
            headers = {"Content-Type": kind}
            url = f"{gateway.url}/publish/{channel}{query}"
            async with session.post(url, data="12", headers=headers) as response:
                last = (await response.json())["id"]
        found = await reached(page, channel, last)
        assert found["data"] == [12, "12"]
        told = "name => readers[name].told.events.map(({ type }) => type)"
        assert await page.evaluate(told, channel) == ["message", "told"]


# -- slices -----------------------------------------------------------------------------------


async def test_slices_are_walked_from_an_old_position_without_asking_for_each(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    first = await publish(session, gateway.url, "plain/old", 1)
    later = [await publish(session, gateway.url, "plain/old", number) for number in (2, 3)]
    # A snapshot that is an hour old, of a reader whose clock may be anywhere.
    held = await snapshot(session, gateway.url, "plain/old")
    await page.evaluate("() => { const now = Date.now; Date.now = () => now() + 4000 * 1000 }")
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
    redis: Valkey, session: aiohttp.ClientSession, browser: Browser
) -> None:
    # Nothing but a slice's first bytes comes for hours.
    hours = {"slice_seconds": 7200, "ring_age_seconds": 3 * 7200}
    async with worker(redis.url, {**SETTINGS, "namespaces": {"default": hours}}) as running:
        page = await open_page(await browser.new_page(), running.url)
        await read(page, running.url, "plain/quiet", transports=["slices"])
        found = await connected(page, "plain/quiet", "slices")
        assert (found["ids"], found["state"]) == ([], None)
        last = await publish(session, running.url, "plain/quiet", 1)
        assert (await reached(page, "plain/quiet", last))["ids"] == [last]
        await page.close()


async def test_a_slice_that_is_gone_is_made_up_for_by_history(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "short/a"
    for number in range(10):
        await publish(session, gateway.url, channel, number)
    # The ring has dropped what the slice began with.
    await read(page, gateway.url, channel, transports=["slices"])
    await connected(page, channel, "slices")
    ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])
    # Two slices later it reads one that is whole.
    asked = gateway.gateway.requests["/history"]
    assert asked > 0
    await until(lambda: gateway.gateway.slices.readers == 1)
    asked = gateway.gateway.requests["/history"]
    ids += [await publish(session, gateway.url, channel, number) for number in range(3)]
    found = await reached(page, channel, ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])
    assert gateway.gateway.requests["/history"] == asked


async def test_two_readers_in_one_browser_read_one_slice_at_the_same_time(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
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


# -- gaps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["events", "slices", "poll"])
async def test_whoever_was_away_for_too_long_is_told_of_the_gap_and_goes_on(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page, transport: str
) -> None:
    channel = "short/away"
    await publish(session, gateway.url, channel, "before")
    await read(page, way.url, channel, transports=[transport])
    await connected(page, channel, transport)
    way.refuses = True
    way.cut()
    await until(lambda: way.connections == 0)
    for number in range(20):
        await publish(session, gateway.url, channel, number)
    way.refuses = False
    found = await eventually(page, channel, lambda found: found["state"] == 19)
    assert found["gaps"] == ["evicted"]
    assert found["ids"] == []
    after = await publish(session, gateway.url, channel, "after")
    found = await reached(page, channel, after)
    assert (found["ids"], found["state"]) == ([after], "after")


@pytest.mark.parametrize("transport", ["events", "slices", "poll", "snapshots"])
async def test_a_channel_that_is_deleted_has_no_state_and_may_come_back(
    gateway: Worker, session: aiohttp.ClientSession, page: Page, transport: str
) -> None:
    channel = "keyed/gone"
    await publish(session, gateway.url, channel, 1, "a")
    await read(page, gateway.url, channel, transports=[transport])
    await connected(page, channel, transport)
    deleted = await delete(session, gateway.url, channel)
    found = await eventually(page, channel, lambda found: found["gaps"])
    assert found["state"] is None
    assert order(found["position"]) >= order(deleted)
    last = await publish(session, gateway.url, channel, 2, "b")
    found = await reached(page, channel, last)
    assert await state_in_page(page, channel) == {"b": 2}


# -- proxies that stand in the way ------------------------------------------------------------


async def test_a_proxy_that_holds_streams_back_is_noticed_and_got_around(
    gateway: Worker, tmp_path: Path, session: aiohttp.ClientSession, page: Page
) -> None:
    async with buffering_nginx(tmp_path / "nginx", gateway.url) as url:
        ids = [await publish(session, gateway.url, "plain/held", -1)]
        await read(page, url, "plain/held", patienceSeconds=1)
        await until(lambda: gateway.gateway.hub.subscribers)
        ids += [await publish(session, gateway.url, "plain/held", number) for number in range(5)]
        await connected(page, "plain/held", "poll")
        ids.append(await publish(session, gateway.url, "plain/held", "last"))
        found = await reached(page, "plain/held", ids[-1])
        assert (found["ids"], found["gaps"]) == (ids[1:], [])
        # Slices come, too, but each as a whole when it is over.
        assert "events" not in found["transports"]
        assert gateway.gateway.requests["/events"] > 0
        assert gateway.gateway.requests["/slices"] > 0


async def test_a_better_transport_is_tried_again_when_the_proxy_lets_streams_through(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    async with narrow(gateway.url) as way:
        url = f"http://127.0.0.1:{way.port}"
        await read(page, url, "plain/better", transports=["events", "poll"], betterSeconds=1)
        first = await connected(page, "plain/better", "events")
        assert first["transports"] == ["events"]
        way.open.clear()  # Not a word more, though the connection stands.
        held = await publish(session, gateway.url, "plain/better", 1)
        await eventually(page, "plain/better", lambda found: not found["status"]["connected"])
        way.open.set()
        await connected(page, "plain/better", "events")
        last = await publish(session, gateway.url, "plain/better", 2)
        found = await reached(page, "plain/better", last)
        assert (found["ids"], found["gaps"]) == ([held, last], [])


async def test_a_wait_that_a_proxy_forgets_does_not_hammer_the_origin(
    gateway: Worker, tmp_path: Path, session: aiohttp.ClientSession, page: Page
) -> None:
    async with buffering_nginx(tmp_path / "nginx", gateway.url) as url:
        channel = "plain/forgotten"
        await publish(session, gateway.url, channel, 1)
        await read(page, f"{url}/forgetful/", channel, transports=["poll"])
        await connected(page, channel, "poll")
        before = gateway.gateway.requests["/history"]
        async with session.get(f"{gateway.url}/events/quiet") as stream:
            for _ in range(3):
                while await stream.content.readline() != b": heartbeat\n":
                    pass
        # One for each second or two. (A heartbeat comes every second, or a little sooner.)
        assert 1 <= gateway.gateway.requests["/history"] - before <= 4
        last = await publish(session, gateway.url, channel, 2)
        found = await reached(page, channel, last)
        assert (found["ids"], found["gaps"]) == ([last], [])


async def test_an_edge_that_stays_behind_is_noticed_and_never_taken_back_in_time(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "plain/stale"
    async with lying_cache(gateway.url, session) as cache:
        await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel)
        cache.lies = True
        await publish(session, gateway.url, channel, "newer")
        held = await snapshot(session, gateway.url, channel)
        newest = await publish(session, gateway.url, channel, "newest")
        await read(page, cache.url, channel, transports=["snapshots"], snapshot=held)
        found = await reached(page, channel, newest)
        assert (found["state"], found["ids"], found["gaps"]) == ("newest", [], ["polled"])
        stale = "name => readers[name].told.statuses.some(({ stale }) => stale)"
        assert await page.evaluate(stale, channel)
        states = "name => readers[name].told.states.length"
        assert await page.evaluate(states, channel) == 2  # The one it began with, and the newest.


async def test_a_cache_that_drops_the_query_cannot_make_a_gap_go_round_and_round(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    channel = "short/round"
    async with lying_cache(gateway.url, session) as cache:
        await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel)
        for number in range(10):
            await publish(session, gateway.url, channel, number)
        cache.lies, cache.heeds_query = True, False
        await read(page, cache.url, channel, transports=["poll"])
        await eventually(page, channel, lambda found: found["gaps"])
        before = cache.asked.total()
        async with session.get(f"{gateway.url}/events/quiet") as stream:
            for _ in range(3):
                while await stream.content.readline() != b": heartbeat\n":
                    pass
        assert cache.asked.total() - before < 30
        cache.lies = False
        await eventually(page, channel, lambda found: found["state"] == 9)


async def test_a_state_in_place_of_events_is_taken_as_such(
    redis: Valkey, browser: Browser, session: aiohttp.ClientSession
) -> None:
    keyed = {"reducer": "keyed", "conflate": True}
    settings = {"streams": {"send_buffer_bytes": 4096}, "namespaces": {"boards": keyed}}
    async with worker(redis.url, settings) as running, narrow(running.url) as way:
        page = await open_page(await browser.new_page(), running.url)
        await publish(session, running.url, "boards/a", 1, "kept")
        await publish(session, running.url, "boards/a", 1, "old")
        await read(page, f"http://127.0.0.1:{way.port}", "boards/a", heartbeatSeconds=60)
        await connected(page, "boards/a", "events")
        way.open.clear()
        counters, idle = running.gateway.hub.counters, 0
        while idle < 5:  # Until every buffer on the way is full.
            written = counters.delivered_bytes
            await publish_batch(session, running.url, [("boards/a", "many", "x" * 2000)] * 100)
            idle = idle + 1 if counters.lags and counters.delivered_bytes == written else 0
        await publish(session, running.url, "boards/a", "", "old")
        await publish(session, running.url, "boards/a", 77, "many")
        way.open.set()
        last = await publish(session, running.url, "boards/a", 5, "kept")
        found = await reached(page, "boards/a", last)
        assert counters.conflations > 0
        assert set(found["gaps"]) == {"conflated"}
        assert found["state"] == {"kept": 5, "many": 77}


# -- crashes ----------------------------------------------------------------------------------


async def test_every_event_comes_once_though_the_gateway_is_killed(
    tmp_path: Path, browser: Browser, session: aiohttp.ClientSession
) -> None:
    transports = ["events", "slices", "poll"]
    async with serving(tmp_path) as served:
        page = await open_page(await browser.new_page(), served.url)
        async with Writer(session, served.url, "live/a") as writer:
            await until(lambda: writer.stored)
            begins = {}
            for transport in transports:
                await read(page, served.url, "live/a", transport, transports=[transport])
                begins[transport] = (await reached(page, transport, writer.stored[0][0]))["begin"]

            async def count() -> int:
                """Return how many events the slowest reader has, those before its time too."""
                ends = [(await report(page, transport))["position"] for transport in transports]
                least = min(map(order, ends))
                return sum(order(id) <= least for id, _ in writer.stored)

            await live_through_crashes(served, writer, count)
        for transport in transports:
            found = await report(page, transport)
            wanted = [one for one in writer.stored if order(one[0]) > order(begins[transport])]
            assert list(zip(found["ids"], found["data"], strict=True)) == wanted
            assert (found["gaps"], found["transports"]) == ([], [transport])
            assert len(wanted) > 30


# -- pages that sleep, and tabs ---------------------------------------------------------------


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
        assert gateway.gateway.hub.subscribers == 1
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


async def test_a_page_that_wakes_up_connects_at_once(
    gateway: Worker, way: Way, session: aiohttp.ClientSession, page: Page
) -> None:
    await read(page, way.url, "plain/awake")
    await connected(page, "plain/awake", "events")
    way.refuses = True
    way.cut()
    # Far into pauses that grow: the next would be long.
    await until(lambda: way.refused >= 3)
    ids = [await publish(session, gateway.url, "plain/awake", 1)]
    way.refuses = False
    await page.evaluate("dispatchEvent(new Event('online'))")
    found = await reached(page, "plain/awake", ids[-1])
    assert (found["ids"], found["gaps"]) == (ids, [])


# -- the end ----------------------------------------------------------------------------------


async def test_a_protected_channel_is_given_up_with_its_problem(
    redis: Valkey, browser: Browser
) -> None:
    settings = {"namespaces": {"shut": {"visibility": "protected"}}}
    async with worker(redis.url, settings) as running:
        page = await open_page(await browser.new_page(), running.url)
        await read(page, running.url, "shut/a")
        told = "name => readers[name].told.statuses.at(-1).error"
        await page.wait_for_function("name => readers[name].told.statuses.some((s) => s.error)",
                                     arg="shut/a")  # fmt: skip
        assert (await page.evaluate(told, "shut/a"))["status"] == 403
        requests = running.gateway.requests
        assert (requests["/snapshots"], requests["/events"], requests["/history"]) == (1, 0, 0)


# -- the module itself ------------------------------------------------------------------------

JS = Path(__file__).parents[1] / "js"
MODULE = Path(__file__).parents[2] / "gateway" / "web" / "static" / "client.js"


async def run(*command: str) -> bytes:
    """Return what a program of tests/js prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=JS, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output


async def test_it_is_small() -> None:
    minified = await run("node_modules/.bin/esbuild", "--minify", "--format=esm", str(MODULE))
    assert len(brotli.compress(minified, quality=11)) < 8 * 1024
    assert "import" not in re.findall(r"^(?:import|export)\b", MODULE.read_text(), re.MULTILINE)


async def test_its_types_hold_and_are_those_that_its_users_see() -> None:
    await run(
        "node_modules/.bin/tsc", "--noEmit", "--strict", "--allowJs", "--checkJs",
        "--target", "es2023", "--lib", "es2023,dom,dom.iterable",
        "--module", "esnext", "--moduleResolution", "bundler",
        str(MODULE), str(Path(__file__).parent / "client_pages" / "typed.ts"),
    )  # fmt: skip


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.decompress,
    "zstd": zstandard.decompress,
    "gzip": gzip.decompress,
    "identity": lambda body: body,
}


async def test_it_is_served_to_pages_of_any_site_in_each_coding(
    gateway: Worker, way: Way, browser: Browser
) -> None:
    url, tags = f"{gateway.url}/client.js", set()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for coding, decode in DECODERS.items():
            async with session.get(url, headers={"Accept-Encoding": coding}) as response:
                assert decode(await response.read()) == MODULE.read_bytes()
                assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
                assert response.headers.get("Content-Encoding", "identity") == coding
                assert response.headers["Vary"] == "Accept-Encoding"
                tags.add(tag := response.headers["ETag"])
            async with session.get(url, headers={"If-None-Match": f'"x", W/{tag}'}) as response:
                assert (response.status, await response.read()) == (304, b"")
                assert response.headers["ETag"] == tag
    assert len(tags) == len(DECODERS)
    page = await open_page(await browser.new_page(), way.url)
    names = "async (url) => Object.keys(await import(url))"
    assert await page.evaluate(names, url) == ["comparePositions", "follow"]

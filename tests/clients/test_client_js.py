"""`/client.js` in a real browser: every event once, over every transport, whatever breaks."""

import asyncio
import random

import aiohttp
from playwright.async_api import Page

from tests.clients.faults import way_to
from tests.clients.pages import (
    ONE_LOOP,
    TRANSPORTS,
    Opener,
    browser,
    connected,
    delete,
    eventually,
    for_each,
    gateway,
    opener,
    order,
    page,
    publish,
    reached,
    read,
    redis,
    session,
    snapshot,
    state_in_page,
)
from tests.running import Valkey, Worker, until, worker

__all__ = ["browser", "gateway", "opener", "page", "redis", "session"]

pytestmark = ONE_LOOP


class Changes:
    """Publishes to a channel of every reducer, and remembers the positions."""

    def __init__(self, session: aiohttp.ClientSession, url: str, name: str, seed: int) -> None:
        self.ids: dict[str, list[str]] = {
            f"{namespace}/{name}": [] for namespace in ("plain", "merged", "keyed")
        }
        self._session = session
        self._url = url
        self._chance = random.Random(seed)

    async def publish(self, count: int, pause_seconds: float = 0.0) -> None:
        for _ in range(count):
            for channel, ids in self.ids.items():
                data, key = self._change(channel)
                ids.append(await publish(self._session, self._url, channel, data, key))
            await asyncio.sleep(pause_seconds)

    def _change(self, channel: str) -> tuple[object, str]:
        name, number = self._chance.choice(["a", "b", "__proto__"]), self._chance.randrange(100)
        if channel.startswith("plain/"):
            return {"n": number, "text": "é" * number}, ""
        if channel.startswith("merged/"):
            return {name: self._chance.choice([None, number, {"in": {name: number}}])}, ""
        return self._chance.choice(["", number, [name]]), name


# -- every transport --------------------------------------------------------------------------


async def test_every_event_comes_once_though_connections_are_cut_in_their_middle(
    gateway: Worker, session: aiohttp.ClientSession, opener: Opener
) -> None:
    async def follow_through_cuts(transport: str) -> None:
        changes = Changes(session, gateway.url, transport, seed=1)
        await changes.publish(3)
        chance = random.Random(2)
        page = await opener(gateway.url)
        async with way_to(gateway.url) as way:
            for channel in changes.ids:
                await read(page, way.url, channel, transports=[transport])
                await connected(page, channel, transport)
            begins = {channel: len(ids) for channel, ids in changes.ids.items()}
            # A page of history has to fit in now and then.
            least = 1500 if transport == "poll" else 400
            way.budget = lambda: chance.randrange(least, 10 * least)
            way.cut()
            async with asyncio.timeout(60):
                await changes.publish(50, 0.02)
                while way.cuts <= 5:
                    await changes.publish(10, 0.02)
            way.budget = lambda: None
            way.cut()
            await page.evaluate("dispatchEvent(new Event('online'))")  # No need to wait any longer.
            await changes.publish(3)
            for channel, wanted in changes.ids.items():
                found = await reached(page, channel, wanted[-1])
                assert found["ids"] == wanted[begins[channel] :]
                assert found["gaps"] == []
                assert found["transports"] == [transport]
                expected = await snapshot(session, gateway.url, channel)
                assert await state_in_page(page, channel) == expected["state"]

    await for_each(TRANSPORTS, follow_through_cuts)


async def test_snapshots_alone_bring_the_state_and_say_that_events_are_not_told(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    changes = Changes(session, gateway.url, "a", seed=3)
    await changes.publish(2)
    for channel in changes.ids:
        await read(page, gateway.url, channel, transports=["snapshots"])
        await connected(page, channel, "snapshots")
    await changes.publish(10, 0.05)
    for channel, ids in changes.ids.items():
        found = await reached(page, channel, ids[-1])
        assert found["ids"] == []
        assert set(found["gaps"]) == {"polled"}
        expected = await snapshot(session, gateway.url, channel)
        assert await state_in_page(page, channel) == expected["state"]


async def test_a_channel_is_followed_from_before_its_first_event(
    gateway: Worker, session: aiohttp.ClientSession, opener: Opener
) -> None:
    async def follow_from_nothing(transport: str) -> None:
        page = await opener(gateway.url)
        for namespace in ("plain", "bare"):
            channel = f"{namespace}/{transport}"
            await read(page, gateway.url, channel, transports=[transport])
            found = await connected(page, channel, transport)
            assert found["state"] is None
            ids = [await publish(session, gateway.url, channel, number) for number in range(3)]
            found = await reached(page, channel, ids[-1])
            assert (found["ids"], found["data"], found["gaps"]) == (ids, [0, 1, 2], [])
            # A namespace that keeps no state has none here either.
            assert found["state"] == (2 if namespace == "plain" else None)

    await for_each(TRANSPORTS, follow_from_nothing)


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


# -- gaps -------------------------------------------------------------------------------------


async def test_whoever_was_away_for_too_long_is_told_of_the_gap_and_goes_on(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    async def be_away(transport: str) -> None:
        channel = f"short/{transport}"
        async with way_to(gateway.url) as way:
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

    await for_each(TRANSPORTS, be_away)


async def test_a_channel_that_is_deleted_has_no_state_and_may_come_back(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    async def outlive_the_channel(transport: str) -> None:
        channel = f"keyed/{transport}"
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

    await for_each([*TRANSPORTS, "snapshots"], outlive_the_channel)


# -- the end ----------------------------------------------------------------------------------


async def test_a_protected_channel_is_given_up_with_its_problem(
    redis: Valkey, opener: Opener
) -> None:
    settings = {"namespaces": {"shut": {"visibility": "protected"}}}
    async with worker(redis.url, settings) as running:
        page = await opener(running.url)
        await read(page, running.url, "shut/a")
        told = "name => readers[name].told.statuses.at(-1).error"
        await page.wait_for_function("name => readers[name].told.statuses.some((s) => s.error)",
                                     arg="shut/a")  # fmt: skip
        assert (await page.evaluate(told, "shut/a"))["status"] == 403
        requests = running.gateway.requests
        assert (requests["/snapshots"], requests["/events"], requests["/history"]) == (1, 0, 0)

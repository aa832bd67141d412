"""`/client.js` where proxies hold back and caches are behind: it gets around them."""

from time import monotonic

from tests.clients.edges import buffering_nginx, lying_cache
from tests.clients.faults import narrow
from tests.clients.pages import (
    connected,
    eventually,
    publish,
    publish_batch,
    reached,
    read,
    snapshot,
    three_heartbeats,
)
from tests.clients.together import Scenario, Stage
from tests.running import until, worker


async def a_proxy_that_holds_streams_back_is_noticed_and_got_around(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    async with buffering_nginx(stage.directory / "nginx", gateway.url) as url:
        ids = [await publish(session, gateway.url, "plain/held", -1)]
        await read(page, url, "plain/held", patienceSeconds=1)
        await until(lambda: gateway.gateway.requests["/events"])
        ids += [await publish(session, gateway.url, "plain/held", number) for number in range(5)]
        await connected(page, "plain/held", "poll")
        ids.append(await publish(session, gateway.url, "plain/held", "last"))
        found = await reached(page, "plain/held", ids[-1])
        assert (found["ids"], found["gaps"]) == (ids[1:], [])
        # Slices come, too, but each as a whole when it is over.
        assert "events" not in found["transports"]
        assert gateway.gateway.requests["/events"] > 0
        assert gateway.gateway.requests["/slices"] > 0


async def a_better_transport_is_tried_again_when_a_proxy_lets_it_through(
    stage: Stage,
) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    async with narrow(gateway.url) as way:
        url = f"http://127.0.0.1:{way.port}"
        await read(page, url, "plain/better", transports=["events", "poll"],
                   betterSeconds=1, patienceSeconds=20)  # fmt: skip
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


async def a_wait_that_a_proxy_forgets_does_not_hammer_the_origin(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    async with buffering_nginx(stage.directory / "nginx", gateway.url) as url:
        channel = "plain/forgotten"
        await publish(session, gateway.url, channel, 1)
        await read(page, f"{url}/forgetful/", channel, transports=["poll"])
        await connected(page, channel, "poll")
        before, since = gateway.gateway.requests["/history"], monotonic()
        await three_heartbeats(session, gateway.url)
        await until(lambda: gateway.gateway.requests["/history"] > before)
        # One for each second or two, and one that was due.
        assert gateway.gateway.requests["/history"] - before <= 1 + monotonic() - since
        last = await publish(session, gateway.url, channel, 2)
        found = await reached(page, channel, last)
        assert (found["ids"], found["gaps"]) == ([last], [])


async def an_edge_that_stays_behind_is_noticed_and_never_taken_back_in_time(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    channel = "plain/stale"
    async with lying_cache(gateway.url, session) as cache:
        old = await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel, old)
        cache.lies = True
        newer = await publish(session, gateway.url, channel, "newer")
        held = await snapshot(session, gateway.url, channel, newer)
        newest = await publish(session, gateway.url, channel, "newest")
        await read(page, cache.url, channel, transports=["snapshots"], snapshot=held)
        found = await reached(page, channel, newest)
        assert (found["state"], found["ids"], found["gaps"]) == ("newest", [], ["polled"])
        stale = "name => readers[name].told.statuses.some(({ stale }) => stale)"
        assert await page.evaluate(stale, channel)
        states = "name => readers[name].told.states.length"
        assert await page.evaluate(states, channel) == 2  # The one it began with, and the newest.


async def a_cache_that_drops_the_query_cannot_make_a_gap_go_round_and_round(stage: Stage) -> None:
    gateway, session = stage.gateway, stage.session
    page = await stage.page()
    channel = "short/round"
    async with lying_cache(gateway.url, session) as cache:
        old = await publish(session, gateway.url, channel, "old")
        await snapshot(session, cache.url, channel, old)
        for number in range(10):
            await publish(session, gateway.url, channel, number)
        cache.lies, cache.heeds_query = True, False
        await read(page, cache.url, channel, transports=["poll"])
        await eventually(page, channel, lambda found: found["gaps"])
        before = cache.asked.total()
        await three_heartbeats(session, gateway.url)
        assert cache.asked.total() - before < 30
        cache.lies = False
        await eventually(page, channel, lambda found: found["state"] == 9)


async def a_state_in_place_of_events_is_taken_as_such(stage: Stage) -> None:
    session = stage.session
    keyed = {"reducer": "keyed", "conflate": True}
    settings = {"streams": {"send_buffer_bytes": 4096}, "namespaces": {"boards": keyed}}
    async with worker(stage.redis.url, settings) as running, narrow(running.url) as way:
        page = await stage.page(running.url)
        await publish(session, running.url, "boards/a", 1, "kept")
        await publish(session, running.url, "boards/a", 1, "old")
        await read(page, f"http://127.0.0.1:{way.port}", "boards/a",
                   heartbeatSeconds=60, patienceSeconds=20)  # fmt: skip
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


SCENARIOS: list[Scenario] = [
    a_proxy_that_holds_streams_back_is_noticed_and_got_around,
    a_better_transport_is_tried_again_when_a_proxy_lets_it_through,
    a_wait_that_a_proxy_forgets_does_not_hammer_the_origin,
    an_edge_that_stays_behind_is_noticed_and_never_taken_back_in_time,
    a_cache_that_drops_the_query_cannot_make_a_gap_go_round_and_round,
    a_state_in_place_of_events_is_taken_as_such,
]

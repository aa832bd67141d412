"""Streams at the edge: what crowds cost the origin, whether all came once, and when."""

import asyncio
import time

from benchmarks.edge_readers import Crowd, PollReader, StreamReader, wait_for
from benchmarks.edge_rig import Plan, Rig, Used, rig, without_limit
from benchmarks.edge_tables import Found, percentile

SLICE_SECONDS = 5
SETTINGS = {"GATEWAY_NAMESPACES__DEFAULT__SLICE_SECONDS": str(SLICE_SECONDS)}
LOAD_NOTE = "One process reads: its own time for a whole crowd is in the delays of each way alike."


async def load(plan: Plan) -> Found:
    """What crowds cost the gateway, by the way they read."""
    found = Found(
        "Origin load by readers, 1 event/s",
        ("", "readers", "requests/s", "CPU s/min", "connections", "others %"),
        notes=[
            f"Slices of {SLICE_SECONDS} s. Counted from when all are open: the requests that open "
            "streams (SSE: one a reader) are not in it. One run each."
        ],
    )
    for way in ("SSE through NGINX", "long-poll through NGINX", "slices through Varnish"):
        for readers in plan.pick((300, 1000, 3000), (30, 100)):
            # Each has servers of its own: when long-polls that waited for NGINX's lock are gone, it
            # connects to the gateway for each of them yet, up to `proxy_cache_lock_timeout` later.
            async with rig(plan, SETTINGS, edit=without_limit) as edge:
                await _load_of(plan, found, edge, way, readers)
    return found


async def _load_of(plan: Plan, found: Found, edge: Rig, way: str, readers: int) -> None:
    kind = way.split()[0]
    channel = f"load-{kind}-{readers}".lower()
    route = {"SSE": "/events", "long-poll": "/history", "slices": "/slices/current"}[kind]
    crowd = await _crowd(edge, kind, channel, readers)
    # Of long-polls none is answered before something comes.
    await crowd.open(answers=kind != "long-poll")
    await edge.publish_numbered(channel)
    problems = await crowd.until(edge.published[channel])
    before, end = await edge.requests(route), time.monotonic() + plan.pick(15, 6)
    with Used(edge) as used:
        await edge.publish_steadily(channel, 1, lambda: time.monotonic() >= end)
        connections = edge.connections()
        problems = await crowd.until(edge.published[channel])
    asked = await edge.requests(route) - before
    await crowd.close()
    found.problems += [f"{way}, {readers:,}: {problem}" for problem in problems]
    found.rows.append(
        (way, readers, asked / used.seconds, used.cpu / used.seconds * 60, connections,
         used.others * 100)
    )  # fmt: skip


async def _crowd(edge: Rig, kind: str, channel: str, readers: int, wait: int = 25) -> Crowd:
    if kind == "SSE":
        return Crowd(StreamReader, edge.nginx, f"/events/{channel}", readers)
    if kind == "slices":
        await edge.until_sliced(channel)
        return Crowd(StreamReader, edge.varnish, f"/slices/current/{channel}", readers)
    after = await edge.publish_numbered(channel)
    return Crowd(
        PollReader, edge.nginx, f"/history/{channel}", readers, first=1, after=after, wait=wait
    )


async def slices(plan: Plan) -> Found:
    """Three slices for a crowd behind Varnish, beside the same crowd at the gateway itself."""
    readers = plan.pick(3000, 100)
    found = Found(
        "Live slices through Varnish, 2 events/s",
        ("", "readers", "events", "slices", "origin requests", "p50 ms", "p99 ms",
         "p99 ms while connected"),
        notes=[
            "Every reader got every event once, in order, unless said otherwise. After a slice's "
            "end a plain reader comes back after its `retry:` (500 ms) and gets the next slice "
            "from its beginning: what was published meanwhile is late by that. " + LOAD_NOTE
        ],
    )  # fmt: skip
    async with rig(plan, SETTINGS) as edge:
        ways = (
            ("slices through Varnish", edge.varnish, "/slices/current"),
            ("slices from the gateway", edge.origin, "/slices/current"),
            ("events from the gateway", edge.origin, "/events"),
        )
        for name, address, route in ways:
            await _slices_of(found, edge, name, address, route, readers)
    return found


async def _slices_of(
    found: Found, edge: Rig, name: str, address: str, route: str, readers: int
) -> None:
    channel = name.replace(" ", "-").lower()
    crowd = Crowd(StreamReader, address, f"{route}/{channel}", readers)
    await edge.until_sliced(channel)
    # The store's clock and this one are the same machine's. Opening takes less than a slice.
    await wait_for(lambda: time.time() % SLICE_SECONDS < 0.2)
    before, begun = await edge.requests(route), time.monotonic()
    await crowd.open()
    is_sliced = route != "/events"

    def over() -> bool:
        if is_sliced:
            return all(one.ends >= 3 for one in crowd.readers)
        return time.monotonic() > begun + 3 * SLICE_SECONDS

    ids: list[str] = []
    asked = 0
    while not over() and time.monotonic() < begun + 8 * SLICE_SECONDS:
        ids.append(await edge.publish_numbered(channel))
        await asyncio.sleep(0.5)
        # While all read the third slice: the first ask for a fourth before the last have its end.
        if not is_sliced or all(one.ends == 2 for one in crowd.readers):
            asked = await edge.requests(route) - before
    problems = _sliced_problems(crowd, ids) if is_sliced else await crowd.until(len(ids))
    count = min(one.ends for one in crowd.readers)
    await crowd.close()
    found.problems += [f"{name}: {problem}" for problem in problems]
    got = crowd.arrivals
    found.rows.append(
        (name, readers, len(ids), count, asked, percentile(got.ms, 0.5),
         percentile(got.ms, 0.99), percentile(got.connected_ms, 0.99))
    )  # fmt: skip


def _sliced_problems(crowd: Crowd, ids: list[str]) -> list[str]:
    """Return what is wrong: at its end each slice must have brought all that lies before it."""
    published = [int(one.partition("-")[0]) for one in ids]
    wrong = late = 0
    for reader in crowd.readers:
        assert isinstance(reader, StreamReader)
        late += len(reader.had) < 3
        wrong += any(sum(ms < end for ms in published) != had for end, had in reader.had)
    problems = crowd.arrivals.problems()
    problems += [f"{late:,} readers did not see three ends"] if late else []
    return problems + ([f"{wrong:,} readers lacked events at a slice's end"] if wrong else [])


async def longpoll(plan: Plan) -> Found:
    """A crowd that long-polls one channel: the origin's requests, events' delays, and idleness."""
    readers = plan.pick(2000, 100)
    found = Found(
        "Long-polls of one channel, 1 event/s",
        ("", "readers", "events", "origin requests per event", "p50 ms", "p99 ms",
         "idle: origin requests/s", "idle: answers/s to readers"),
        notes=[
            "While idle each waits 2 s. NGINX's cache lock looks for the answer every 500 ms: what "
            "it adds is the difference to Varnish. " + LOAD_NOTE
        ],
    )  # fmt: skip
    for name in ("NGINX", "Varnish", "gateway itself"):
        # With servers of its own, as in `load`.
        async with rig(plan, SETTINGS, edit=without_limit) as edge:
            address = {"NGINX": edge.nginx, "Varnish": edge.varnish}.get(name, edge.origin)
            await _longpoll_of(plan, found, edge, name, address, readers)
    return found


async def _longpoll_of(
    plan: Plan, found: Found, edge: Rig, name: str, address: str, readers: int
) -> None:
    channel = f"poll-{name}".replace(" ", "-").lower()
    after = await edge.publish_numbered(channel)
    path = f"/history/{channel}"
    crowd = Crowd(PollReader, address, path, readers, first=1, after=after)
    await crowd.open(answers=False)
    await edge.publish_numbered(channel)
    problems = await crowd.until(edge.published[channel])
    crowd.arrivals.ms.clear()
    before, end = await edge.requests("/history"), time.monotonic() + plan.pick(15, 4)
    events = await edge.publish_steadily(channel, 1, lambda: time.monotonic() >= end)
    problems = await crowd.until(edge.published[channel])
    asked = await edge.requests("/history") - before
    # From here on they wait for less, so that there are answers without events to count.
    crowd.wait = 2
    await edge.publish_numbered(channel)
    problems = await crowd.until(edge.published[channel])
    idle, seconds = await edge.requests("/history"), plan.pick(10, 4)
    answers = sum(one.ends for one in crowd.readers)
    await asyncio.sleep(seconds)
    idle = await edge.requests("/history") - idle
    answers = sum(one.ends for one in crowd.readers) - answers
    await edge.publish_numbered(channel)
    problems = await crowd.until(edge.published[channel])
    await crowd.close()
    found.problems += [f"{name}: {problem}" for problem in problems]
    got = crowd.arrivals
    found.rows.append(
        (name, readers, events, asked / events, percentile(got.ms, 0.5),
         percentile(got.ms, 0.99), idle / seconds, answers / seconds)
    )  # fmt: skip

"""`GET /history/{channel}`: pages of a channel's ring, and the wait for the next event."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.hub.arrivals import Arrivals
from gateway.hub.mirror import Mirror
from gateway.hub.rings import RingReader
from gateway.hub.tail import Tail
from gateway.protocol.coding import IDENTITY, negotiate_coding
from gateway.protocol.cursor import next_cursor, parse_cursor
from gateway.protocol.errors import InvalidField, StoreUnavailable
from gateway.protocol.etag import NotModified, evaluate_if_none_match
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Ring
from gateway.snapshot.pages import Page, Pages
from gateway.web.caching import CacheLife
from gateway.web.problem import problem
from gateway.web.request import Names, read_header, read_query, read_whole, redirect_spelling
from gateway.web.snapshot import not_acceptable, unknown


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """Bounds of a page, in events, and of the waits for one."""

    limit_events: int = 1000
    default_events: int = 100
    reach_seconds: float = 2.0
    wait_limit_seconds: int = 30
    subscribers_limit: int = 10_000
    inline_compression_limit_bytes: int = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Query:
    """What is asked for: up to `limit` events after a position, waiting for them if need be."""

    after: Position | None
    limit: int
    wait_seconds: int | None
    cursor: int | None


class HistoryHandler:
    """The handler of `/history/{channel}`.

    `count_readers` tells how many streams are open on this worker, and how many wait.
    """

    def __init__(
        self,
        rings: RingReader,
        arrivals: Arrivals,
        tails: Mapping[str, Tail],
        names: Names,
        pages: Pages,
        life: CacheLife,
        count_readers: Callable[[], int],
        options: HistoryOptions,
    ) -> None:
        self._rings = rings
        self._arrivals = arrivals
        self._tails = tails
        self._names = names
        self._pages = pages
        self._life = life
        self._count_readers = count_readers
        self._options = options

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Return the page after `after`, or the oldest that the ring holds."""
        channel, namespace = self._names.channel(request)
        query = self._read_query(request)
        if (redirect := redirect_spelling(request, channel)) is not None:
            return redirect
        coding = negotiate_coding(read_header(request, "Accept-Encoding"))
        if coding is None:
            return not_acceptable()
        tail = self._tails[namespace.name]
        if tail.mirror.life is None:
            raise StoreUnavailable("the store has not answered yet")
        given_out = True
        if query.after is not None:
            try:
                given_out = await tail.reach(query.after, self._options.reach_seconds)
            except TimeoutError as error:
                raise StoreUnavailable(f"this worker has not reached {query.after} yet") from error
        page = await self._wait(tail, channel, query)
        if page is None and query.wait_seconds is None:
            return unknown(tail, channel, f"channel {channel!r} is unknown")
        if page is None:
            return problem(
                503, "Unavailable", "nobody can wait here now: overload",
                {"reason": "overload"}, {"Retry-After": "1"},
            )  # fmt: skip
        return await self._answer(request, tail.mirror, channel, query, page, coding, given_out)

    def _read_query(self, request: web.Request) -> _Query:
        # In the order that clients are asked to keep, so that one question has one URL.
        values = read_query(request, "after", "limit", "wait", "cursor")
        options = self._options
        for name, needed in (("wait", "after"), ("cursor", "wait")):
            if name in values and needed not in values:
                raise InvalidField(name, values[name][:300], f"needs {needed}")
        wait = read_whole(values, "wait", 0, options.wait_limit_seconds)
        return _Query(
            after=Position.parse(values["after"], "after") if "after" in values else None,
            limit=read_whole(values, "limit", options.default_events, options.limit_events),
            wait_seconds=wait or None,
            cursor=parse_cursor(values["cursor"]) if "cursor" in values else None,
        )

    async def _wait(self, tail: Tail, channel: str, query: _Query) -> Page | None:
        """Return the page, once there is something in it or the time is over.

        None when the channel is unknown and nobody waits for it, or too many readers wait.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + (query.wait_seconds or 0)
        while True:
            if tail.mirror.exists(channel):
                await self._rings.read(tail, [channel])
            # From here to the wait nothing is awaited: no event comes in between unseen.
            ring = tail.mirror.ring(channel) if tail.mirror.exists(channel) else None
            if ring is None and query.wait_seconds is None:
                return None
            page = _read_page(tail.mirror, channel, ring, query)
            left_seconds = until - clock()
            if page.events or page.gap or left_seconds <= 0 or self._arrivals.draining:
                break
            if self._count_readers() >= self._options.subscribers_limit:
                return None
            await self._arrivals.wait(channel, left_seconds)
        if query.wait_seconds is None:
            return page
        moved_to = page.events[-1].id if page.events else None
        cursor = next_cursor(query.cursor, int(time.time() * 1000), random.random(), moved_to)
        return replace(page, cursor=cursor)

    async def _answer(
        self,
        request: web.Request,
        mirror: Mirror,
        channel: str,
        query: _Query,
        page: Page,
        coding: str,
        given_out: bool,
    ) -> web.Response:
        assert mirror.life is not None
        waited = query.wait_seconds is not None
        # A position that is yet to come is a gap now, and none when it has come.
        if not given_out or (waited and not page.events and self._arrivals.draining):
            headers = self._life.of_nothing(mirror.namespace, channel)
        else:
            settled = query.after is not None and not page.gap and len(page.events) == query.limit
            headers = self._life.of_page(
                mirror, channel, page.events, settled=settled, waited=waited
            )
        if not page.events:
            coding = IDENTITY  # No coding makes it smaller.
        rendering = self._pages.get(channel, mirror.life.epoch, page)
        outcome = evaluate_if_none_match(
            read_header(request, "If-None-Match"), rendering.tag(coding)
        )
        if isinstance(outcome, NotModified):
            return web.Response(status=304, headers={**headers, "ETag": str(outcome.tag)})
        headers["ETag"] = str(rendering.tag(coding))
        if coding != IDENTITY:
            headers["Content-Encoding"] = coding
        body = await self._pages.variant(
            channel, page, rendering, coding, self._options.inline_compression_limit_bytes
        )
        return web.Response(body=body, content_type="application/json", headers=headers)


def _read_page(mirror: Mirror, channel: str, ring: Ring | None, query: _Query) -> Page:
    """Return what is there now; without a ring the channel is unknown, or was deleted."""
    life, after, limit = mirror.life, query.after, query.limit
    assert life is not None
    if ring is None:
        assert after is not None
        known = mirror.index.get(channel)
        oldest = known.last if known else ORIGIN
        gap = after > mirror.clock or after < oldest or not life.vouches_for(after)
        return Page([], mirror.head if gap else after, gap)
    if after is None:
        events = ring.page(ORIGIN, limit)
        return Page(events, events[-1].id if events else max(ring.last, life.floor), gap=False)
    gap = after > mirror.clock or after < ring.resumable_from or not life.vouches_for(after)
    events = ring.page(ORIGIN if gap else after, limit)
    if events:
        return Page(events, events[-1].id, gap)
    return Page(events, max(ring.last, life.floor) if gap else after, gap)

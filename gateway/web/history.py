"""`GET /history/{channel}`: pages of a channel's ring."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson
from aiohttp import web

from gateway.hub.mirror import Mirror
from gateway.hub.rings import RingReader
from gateway.hub.tail import Tail
from gateway.protocol.cache_control import history_cache_control, history_max_age_seconds
from gateway.protocol.errors import StoreUnavailable
from gateway.protocol.event import Event
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Ring
from gateway.protocol.sse import json_data
from gateway.web.request import Names, read_query, read_whole
from gateway.web.snapshot import follow_headers, unknown


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """Bounds of a page, in events."""

    limit_events: int = 1000
    default_events: int = 100
    reach_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class _Page:
    """Events after a position; `gap` when some before them are gone."""

    events: list[Event]
    next: Position
    gap: bool


class HistoryHandler:
    """The handler of `/history/{channel}`."""

    def __init__(
        self, rings: RingReader, tails: Mapping[str, Tail], names: Names, options: HistoryOptions
    ) -> None:
        self._rings = rings
        self._tails = tails
        self._names = names
        self._options = options

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Return the page after `after`, or the oldest that the ring holds."""
        query = read_query(request, "after", "limit")
        channel, namespace = self._names.channel(request)
        options = self._options
        limit = read_whole(query, "limit", options.default_events, options.limit_events)
        after = Position.parse(query["after"], "after") if "after" in query else None
        tail = self._tails[namespace.name]
        if tail.mirror.life is None:
            raise StoreUnavailable("the store has not answered yet")
        if after is not None:
            try:
                await tail.reach(after, options.reach_seconds)
            except TimeoutError as error:
                raise StoreUnavailable(f"this worker has not reached {after} yet") from error
        if tail.mirror.exists(channel):
            await self._rings.read(tail, [channel])
        ring = tail.mirror.ring(channel)
        if ring is None or not tail.mirror.exists(channel):
            return unknown(tail, channel, f"channel {channel!r} is unknown")
        page = _read_page(tail.mirror, ring, after, limit)
        settled = after is not None and not page.gap and len(page.events) == limit
        return _answer(namespace, channel, page, settled=settled)


def _read_page(mirror: Mirror, ring: Ring, after: Position | None, limit: int) -> _Page:
    life = mirror.life
    assert life is not None
    if after is None:
        events = ring.page(ORIGIN, limit)
        return _Page(events, events[-1].id if events else max(ring.last, life.floor), gap=False)
    gap = after > mirror.clock or after < ring.resumable_from or not life.vouches_for(after)
    events = ring.page(ORIGIN if gap else after, limit)
    if events:
        return _Page(events, events[-1].id, gap)
    return _Page(events, max(ring.last, life.floor) if gap else after, gap)


def _answer(namespace: Namespace, channel: str, page: _Page, *, settled: bool) -> web.Response:
    age = time.time() - page.events[0].id.ms / 1000 if page.events else 0.0
    seconds = history_max_age_seconds(
        settled=settled, first_event_age_seconds=age, ring_age_seconds=namespace.ring_age_seconds
    )
    document = {
        "events": [_document(event) for event in page.events],
        "next": str(page.next),
        "gap": page.gap,
    }
    return web.Response(
        body=orjson.dumps(document),
        content_type="application/json",
        headers={
            "Cache-Control": history_cache_control(seconds),
            **follow_headers(namespace, channel),
        },
    )


def _document(event: Event) -> dict[str, object]:
    document: dict[str, object] = {"id": str(event.id), "channel": event.channel}
    if event.type:
        document["type"] = event.type
    if event.key:
        document["key"] = event.key
    document["data"] = json_data(event)
    return document

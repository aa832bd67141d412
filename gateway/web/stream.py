"""`GET /events`: opens streams on the hub."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from aiohttp import web
from aiohttp.http import StreamWriter

from gateway.hub.hub import Hub
from gateway.hub.mirror import Mirror
from gateway.hub.sockets import Sockets
from gateway.hub.subscriber import Connection, Subscriber
from gateway.hub.tail import Tail
from gateway.protocol.coding import negotiate_stream_coding
from gateway.protocol.errors import GatewayError, InvalidField
from gateway.protocol.namespace import Reducer
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.selector import Selection, parse_selection
from gateway.protocol.sse import encode_block, encode_unavailable, jittered_retry_ms
from gateway.protocol.stream_coding import opening_of
from gateway.web.kept_transport import EventStream, ResponseConnection
from gateway.web.problem import excerpt, problem
from gateway.web.request import Names, read_query
from gateway.web.take_over import HandedOver, Heads, socket_of

_log = logging.getLogger(__name__)
_SINCE = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_PATHS_KEPT = 4096
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Bounds of streams."""

    subscribers_limit: int = 10_000
    selectors_limit: int = 100
    buffer_limit_bytes: int = 64 * 1024
    send_buffer_bytes: int = 0
    reach_seconds: float = 2.0
    write_timeout_seconds: float = 30.0
    retry_ms: int = 2000
    base_path: str = ""


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a stream is to begin: `position` None is now."""

    position: Position | None = None
    since: bool = False
    malformed: str = ""


class Streams:
    """Handlers of `/events` and `/events/{channel}`.

    With `sockets` connections are taken over from aiohttp where that can be done.
    `count_streams` tells how many streams are open on this worker, of whatever kind.
    """

    def __init__(
        self,
        hub: Hub,
        tails: Mapping[str, Tail],
        names: Names,
        sockets: Sockets | None,
        count_streams: Callable[[], int],
        options: StreamOptions,
    ) -> None:
        self.draining = False
        self._sockets = sockets
        self._count_streams = count_streams
        self._heads = Heads()
        # Most streams are of few channels, by their paths.
        self._select_path = lru_cache(_PATHS_KEPT)(lambda path: self._select([path], bare=True))
        self._hub = hub
        self._tails = tails
        self._names = names
        self._options = options

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Follow channels from a position on, until either side ends it."""
        selection, start = self._read(request)
        offered = self._names.namespaces[selection.namespace].stream_codings
        coding = negotiate_stream_coding(request.headers.get("Accept-Encoding"), offered)
        if request.method == "HEAD":
            response = EventStream(coding, offered=bool(offered))
            with suppress(ConnectionError):  # Gone already; so below.
                await response.prepare(request)
            return response
        tail = self._tails[selection.namespace]
        reason = await self._not_ready(tail, start)
        if reason:
            return await self._unavailable(request, reason, start)
        return await self._follow(request, tail, selection, start, coding)

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Refuse: publishing has its own path."""
        path = f"{self._options.base_path}/publish"
        if "channel" in request.match_info:
            path += f"/{request.match_info['channel']}"
        return problem(
            405, "Method Not Allowed", f"streams are read with GET; publish with POST {path}",
            headers={"Allow": "GET, HEAD, OPTIONS"},
        )  # fmt: skip

    def _read(self, request: web.Request) -> tuple[Selection, _Start]:
        channel = request.match_info.get("channel")
        if channel is not None:
            query = read_query(request, "last_event_id", "since")
            return self._select_path(channel), _read_start(request, query)
        selectors = request.query.getall("channel", [])
        query = read_query(request, "last_event_id", "since", repeated=("channel",))
        if len(selectors) > self._options.selectors_limit:
            rule = f"at most {self._options.selectors_limit} channels a stream"
            raise InvalidField("channel", len(selectors), rule)
        return self._select(selectors, bare=False), _read_start(request, query)

    def _select(self, selectors: Sequence[str], *, bare: bool) -> Selection:
        selection = parse_selection(
            selectors, self._names.namespaces, limit_bytes=self._names.limit_bytes
        )
        namespace = self._names.open(selection.namespace)
        # Only the path of one exact channel says of itself which channel data belongs to.
        bare = bare and selection.single is not None and namespace.reducer is not Reducer.KEYED
        return replace(selection, enveloped=not bare)

    async def _not_ready(self, tail: Tail, start: _Start) -> str:
        """Return why a stream cannot be served just now, or nothing."""
        reason = self._closed_to(tail)
        if reason or start.position is None or start.since:
            return reason
        try:
            await tail.reach(start.position, self._options.reach_seconds)
        except TimeoutError:
            return "behind"
        except GatewayError:
            return "store"
        return self._closed_to(tail)  # Much may have changed meanwhile.

    def _closed_to(self, tail: Tail) -> str:
        if self.draining:
            return "draining"
        if self._count_streams() >= self._options.subscribers_limit:
            return "overload"
        return "store" if tail.mirror.life is None else ""

    async def _unavailable(
        self, request: web.Request, reason: str, start: _Start
    ) -> web.StreamResponse:
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return problem(
                503, "Unavailable", f"streams cannot be served now: {reason}",
                {"reason": reason}, {"Retry-After": "1"},
            )  # fmt: skip
        # An EventSource never comes back after a 503; after this it does, spread over time.
        response = EventStream()
        retry_ms = jittered_retry_ms(self._options.retry_ms, random.random())
        # A new stream's first event sets the last event ID, to nothing when it has no id, and the
        # reader would come back without a position: WHATWG HTML 9.2.6.
        asked = None if start.since else start.position
        if start.malformed:
            asked = ORIGIN  # From before everything: it will be told of its gap yet.
        first = encode_block(id=asked) if asked is not None else b""
        with suppress(ConnectionError):
            await response.prepare(request)
            await response.write(first + encode_unavailable(reason, retry_ms))
            await response.write_eof()
        return response

    async def _follow(
        self, request: web.Request, tail: Tail, selection: Selection, start: _Start, coding: str
    ) -> web.StreamResponse:
        opening = opening_of(coding)
        offered = bool(tail.mirror.namespace.stream_codings)

        def join(connection: Connection) -> Subscriber:
            return self._hub.join(
                connection, tail.mirror, selection, _place(start, tail.mirror),
                since=start.since, malformed=start.malformed, coding=coding,
            )  # fmt: skip

        sock = None if _wants_chunks(request) else socket_of(request)
        if self._sockets is not None and sock is not None:
            head = await self._heads.get(request, coding, offered=offered)
            try:
                taken = self._sockets.take(sock, head + opening)
            except OSError as error:
                _log.warning("no stream can be opened: %s", error)
                return await self._unavailable(request, "overload", start)
            taken.subscriber = join(taken)
            return HandedOver()
        response = EventStream(coding, offered=offered)
        return await self._serve(request, response, opening, join)

    async def _serve(
        self,
        request: web.Request,
        response: EventStream,
        opening: bytes,
        join: Callable[[Connection], Subscriber],
    ) -> web.StreamResponse:
        """Keep a stream on aiohttp's transport until either side ends it."""
        writer = None
        with suppress(ConnectionError):
            writer = await response.prepare(request)
        transport = request.transport
        if transport is None or not isinstance(writer, StreamWriter):
            return response  # Gone before it began.
        options = self._options
        connection = ResponseConnection(
            writer, transport, options.buffer_limit_bytes, opening, options.send_buffer_bytes
        )
        subscriber = join(connection)
        try:
            await connection.serve(lambda: self._hub.writable(subscriber))
        except ConnectionError:
            return response  # The reader left while bytes were on their way.
        finally:
            self._hub.leave(subscriber)
        try:
            # Off the hub nobody else would end a reader that takes nothing.
            async with asyncio.timeout(self._options.write_timeout_seconds):
                await response.write_eof()
        except (ConnectionError, TimeoutError):
            connection.abort()
        return response


def _wants_chunks(request: web.Request) -> bool:
    """Tell whether a cache stands in between, which is to get the stream in chunks.

    A body without them ends with its connection, so a cache cannot tell a stream that was cut off
    from one that ended; and Varnish holds what came together with the head until there is more.
    Source: RFC 9110 7.6.3 (Via); Varnish has X-Varnish in its place.
    """
    return "Via" in request.headers or "X-Varnish" in request.headers


def _place(start: _Start, mirror: Mirror) -> Position | None:
    """Return the position to begin after; a span of time only reaches over what there was."""
    position = start.position
    if position is None or not start.since or mirror.life is None:
        return position
    # Before the namespace began, or after its last event, a time is no position of it.
    return max(mirror.life.floor, min(position, mirror.tailed))


def _read_start(request: web.Request, query: Mapping[str, str]) -> _Start:
    """Return where to begin: the header wins, as a browser sends it only when it comes back."""
    header = ", ".join(request.headers.getall("Last-Event-ID", []))
    if "last_event_id" in query and "since" in query:
        raise InvalidField("since", query["since"][:300], "stands in place of last_event_id")
    start = _Start()
    if "last_event_id" in query:
        start = _Start(Position.parse(query["last_event_id"], "last_event_id"))
    elif "since" in query:
        match = _SINCE.fullmatch(query["since"])
        if match is None:
            raise InvalidField(
                "since", query["since"][:300], "must be a span such as 30s, 5m, 2h, 1d"
            )
        span_ms = int(match[1]) * _UNIT_SECONDS[match[2]] * 1000
        start = _Start(Position(max(0, int(time.time() * 1000) - span_ms), 0), since=True)
    if header:
        try:
            return _Start(Position.parse(header, "Last-Event-ID"))
        except InvalidField:
            return _Start(malformed=excerpt(header))
    return start

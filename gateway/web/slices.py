"""`GET /slices/…`: streams that end at a boundary, the same for all, for caches to share."""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import HttpVersion11

from gateway.hub.slice import Log, Slice
from gateway.hub.slices import SHARED_SECONDS, SliceAhead, SliceGone, Slices
from gateway.hub.tail import Tail
from gateway.protocol.cache_control import NO_STORE
from gateway.protocol.coding import IDENTITY, negotiate_stream_coding
from gateway.protocol.errors import GatewayError, StoreUnavailable
from gateway.protocol.namespace import Namespace
from gateway.protocol.slice import HELD_SECONDS, parse_slice_number
from gateway.protocol.sse import (
    encode_block,
    encode_gap,
    encode_unavailable,
    jittered_retry_ms,
)
from gateway.web.caching import CacheLife, slice_headers
from gateway.web.kept_transport import EventStream
from gateway.web.problem import problem
from gateway.web.request import Names, check_spelling, read_query


@dataclass(frozen=True, slots=True)
class SliceOptions:
    """Bounds of serving slices. `snapshots` is the path that snapshot URLs begin with."""

    subscribers_limit: int = 10_000
    write_timeout_seconds: float = 30.0
    retry_ms: int = 2000
    snapshots: str = "/snapshots/"


class SliceHandler:
    """Handlers of `/slices/current/{channel}` and `/slices/{epoch}/{number}/{channel}`.

    `count_streams` tells how many streams are open on this worker, of whatever kind.
    """

    def __init__(
        self,
        slices: Slices,
        tails: Mapping[str, Tail],
        names: Names,
        life: CacheLife,
        count_streams: Callable[[], int],
        options: SliceOptions,
    ) -> None:
        self.draining = False
        self._life = life
        self._slices = slices
        self._tails = tails
        self._names = names
        self._count_streams = count_streams
        self._options = options

    async def numbered(self, request: web.Request) -> web.StreamResponse:
        """Answer with one slice of a channel, or say why there is none."""
        channel, namespace = self._names.channel(request)
        read_query(request)
        check_spelling(request)
        number = parse_slice_number(request.match_info["number"], namespace.slice_seconds)
        tail = self._tails[namespace.name]
        try:
            self._check_open(tail)
            self._check_epoch(request, tail)
            slice = await self._slices.numbered(tail, channel, number)
            with self._unless_refused(slice):
                self._check_open(tail)
                self._check_epoch(request, tail)
        except _AnotherEpoch as error:
            return _gone(str(error), "epoch")
        except SliceAhead as error:
            return problem(404, "Not begun yet", str(error), {"current_slice": error.current})
        except SliceGone as error:
            return _gone(str(error), error.reason)
        except _Unavailable as error:
            raise StoreUnavailable(str(error)) from error
        return await self._serve(request, namespace, slice, numbered=True)

    async def current(self, request: web.Request) -> web.StreamResponse:
        """Answer with the channel's current slice; an EventSource is never told to give up."""
        channel, namespace = self._names.channel(request)
        read_query(request)
        check_spelling(request)
        tail = self._tails[namespace.name]
        try:
            self._check_open(tail)
            slice = await self._slices.current(tail, channel)
            with self._unless_refused(slice):
                self._check_open(tail)
        except SliceGone as error:
            return await self._gap(request, namespace, channel, error)
        except GatewayError as error:
            return await self._unavailable(request, error)
        return await self._serve(request, namespace, slice, numbered=False)

    @contextmanager
    def _unless_refused(self, slice: Slice) -> Iterator[None]:
        """Look again, for much may have happened while a request was held: nobody reads it then."""
        try:
            yield
        except GatewayError:
            self._slices.drop_unread(slice)
            raise

    def _check_open(self, tail: Tail) -> None:
        if self.draining:
            raise _Unavailable("draining")
        if self._count_streams() >= self._options.subscribers_limit:
            raise _Unavailable("overload")
        if tail.mirror.life is None:
            raise _Unavailable("store")

    def _check_epoch(self, request: web.Request, tail: Tail) -> None:
        epoch, life = request.match_info["epoch"], tail.mirror.life
        if life is None or life.epoch != epoch:
            raise _AnotherEpoch(f"epoch {epoch[:64]} is not the present one")

    # -- a slice ------------------------------------------------------------------------------

    async def _serve(
        self, request: web.Request, namespace: Namespace, slice: Slice, *, numbered: bool
    ) -> web.StreamResponse:
        offered = namespace.stream_codings
        coding = negotiate_stream_coding(request.headers.get("Accept-Encoding"), offered)
        response = EventStream(coding, offered=bool(offered))
        self._slices.join(slice)
        try:
            # Before the headers, which say what is left of the slice.
            log = await slice.log(IDENTITY if request.method == "HEAD" else coding)
            self._slices.count(slice)
            kept = numbered and slice.finished
            if kept:
                # NGINX caches only what it may hold back.
                del response.headers["X-Accel-Buffering"]
            response.headers.update(self._headers(request, namespace, slice, kept=kept))
            if request.method == "HEAD":
                await response.prepare(request)
            else:
                await self._write(request, response, log)
        except (ConnectionError, TimeoutError):
            _abort(request)
        finally:
            self._slices.leave(slice)
        return response

    async def _write(self, request: web.Request, response: EventStream, log: Log) -> None:
        """Write the slice from its first byte to its last; cut it off where that never comes."""
        await response.prepare(request)
        at = 0
        while True:
            data, at = log.after(at)
            if data:
                async with asyncio.timeout(self._options.write_timeout_seconds):
                    await response.write(data)
            elif log.cut:
                # Without the last chunk, so that no cache takes it for a whole one.
                if request.transport is not None:
                    request.transport.close()
                return
            elif log.ended:
                async with asyncio.timeout(self._options.write_timeout_seconds):
                    await response.write_eof()
                return
            else:
                await log.changed()

    def _headers(
        self, request: web.Request, namespace: Namespace, slice: Slice, *, kept: bool
    ) -> dict[str, str]:
        # The end of a body without chunks is the end of its connection, which proves nothing.
        if request.version < HttpVersion11:
            return {"Cache-Control": NO_STORE}
        if kept:
            mirror = self._tails[namespace.name].mirror
            age_seconds = self._slices.age_seconds(slice)
            return self._life.of_finished_slice(mirror, slice.channel, age_seconds)
        # A second less than is left: who comes later is to ask for the next one.
        left_seconds = self._slices.left_seconds(slice)
        if left_seconds < SHARED_SECONDS:
            # It took long to make: another is asked for before a cache could be done with this one.
            return {"Cache-Control": f"{NO_STORE}, no-transform"}
        seconds = max(1, int(left_seconds) - 1)
        headers = slice_headers(namespace, slice.channel, seconds)
        # NGINX shares no answer that is still on its way, and would keep it from all others.
        headers["X-Accel-Expires"] = "0"
        return headers

    # -- no slice -----------------------------------------------------------------------------

    async def _gap(
        self, request: web.Request, namespace: Namespace, channel: str, error: SliceGone
    ) -> web.StreamResponse:
        """Tell a reader without a position that it may have missed something, and let it go.

        It comes back when the slice that cannot be served is over, at a moment of its own.
        """
        # Not so late that it would be held until the slice after the next.
        left_ms = (namespace.slice_seconds - HELD_SECONDS) * 1000
        spread_ms = min(2 * self._options.retry_ms, left_ms / 2)
        retry_ms = int(error.over_in_seconds * 1000 + random.random() * spread_ms)
        gap = encode_gap(
            id=error.newest,
            reason=error.reason,
            requested="",
            oldest=error.oldest,
            newest=error.newest,
            snapshots=[self._options.snapshots + channel],
        )
        return await self._say(request, encode_block(retry_ms=retry_ms) + gap)

    async def _unavailable(self, request: web.Request, error: GatewayError) -> web.StreamResponse:
        reason = str(error) if isinstance(error, _Unavailable) else "store"
        if "text/event-stream" not in request.headers.get("Accept", ""):
            return problem(
                503, "Unavailable", f"slices cannot be served now: {reason}",
                {"reason": reason}, {"Retry-After": "1"},
            )  # fmt: skip
        retry_ms = jittered_retry_ms(self._options.retry_ms, random.random())
        return await self._say(request, encode_unavailable(reason, retry_ms))

    async def _say(self, request: web.Request, words: bytes) -> web.StreamResponse:
        response = EventStream(IDENTITY)
        response.headers["Cache-Control"] = f"{NO_STORE}, no-transform"
        with suppress(ConnectionError):
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(words)
                await response.write_eof()
        return response


class _Unavailable(GatewayError):
    """A passing condition; the message is its name."""


class _AnotherEpoch(GatewayError):
    """The slice is of a life of the store that is over."""


def _gone(detail: str, reason: str) -> web.Response:
    return problem(410, "Gone", detail, {"reason": reason})


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()

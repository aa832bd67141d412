"""`GET /snapshots/{channel}`: conditional, negotiated, cacheable."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from gateway.hub.tail import Tail
from gateway.protocol.cache_control import UNKNOWN_CHANNEL
from gateway.protocol.coding import IDENTITY, negotiate_coding
from gateway.protocol.errors import StoreUnavailable, UnknownChannel
from gateway.protocol.etag import (
    EntityTag,
    NotModified,
    evaluate_if_none_match,
    newest_held,
)
from gateway.protocol.namespace import Reducer
from gateway.protocol.position import Position
from gateway.snapshot.cache import Snapshots
from gateway.snapshot.variants import Snapshot
from gateway.web.caching import VARY, CacheLife
from gateway.web.problem import problem
from gateway.web.request import Names, read_header, read_query, redirect_spelling

MINIMUM_POSITION = "Minimum-Position"
"""The header that means what `?min=` does: a cache that fetches anew cannot change the URL."""


@dataclass(frozen=True, slots=True)
class SnapshotOptions:
    """Bounds of answering with a snapshot."""

    wait_seconds: float = 2.0
    inline_compression_limit_bytes: int = 16 * 1024


def unknown(tail: Tail, channel: str, detail: str) -> web.Response:
    """Return the 404 of a public channel that is not there: it can be followed from its `id`."""
    life = tail.mirror.life
    assert life is not None
    rules = tail.mirror.namespace
    extra = {
        "channel": channel,
        "id": str(tail.mirror.head),
        "epoch": life.epoch,
        "reducer": rules.reducer,
        "slice_seconds": rules.slice_seconds,
    }
    headers = {"Cache-Control": UNKNOWN_CHANNEL}
    return problem(404, "Unknown channel", detail, extra, headers)


def not_acceptable() -> web.Response:
    """Return the 406 of a caller that takes no coding, not even none."""
    detail = "Accept-Encoding allows none of br, zstd, gzip, identity"
    return problem(406, "Not acceptable", detail, headers=VARY)


class SnapshotHandler:
    """The handler of `/snapshots/{channel}`."""

    def __init__(
        self,
        snapshots: Snapshots,
        tails: Mapping[str, Tail],
        names: Names,
        life: CacheLife,
        options: SnapshotOptions,
    ) -> None:
        self._snapshots = snapshots
        self._tails = tails
        self._names = names
        self._life = life
        self._options = options

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Return the channel's state, or 304 when the caller has it."""
        channel, namespace = self._names.channel(request)
        query = read_query(request, "min")
        if (redirect := redirect_spelling(request, channel)) is not None:
            return redirect
        minimum = Position.parse(query["min"], "min") if "min" in query else None
        if MINIMUM_POSITION in request.headers:
            named = Position.parse(request.headers[MINIMUM_POSITION], MINIMUM_POSITION)
            minimum = max(minimum or named, named)
        header = read_header(request, "If-None-Match")
        tail = self._tails[namespace.name]
        life = tail.mirror.life
        if life is None:
            raise StoreUnavailable("the store has not answered yet")
        if namespace.reducer is Reducer.NONE:
            detail = f"namespace {namespace.name} keeps no state (reducer none)"
            return unknown(tail, channel, detail)
        held = newest_held(header, life.epoch)
        known = (minimum, held[0] if held else None)
        wanted = max((p for p in known if p is not None), default=None)
        given_out = True
        if wanted is not None:
            try:
                given_out = await tail.reach(wanted, self._options.wait_seconds)
            except TimeoutError as error:
                if held is None or held[0] != wanted or tail.mirror.life is not life:
                    raise StoreUnavailable(f"this worker has not reached {wanted} yet") from error
                # The caller holds something newer than this worker could say.
                return self._not_modified(self._life.of_snapshot(tail.mirror, channel), held[1])
        try:
            snapshot = await self._snapshots.get(tail, channel, wanted)
        except UnknownChannel as error:
            return unknown(tail, channel, str(error))
        # What is at a position that is yet to come, no cache may say when it has come.
        headers = (
            self._life.of_snapshot(tail.mirror, channel)
            if given_out
            else self._life.of_nothing(namespace, channel)
        )
        return await self._answer(request, snapshot, header, headers)

    def _not_modified(self, headers: dict[str, str], held: EntityTag) -> web.Response:
        self._snapshots.counters.not_modified += 1
        return web.Response(status=304, headers={**headers, "ETag": str(held)})

    async def _answer(
        self,
        request: web.Request,
        snapshot: Snapshot,
        if_none_match: str | None,
        headers: dict[str, str],
    ) -> web.Response:
        coding = negotiate_coding(read_header(request, "Accept-Encoding"))
        if coding is None:
            return not_acceptable()
        # Whoever knew more than this worker was waited for: what is newer now is lost history.
        outcome = evaluate_if_none_match(if_none_match, snapshot.tag(coding))
        if isinstance(outcome, NotModified):
            return self._not_modified(headers, outcome.tag)
        headers["ETag"] = str(snapshot.tag(coding))
        body = await self._snapshots.variant(
            snapshot, coding, self._options.inline_compression_limit_bytes
        )
        if coding != IDENTITY:
            headers["Content-Encoding"] = coding
        return web.Response(body=body, content_type="application/json", headers=headers)

"""`POST /publish`: one event or a batch, through the one door."""

from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from gateway.hub.pace import Pace
from gateway.hub.tail import Tail
from gateway.protocol.batch import PublishLimits, parse_batch, parse_event
from gateway.protocol.cache_control import NO_STORE
from gateway.protocol.errors import GatewayError, IdempotencyConflict, InvalidBatch, InvalidField
from gateway.protocol.etag import AnyTag, parse_entity_tags
from gateway.protocol.event import NewEvent
from gateway.protocol.position import Position
from gateway.store.publisher import Publisher
from gateway.store.redis import Stored
from gateway.web.problem import problem_of
from gateway.web.request import Names, read_body, read_query

_BATCH_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")


class PublishHandler:
    """Handlers of `/publish`, `/publish/{channel}` and `DELETE /channels/{channel}`."""

    def __init__(
        self, publisher: Publisher, tails: Mapping[str, Tail], names: Names, limits: PublishLimits
    ) -> None:
        self._paces = {name: Pace(tail) for name, tail in tails.items()}
        self._publisher = publisher
        self._names = names
        self._limits = limits

    async def post_one(self, request: web.Request) -> web.StreamResponse:
        """Publish the body as one event of the path's channel."""
        query = read_query(request, "type", "key")
        channel, namespace = self._names.channel(request)
        if_match = read_if_match(request)
        token = _read_idempotency_key(request)
        body = await read_body(request, self._limits.event_bytes, "data")
        try:
            event = parse_event(
                channel, body, request.headers.get("Content-Type", ""), self._limits,
                type=query.get("type", ""), key=query.get("key", ""), idempotency_key=token,
            )  # fmt: skip
            stored = (await self._publisher.publish(namespace.name, [event], if_match))[0]
        except IdempotencyConflict as error:
            error.line = None
            return problem_of(error)
        except InvalidField as error:
            return problem_of(error, invalid=422)
        headers = {"Cache-Control": NO_STORE, "ETag": f'"{stored.position}"'}
        if stored.replayed:
            headers["Idempotency-Replayed"] = "true"
        return _json({"channel": channel, "id": str(stored.position)}, headers)

    async def post_batch(self, request: web.Request) -> web.StreamResponse:
        """Publish the body's lines, all or nothing."""
        read_query(request)
        for header in ("Idempotency-Key", "If-Match"):
            if header in request.headers:
                rule = "is for one event; in a batch each line has its own idempotency_key"
                raise InvalidField(header, request.headers[header][:300], rule)
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in _BATCH_TYPES:
            rule = f"must be {_BATCH_TYPES[0]}; one event goes to POST /publish/<channel>"
            return problem_of(InvalidField("Content-Type", kind, rule), invalid=415)
        body = await read_body(request, self._limits.batch_bytes)
        lines: Sequence[int] = ()
        try:
            name, events, lines = parse_batch(body, self._names.namespaces, self._limits)
            self._names.open(name)
            weight = max(
                len(events) / self._limits.batch_events, len(body) / self._limits.batch_bytes
            )
            stored = await self._store_batch(name, events, weight)
        except (InvalidField, InvalidBatch, IdempotencyConflict) as error:
            return problem_of(_at_line(error, lines), invalid=422)
        document: dict[str, object] = {
            "count": len(stored),
            "ids": [str(one.position) for one in stored],
        }
        replayed = sum(one.replayed for one in stored)
        if replayed:
            document["replayed"] = replayed
        return _json(document, {"Cache-Control": NO_STORE})

    async def _store_batch(
        self, name: str, events: Sequence[NewEvent], weight: float
    ) -> list[Stored]:
        pace = self._paces[name]
        async with pace.turn(weight):
            stored = await self._publisher.publish(name, events)
            await pace.keep(max(one.position for one in stored), weight)
        return stored

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """End the path's channel: its events and its state go."""
        read_query(request)
        channel, namespace = self._names.channel(request)
        if_match = read_if_match(request)
        position = await self._publisher.delete(namespace.name, channel, if_match)
        return _json({"channel": channel, "id": str(position)}, {"Cache-Control": NO_STORE})


def _json(document: object, headers: dict[str, str]) -> web.Response:
    return web.Response(
        body=orjson.dumps(document), content_type="application/json", headers=headers
    )


def _at_line(error: GatewayError, lines: Sequence[int]) -> GatewayError:
    """Name the body's line where the store counted events; a bad line is a bad batch."""
    if isinstance(error, (InvalidField, IdempotencyConflict)) and error.line is not None and lines:
        error.line = lines[error.line - 1]
        if isinstance(error, InvalidField):
            return InvalidBatch([error])
    return error


def read_if_match(request: web.Request) -> str:
    """Return the position that `If-Match` names, `*`, or nothing when there is no such header."""
    if "If-Match" not in request.headers:
        return ""
    header = ",".join(request.headers.getall("If-Match"))
    tags = parse_entity_tags(header, "If-Match")
    if isinstance(tags, AnyTag):
        return "*"
    # Strong comparison: RFC 9110 13.1.1.
    if len(tags) != 1 or tags[0].weak:
        raise InvalidField("If-Match", header[:300], 'must be * or one strong tag "<position>"')
    return str(Position.parse(tags[0].opaque, "If-Match"))


def _read_idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return ""
    # The draft's field is a quoted string; most clients send it bare.
    key = key.strip().removeprefix('"').removesuffix('"')
    if not key:
        raise InvalidField("Idempotency-Key", key, "must not be empty")
    return key

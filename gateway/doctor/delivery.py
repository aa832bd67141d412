"""Publishes events to a channel of its own, and measures how each way brings them to readers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import aiohttp
import orjson

from gateway.doctor.finding import Finding, fault, ok, warning
from gateway.doctor.greeting import Greeting
from gateway.doctor.probe import Open, Probe
from gateway.doctor.slices import HELD_SECONDS, current_slice
from gateway.doctor.streams import NO_BUFFER
from gateway.protocol.errors import GatewayError

_EVENTS = 3
_ASKED_SECONDS = 0.3
"""For a long-poll to be on its way before there is something to answer."""

_MEND = (
    *NO_BUFFER,
    "NGINX: no proxy_ignore_headers X-Accel-Buffering;",
    "CDN: response buffering off; /slices/ past its cache where it buffers what it may keep "
    "(docs/cdn.md)",
)
_POLL_MEND = (
    "NGINX: proxy_cache_key with $request_uri; no proxy_cache_valid for /history/",
    "Varnish: no set beresp.ttl for /history/",
    "CDN: no minimum life; Cache-Control is followed",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """In seconds: what comes later than `patience` is late, what comes later than `idle` lost."""

    patience: float
    idle: float


class NotPublished(GatewayError):
    """The address for publishing does not take events."""


class Publisher:
    """Publishes to one channel of one gateway, as a back end does."""

    def __init__(self, session: aiohttp.ClientSession, url: str, channel: str, key: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._channel = channel
        self._query = f"?key={key}" if key else ""

    async def publish(self) -> str:
        """Publish one event; return its position. Raises NotPublished."""
        answer = await self._ask("POST", f"/publish/{self._channel}{self._query}", b'{"doctor":1}')
        if "id" not in answer:
            raise NotPublished(f"cannot publish at {self._url}: {_reason(answer)}")
        return str(answer["id"])

    async def epoch(self) -> str | None:
        """Return the epoch of the channel's namespace there, None when it is not told."""
        answer = await self._ask("GET", f"/snapshots/{self._channel}")
        return str(answer["epoch"]) if "epoch" in answer else None

    async def delete(self) -> bool:
        """Delete the channel; tell whether it is gone."""
        with suppress(NotPublished):
            return "id" in await self._ask("DELETE", f"/channels/{self._channel}")
        return False

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, object]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers
            ) as response:
                text = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise NotPublished(f"cannot publish at {self._url}: {reason}") from error
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document = None
        return document if isinstance(document, dict) else {"status": response.status}


def _reason(answer: dict[str, object]) -> str:
    return str(answer.get("detail") or f"it answers {answer.get('status', 'nothing of use')}")


@asynccontextmanager
async def publishing(
    url: str, channel: str, reducer: str, *, timeout_seconds: float, insecure: bool
) -> AsyncIterator[Publisher]:
    """Open the way to publish to a channel; the channel is deleted at the end by the caller."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=not insecure),
        timeout=aiohttp.ClientTimeout(total=timeout_seconds),
    ) as session:
        yield Publisher(session, url, channel, "doctor" if reducer == "keyed" else "")


async def check_delivery(
    probe: Probe, greeting: Greeting, publisher: Publisher, channel: str, limits: Limits
) -> list[Finding]:
    """Publish a few events for each way to read, one when the one before has come."""
    try:
        if await publisher.epoch() not in (None, greeting.epoch):
            return [fault("delivery", "what is published there goes to another store than the "
                          "public address reads", "--publish-url of the gateway behind the "
                          "public address")]  # fmt: skip
        await publisher.publish()
        try:
            found = [
                await _measure_stream(probe, publisher, f"/events/{channel}", limits),
                await _measure_slice(probe, greeting, publisher, channel, limits),
                await _measure_long_poll(probe, publisher, channel, limits),
            ]
        finally:
            gone = await publisher.delete()
    except NotPublished as error:
        return [fault("delivery", str(error), "--publish-url with the gateway's own address, or "
                      "that of its internal listener")]  # fmt: skip
    if not gone:
        found.append(warning("delivery", f"the channel {channel} could not be deleted there",
                             f"DELETE /channels/{channel} at the gateway's own "
                             "address"))  # fmt: skip
    return [one for one in found if one is not None]


async def _measure_stream(
    probe: Probe, publisher: Publisher, path: str, limits: Limits, name: str = "/events"
) -> Finding | None:
    """Follow a stream while events are published; None when it ended before they had come."""
    async with probe.stream(
        path, limits.patience + HELD_SECONDS, accept_encoding="identity"
    ) as stream:
        if stream is None or stream.status != 200:
            answer = "no head in time" if stream is None else f"status {stream.status}"
            return fault("delivery", f"{name} cannot be followed: {answer}", *_MEND)
        sent: dict[bytes, float] = {}
        for _ in range(_EVENTS):
            before = time.monotonic()
            mark = b"id: %b\n" % (await publisher.publish()).encode()
            sent[mark] = before
            await stream.read(limits.patience, partial(_contains, mark))
        await stream.read(limits.idle, partial(_contains, mark))
    if b"event: end" in stream.body and mark not in stream.body:
        return None
    return _judge(name, stream, sent, limits)


def _contains(mark: bytes, body: bytes) -> bool:
    return mark in body


def _judge(name: str, stream: Open, sent: dict[bytes, float], limits: Limits) -> Finding:
    came = [stream.when(mark) for mark in sent]
    seconds = [
        None if at is None else at - before for at, before in zip(came, sent.values(), strict=True)
    ]
    if any(one is None for one in seconds):
        return fault("delivery", f"an event that was published did not come by {name} within "
                     f"{max(limits.patience, limits.idle):g} s", *_MEND)  # fmt: skip
    worst = max(one for one in seconds if one is not None)
    if worst <= limits.patience:
        return ok("delivery", f"an event comes by {name} within {worst * 1000:.0f} ms")
    together = len(set(came)) < len(came)
    how = "together with a later one" if together else "with whatever came next, or a heartbeat"
    return fault("delivery", f"an event came by {name} only after {worst:.1f} s, {how}: single "
                 "events are held back", *_MEND)  # fmt: skip


async def _measure_slice(
    probe: Probe, greeting: Greeting, publisher: Publisher, channel: str, limits: Limits
) -> Finding:
    """Follow the running slice by its number; the next one, when that is over too soon."""
    for _ in range(2):
        number, left = current_slice(greeting)
        if left < HELD_SECONDS:
            # It would be held until it is over, and the next one has most of its time before it.
            await asyncio.sleep(left + 1)
            number += 1
        path = f"/slices/{greeting.epoch}/{number}/{channel}"
        found = await _measure_stream(probe, publisher, path, limits, "a slice")
        if found is not None:
            return found
    return ok("delivery", "slices are too short to see how events come by them")


async def _measure_long_poll(
    probe: Probe, publisher: Publisher, channel: str, limits: Limits
) -> Finding:
    """Wait for events that are published meanwhile."""
    after, worst = await publisher.publish(), 0.0
    wait = 1 + int(limits.patience)
    for _ in range(_EVENTS):
        path = f"/history/{channel}?after={after}&limit=100&wait={wait}"
        asked = asyncio.create_task(probe.get(path, wait=wait, accept_encoding="identity"))
        await asyncio.wait([asked], timeout=_ASKED_SECONDS)
        before = time.monotonic()
        position = await publisher.publish()
        answer = await asked
        worst = max(worst, time.monotonic() - before)
        if position.encode() not in answer.body:
            return fault("delivery", f"a long-poll was answered {answer.status} without the event "
                         "that it waited for", *_POLL_MEND)  # fmt: skip
        after = position
    if worst <= limits.patience:
        return ok("delivery", f"an event comes by a long-poll within {worst * 1000:.0f} ms")
    return fault("delivery", f"an event came by a long-poll only after {worst:.1f} s",
                 *_POLL_MEND)  # fmt: skip

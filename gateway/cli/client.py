"""A client of the gateway's HTTP interface, for the command line; it prints nothing."""

import asyncio
import io
import json
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from gateway.protocol.channel import check_channel
from gateway.protocol.errors import GatewayError
from gateway.protocol.event import check_token
from gateway.protocol.position import Position
from gateway.protocol.stream_reader import Block, EventStreamParser, MalformedStream

CONNECT_TIMEOUT_SECONDS = 10.0
ANSWER_TIMEOUT_SECONDS = 60.0
SILENCE_LIMIT_SECONDS = 90.0
"""A stream that says nothing for this long is dead: a heartbeat comes every 15 s by default."""

RETRY_LIMIT_MS = 30_000
"""However long the gateway asks to wait, or however often it is not there: twice a minute."""

RETRY_SPREAD = 0.5
"""The share of a wait that chance may add, so that the readers of a cut do not return as one."""

IDEMPOTENCY_KEY_LIMIT_BYTES = 255
"""The gateway takes no longer one."""

NDJSON = "application/x-ndjson"


class Unreachable(GatewayError):
    """The gateway does not answer at this URL, or stopped in the middle of an answer."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot reach {url}: {reason}")
        self.url = url
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Problem:
    """What a problem document (RFC 9457) says; `errors` are those of a batch's lines."""

    status: int
    title: str
    detail: str = ""
    field: str | None = None
    value: object = None
    rule: str | None = None
    errors: tuple[Mapping[str, Any], ...] = ()


class Refused(GatewayError):
    """The gateway answered, and said no."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem


class GatewayClient:
    """Speaks to one gateway; use it as an asynchronous context manager."""

    def __init__(self, url: str, *, chance: Callable[[], float] = random.random) -> None:
        """`url` is the gateway's address, with its base path when it has one.

        `chance` returns a number from 0 up to 1, another each time: it spreads reconnections.
        """
        self._chance = chance
        self._url = url.rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise Unreachable(url, "the URL must begin with http:// or https://")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=ANSWER_TIMEOUT_SECONDS, sock_connect=CONNECT_TIMEOUT_SECONDS
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def publish(
        self,
        channel: str,
        data: bytes,
        *,
        json: bool,
        type: str = "",
        key: str = "",
        idempotency_key: str = "",
        if_match: str = "",
    ) -> dict[str, Any]:
        """Publish one event; return the gateway's answer: channel and id.

        `if_match` is a position, or `*` for any. Raises InvalidField for what no request can carry.
        """
        check_channel(channel)
        check_token(idempotency_key, "idempotency key", IDEMPOTENCY_KEY_LIMIT_BYTES)
        headers = {"Content-Type": "application/json" if json else "text/plain; charset=utf-8"}
        if idempotency_key:
            headers["Idempotency-Key"] = idempotency_key
        if if_match:
            exact = if_match != "*"
            headers["If-Match"] = f'"{Position.parse(if_match, "if-match")}"' if exact else "*"
        params = {name: value for name, value in (("type", type), ("key", key)) if value}
        return await self._document(
            "POST", f"/publish/{channel}", params=params, data=io.BytesIO(data), headers=headers
        )

    async def publish_batch(self, lines: Sequence[bytes]) -> dict[str, Any]:
        """Publish NDJSON lines, all or none; return the gateway's answer: ids and count."""
        body = io.BytesIO(b"".join(b"%b\n" % line for line in lines))
        return await self._document("POST", "/publish", data=body, headers={"Content-Type": NDJSON})

    async def snapshot(self, channel: str) -> bytes:
        """Return the snapshot's JSON document as it was sent."""
        check_channel(channel)
        async with self._request("GET", f"/snapshots/{channel}") as response:
            return await response.read()

    async def channels(
        self, prefix: str = "", *, limit: int = 1000
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield what the gateway says of each channel whose name begins with `prefix`."""
        after: str | None = None
        while True:
            params = {"prefix": prefix, "limit": str(limit), "after": after}
            given = {name: value for name, value in params.items() if value}
            page = await self._document("GET", "/channels", params=given)
            for one in page["channels"]:
                yield one
            after = page.get("next")
            if after is None:
                return

    async def follow(
        self,
        selectors: Sequence[str],
        *,
        after: str = "",
        since: str = "",
        on_reconnect: Callable[[str], None] = lambda reason: None,
    ) -> AsyncGenerator[Block]:
        """Yield the blocks of a stream of `selectors` for ever, resuming whenever it is cut.

        `after` is a position, `since` an age such as `5m`. `on_reconnect` is told why, each time.
        Raises Unreachable when the first connection fails, Refused when the gateway says no.
        """
        query = [("channel", selector) for selector in selectors]
        query += [(k, v) for k, v in (("last_event_id", after), ("since", since)) if v]
        last_event_id, retry_ms, connected = "", 2000, False
        failures = 0
        while True:
            reason = "the gateway closed the stream"
            try:
                # Once a position is known the header says it, and wins over the query.
                async with aclosing(self._read(query, last_event_id)) as blocks:
                    async for block in blocks:
                        connected, failures = True, 0
                        last_event_id = block.id
                        retry_ms = retry_ms if block.retry_ms is None else block.retry_ms
                        yield block
            except Unreachable as error:
                if not connected:
                    raise
                failures += 1
                reason = error.reason
            except Refused as error:
                if not connected or error.problem.status not in (429, 500, 502, 503, 504):
                    raise
                failures += 1
                reason = str(error)
            on_reconnect(reason)
            await asyncio.sleep(reconnect_delay_ms(retry_ms, failures, self._chance()) / 1000)

    async def _read(
        self, query: Sequence[tuple[str, str]], last_event_id: str
    ) -> AsyncGenerator[Block]:
        # Without a coding, so that a cut leaves nothing half decoded.
        headers = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "Cache-Control": "no-store",
        }
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        timeout = aiohttp.ClientTimeout(
            sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=SILENCE_LIMIT_SECONDS
        )
        async with self._request(
            "GET", "/events", params=query, headers=headers, timeout=timeout
        ) as response:
            if response.content_type != "text/event-stream":
                raise MalformedStream(f"{self._url} answered with {response.content_type}")
            parser = EventStreamParser(last_event_id)
            async for chunk in response.content.iter_any():
                for block in parser.feed(chunk):
                    yield block

    async def _document(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._request(method, path, **options) as response:
            body = await response.read()
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Unreachable(self._url, "what answers there is no sse-gateway")
        return document

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; every foreign error becomes one of ours here."""
        assert self._session is not None, "use the client as a context manager"
        try:
            async with self._session.request(
                method, self._url + path, allow_redirects=False, **options
            ) as response:
                if response.status >= 300:
                    raise Refused(read_problem(response, await response.read()))
                yield response
        except aiohttp.InvalidURL:
            raise Unreachable(self._url, "this is no valid URL") from None
        except aiohttp.ClientConnectorError as error:
            # aiohttp puts its own words where the system's would be.
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else str(error.os_error.strerror)
            raise Unreachable(self._url, f"{reason} (does the gateway run there?)") from None
        except TimeoutError:
            raise Unreachable(self._url, "it did not answer in time") from None
        except aiohttp.ClientError as error:
            reason = str(error) or "the connection was closed"
            raise Unreachable(self._url, reason) from None


def reconnect_delay_ms(retry_ms: int, failures: int, chance: float) -> float:
    """Return how long to wait before a stream is asked for again.

    `retry_ms` is what the gateway asks for, `failures` the vain attempts since it last answered,
    `chance` a number from 0 up to 1. Never sooner than asked, up to RETRY_LIMIT_MS, then spread.
    Source: WHATWG HTML 9.2.3, "optionally, wait some more".
    """
    delay_ms: int = min(retry_ms * 2 ** min(failures, 5), RETRY_LIMIT_MS)
    return delay_ms * (1 + RETRY_SPREAD * chance)


def read_problem(response: aiohttp.ClientResponse, body: bytes) -> Problem:
    """Return what a refusal says, also when it is no problem document (a proxy's, say)."""
    title = response.reason or "refused"
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return Problem(response.status, title)
    errors = document.get("errors")
    return Problem(
        status=response.status,
        title=str(document.get("title") or title),
        detail=str(document.get("detail") or ""),
        field=document.get("field"),
        value=document.get("value"),
        rule=document.get("rule"),
        errors=tuple(errors) if isinstance(errors, list) else (),
    )

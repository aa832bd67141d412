"""Requests as a browser sends them, answers as they came: nothing decoded, nothing judged."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from gateway.protocol.errors import GatewayError

EVENT_STREAM = "text/event-stream"
_BROWSER = {
    "User-Agent": "Mozilla/5.0 (sse-gateway doctor)",
    "Accept": "*/*",
    "Origin": "https://doctor.invalid",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Dest": "empty",
}


class NotReached(GatewayError):
    """Nothing at the URL answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `at` is the Unix time of its head. A stream's `body` is what came in time."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def coding(self) -> str:
        """Its content coding."""
        return self.headers.get("Content-Encoding", "identity")

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object that it is; empty when it is none."""
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def cache(self) -> str:
        """What the cache says it did, in whatever header it says so; in capitals."""
        names = ("X-Cache", "CF-Cache-Status", "X-Cache-Status")
        return next((self.headers[n].upper() for n in names if n in self.headers), "")

    @property
    def kept(self) -> bool:
        """Whether it came out of a cache."""
        return "HIT" in self.cache or self.age > 0

    @property
    def date(self) -> float | None:
        """The Unix time of its `Date`, its age added; None without a readable one."""
        try:
            return parsedate_to_datetime(self.headers["Date"]).timestamp() + self.age
        except (KeyError, ValueError):
            return None

    @property
    def age(self) -> int:
        """Seconds since a cache took it in, as it says; 0 when it says nothing of use."""
        text = self.headers.get("Age", "")
        return int(text) if text.isascii() and text.isdigit() else 0


class Open:
    """A stream that is being read; `closed` when the other side ended it.

    What `when` returns is a time of the monotonic clock; the others count from the beginning.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = b""
        self.closed = False
        self.closed_after = 0.0
        self._began = time.monotonic()
        self._response = response
        # For each piece: when it came, and how much had come with it.
        self._pieces: list[tuple[float, int]] = []

    @property
    def coded(self) -> bool:
        """Whether it is compressed."""
        return "Content-Encoding" in self.headers

    async def read(self, seconds: float, until: Callable[[bytes], bool] | None = None) -> bytes:
        """Return all that has come after some seconds, or at the end, or when `until` holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                while not self.closed and not (until and until(self.body)):
                    await self._read_piece()
        return self.body

    async def _read_piece(self) -> None:
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, OSError):
            piece = b""
        if piece:
            self.body += piece
            self._pieces.append((time.monotonic(), len(self.body)))
        else:
            self.closed, self.closed_after = True, time.monotonic() - self._began

    def when(self, mark: bytes) -> float | None:
        """Return when `mark` had come; None while it has not."""
        at = self.body.find(mark)
        if at < 0:
            return None
        return next(moment for moment, size in self._pieces if size >= at + len(mark))

    def arrivals(self) -> list[float]:
        """Return how many seconds had passed since the beginning at each piece."""
        return [moment - self._began for moment, _ in self._pieces]


class Probe:
    """Asks one public URL; an asynchronous context manager."""

    def __init__(self, url: str, *, timeout_seconds: float, insecure: bool = False) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._insecure = insecure
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=not self._insecure)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_BROWSER,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding",),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_seconds),
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

    async def get(self, path: str, *, wait: float = 0.0, **headers: str) -> Answer:
        """Return the answer to a GET; `accept_encoding="br"` is a header. Raises NotReached.

        It may take `wait` seconds more than others.
        """
        assert self._session is not None
        try:
            async with (
                asyncio.timeout(self._timeout_seconds + wait),
                self._session.get(self.url + path, headers=_named(headers)) as response,
            ):
                at = time.time()
                return Answer(response.status, response.headers, await response.read(), at)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise NotReached(f"{self.url}{path}: {reason}") from error

    @asynccontextmanager
    async def stream(self, path: str, seconds: float, **headers: str) -> AsyncIterator[Open | None]:
        """Open a stream as an EventSource does; None when its head does not come in time."""
        assert self._session is not None
        asked = {"Accept": EVENT_STREAM, "Cache-Control": "no-cache", **_named(headers)}
        try:
            async with asyncio.timeout(seconds):
                response = await self._session.get(self.url + path, headers=asked)
        except TimeoutError:
            yield None
            return
        except (aiohttp.ClientError, OSError) as error:
            raise NotReached(f"{self.url}{path}: {error}") from error
        try:
            yield Open(response)
        finally:
            response.close()

    async def offers_http_2(self) -> bool:
        """Tell whether the server picks HTTP/2 when it is offered, as browsers do."""
        parts = urlsplit(self.url)
        context = ssl.create_default_context()
        if self._insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            async with asyncio.timeout(self._timeout_seconds):
                _, writer = await asyncio.open_connection(
                    parts.hostname, parts.port or 443, ssl=context
                )
        except (OSError, TimeoutError) as error:
            raise NotReached(f"{self.url}: {error}") from error
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        return bool(chosen == "h2")


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}

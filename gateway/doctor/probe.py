"""Requests as a browser sends them, answers as they came: nothing decoded, nothing judged."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp

from gateway.protocol.errors import GatewayError

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
    def cache(self) -> str:
        """What the cache says it did, in whatever header it says so; in capitals."""
        names = ("X-Cache", "CF-Cache-Status", "X-Cache-Status")
        return next((self.headers[n].upper() for n in names if n in self.headers), "")

    @property
    def kept(self) -> bool:
        """Whether it came out of a cache."""
        return "HIT" in self.cache or self.age > 0

    @property
    def age(self) -> int:
        """Seconds since a cache took it in, as it says; 0 when it says nothing of use."""
        text = self.headers.get("Age", "")
        return int(text) if text.isascii() and text.isdigit() else 0


class Open:
    """A stream that is being read; `closed` when the other side ended it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = b""
        self.closed = False
        self.began = time.monotonic()
        self._response = response

    async def read(self, seconds: float, until: bytes = b"") -> bytes:
        """Return what has come after some seconds, or when the end or `until` is there."""
        try:
            async with asyncio.timeout(seconds):
                while not self.closed and not (until and until in self.body):
                    chunk = await self._response.content.readany()
                    self.closed = not chunk
                    self.body += chunk
        except TimeoutError:
            pass
        except aiohttp.ClientError:
            self.closed = True
        return self.body


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

    async def get(self, path: str, **headers: str) -> Answer:
        """Return the answer to a GET; `accept_encoding="br"` is a header. Raises NotReached."""
        assert self._session is not None
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
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
        asked = {"Accept": "text/event-stream", "Cache-Control": "no-cache", **_named(headers)}
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

"""Requests to caches, with every failure made a PurgeFailed."""

from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from gateway.protocol.errors import hide_password
from gateway.purge.target import PurgeFailed

_EXCERPT = 200


class Answer(NamedTuple):
    """What a cache answered; the names of `headers` in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Requests:
    """Sends requests over connections that are kept; `aclose` closes them."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        data: bytes | None = None,
        *,
        fine: tuple[int, ...] = (),
    ) -> Answer:
        """Return the answer; statuses from 300 on that are not `fine` raise PurgeFailed."""
        if self._session is None:  # Not sooner: a session belongs to a running loop.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_seconds), auto_decompress=False
            )
        try:
            async with self._session.request(
                method, url, headers=headers, data=data, allow_redirects=False
            ) as response:
                body = await response.read()
                if response.status < 300 or response.status in fine:
                    return Answer(response.status, response.headers, body)
                said = body[:_EXCERPT].decode(errors="replace")
                wait = response.headers.get("Retry-After", "")
                raise PurgeFailed(
                    f"{method} {hide_password(url)}: {response.status} {said}",
                    float(wait) if wait.isascii() and wait.isdigit() else 0.0,
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise PurgeFailed(f"{method} {hide_password(url)}: {reason}") from error

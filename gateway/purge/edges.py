"""NGINX and Varnish of one's own: their snapshots are fetched anew through them."""

import asyncio
from collections.abc import Sequence

from gateway.protocol.cache_control import channel_key
from gateway.protocol.coding import CODINGS
from gateway.purge.request import Requests
from gateway.purge.target import Purge

_AT_ONCE = 16  # Requests under way; an edge passes each on to a gateway.


class NginxTarget:
    """NGINX (nginx/nginx.conf): one request a coding on its internal address replaces what it kept.

    The request names the position that must be in the answer, so that a worker which is behind
    waits, and cannot put the old state back.
    """

    batch_limit = 100

    def __init__(self, requests: Requests, urls: Sequence[str], base_path: str) -> None:
        self._requests = requests
        self._prefixes = [f"{url}{base_path}/snapshots/" for url in urls]
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Fetch each channel's snapshot anew in every coding; raises PurgeFailed."""
        outcomes = await asyncio.gather(
            *[
                self._refresh(prefix, one, coding)
                for prefix in self._prefixes
                for one in purges
                for coding in CODINGS
            ],
            return_exceptions=True,
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _refresh(self, prefix: str, purge: Purge, coding: str) -> None:
        headers = {
            "X-Refresh": "1",
            "Minimum-Position": str(purge.position),
            "Accept-Encoding": coding,
        }
        async with self._turns:
            # A channel that ended is gone, which is the new state.
            await self._requests.send("GET", prefix + purge.channel, headers, fine=(404,))


class VarnishTarget:
    """Varnish (nginx/varnish.vcl): as NGINX; purged softly by key when a channel ended.

    Not by key after each event: fetched anew, the new state is there before somebody asks.
    """

    batch_limit = 100

    def __init__(self, requests: Requests, urls: Sequence[str], base_path: str) -> None:
        self._requests = requests
        self._urls = urls
        self._base_path = base_path
        self._refresh = NginxTarget(requests, urls, base_path)

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Fetch snapshots anew, and purge all that is kept of what ended; raises PurgeFailed."""
        await self._refresh.purge(namespace, purges)
        keys = " ".join(channel_key(one.channel) for one in purges if one.ended)
        if keys:
            # Fetched first: whoever fetches after the purge does so with the new ETag, for which a
            # worker that is behind waits.
            headers = {"xkey-softpurge": keys}
            for url in self._urls:
                await self._requests.send("PURGE", f"{url}{self._base_path}/", headers)

"""NGINX and Varnish of one's own: their snapshots are fetched anew through them."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from gateway.protocol.cache_control import channel_key
from gateway.protocol.coding import CODINGS
from gateway.protocol.errors import hide_password
from gateway.protocol.etag import SnapshotTag
from gateway.protocol.position import Position
from gateway.purge.request import Answer, Requests
from gateway.purge.target import Purge, PurgeFailed

_AT_ONCE = 16  # Requests under way; an edge passes each on to a gateway.
_HEADER_LIMIT_BYTES = 4096  # Half of what Varnish takes (http_req_hdr_len); beyond, it answers 400.


class NginxTarget:
    """One NGINX (nginx/nginx.conf): on its internal address a request replaces what it kept.

    One request for each coding. It names the position that must be in the answer, so that a worker
    which is behind waits, and cannot put the old state back.
    """

    batch_limit = 100

    def __init__(self, requests: Requests, url: str, base_path: str) -> None:
        self._requests = requests
        self._prefix = f"{url}{base_path}/snapshots/"

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Fetch each channel's snapshot anew in every coding, up to the first failure.

        Raises PurgeFailed.
        """
        turns = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as refreshes:
                for one, coding in product(purges, CODINGS):
                    url = self._prefix + one.channel
                    refreshes.create_task(self._refresh(turns, url, one.position, coding))
        except ExceptionGroup as failures:
            # The rest was given up: an edge that is down is not asked for each of them.
            raise failures.exceptions[0] from None

    async def _refresh(
        self, turns: asyncio.Semaphore, url: str, position: Position, coding: str
    ) -> None:
        headers = {
            "X-Refresh": "1",
            "Minimum-Position": str(position),
            "Accept-Encoding": coding,
        }
        async with turns:
            # A channel that ended is gone, which is the new state.
            answer = await self._requests.send("GET", url, headers, fine=(404,))
        if not _is_new(answer, position):
            raise PurgeFailed(
                f"GET {hide_password(url)}: not answered with the state at {position}:"
                " is this the internal address, and is the gateway behind it?"
            )


def _is_new(answer: Answer, position: Position) -> bool:
    """Tell whether an answer is the gateway's, and not an older one from the cache."""
    if answer.status == 404:
        return answer.headers.get("Content-Type", "").startswith("application/problem+json")
    tag = SnapshotTag.parse(answer.headers.get("ETag", "").removeprefix("W/").strip('"'))
    return tag is not None and tag.position >= position


class VarnishTarget:
    """One Varnish (nginx/varnish.vcl): as NGINX; purged softly by key when a channel ended.

    Not by key after each event: fetched anew, the new state is there before somebody asks.
    """

    batch_limit = 100

    def __init__(self, requests: Requests, url: str, base_path: str) -> None:
        self._requests = requests
        self._root = f"{url}{base_path}/"
        self._refresh = NginxTarget(requests, url, base_path)

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Fetch snapshots anew, and purge all that is kept of what ended; raises PurgeFailed."""
        await self._refresh.purge(namespace, purges)
        # Fetched first: whoever fetches after the purge does so with the new ETag, for which a
        # worker that is behind waits.
        for keys in _in_headers(channel_key(one.channel) for one in purges if one.ended):
            await self._requests.send("PURGE", self._root, {"xkey-softpurge": keys})


def _in_headers(keys: Iterable[str]) -> Iterator[str]:
    """Yield all keys, joined to values of one header each."""
    value = ""
    for key in keys:
        if value and len(value) + 1 + len(key) > _HEADER_LIMIT_BYTES:
            yield value
            value = ""
        value = f"{value} {key}" if value else key
    if value:
        yield value

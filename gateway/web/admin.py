"""`GET /channels`: what there is, page by page."""

import heapq
import time
from collections.abc import Iterator, Mapping
from itertools import islice

import orjson
from aiohttp import web

from gateway.hub.hub import Hub
from gateway.hub.mirror import Mirror
from gateway.hub.tail import Tail
from gateway.protocol.cache_control import NO_STORE
from gateway.protocol.errors import StoreUnavailable
from gateway.store.redis import RedisStore
from gateway.web.request import Names, read_query, read_whole

_PAGE, _PAGE_LIMIT = 100, 1000


class ChannelsHandler:
    """The handler of `/channels`."""

    def __init__(
        self, store: RedisStore, hub: Hub, tails: Mapping[str, Tail], names: Names
    ) -> None:
        self._store = store
        self._hub = hub
        self._tails = tails
        self._names = names

    async def get(self, request: web.Request) -> web.StreamResponse:
        """List channels in the order of their names, from the one after `after`."""
        query = read_query(request, "prefix", "limit", "after")
        limit = read_whole(query, "limit", _PAGE, _PAGE_LIMIT)
        matching = self._matching(query.get("prefix", ""), query.get("after", ""))
        found = list(islice(matching, limit + 1))
        page = found[:limit]
        document = {
            "channels": await self._describe(page),
            "next": page[-1][0] if len(found) > limit else None,
        }
        return web.Response(
            body=orjson.dumps(document),
            content_type="application/json",
            headers={"Cache-Control": NO_STORE},
        )

    def _matching(self, prefix: str, after: str) -> Iterator[tuple[str, str]]:
        """Return each channel that exists and its namespace, in the order of their names."""
        parts = []
        for name, tail in self._tails.items():
            if self._names.namespaces[name].protected:
                continue
            if tail.mirror.life is None:
                raise StoreUnavailable("the store has not answered yet")
            parts.append(_existing(tail.mirror, prefix, after))
        return heapq.merge(*parts)

    async def _describe(self, page: list[tuple[str, str]]) -> list[dict[str, object]]:
        lengths: dict[str, int] = {}
        for namespace in {name for _, name in page}:
            channels = [channel for channel, name in page if name == namespace]
            counts = await self._store.ring_lengths(namespace, channels)
            lengths.update(zip(channels, counts, strict=True))
        now = time.time()
        described: list[dict[str, object]] = []
        for channel, namespace in page:
            entry = self._tails[namespace].mirror.index.get(channel)
            if entry is None:
                continue  # It went while the store was asked.
            described.append(
                {
                    "channel": channel,
                    "namespace": namespace,
                    "reducer": self._names.namespaces[namespace].reducer,
                    "id": str(entry.last),
                    "events": lengths[channel],
                    "age_seconds": round(max(0.0, now - entry.last.ms / 1000), 3),
                    "subscribers": self._hub.followers(channel),
                }
            )
        return described


def _existing(mirror: Mirror, prefix: str, after: str) -> Iterator[tuple[str, str]]:
    for channel in mirror.names_from(prefix, after):
        if mirror.exists(channel):
            yield channel, mirror.namespace.name

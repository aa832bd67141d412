"""Reads rings from the store into mirrors, each once however many ask; serves nobody."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from gateway.hub.mirror import Mirror
from gateway.hub.tail import Tail
from gateway.store.redis import RedisStore

_CHANNELS = 32  # To one read: rings are some mebibytes at worst, and Redis does nothing else then.


class RingReader:
    """Fills mirrors with what the store's rings still hold from before this worker looked."""

    def __init__(self, store: RedisStore) -> None:
        self.reads = 0
        self._store = store
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, tail: Tail, channels: Sequence[str]) -> None:
        """Return when each channel's ring is in the mirror, complete.

        Raises StoreUnavailable.
        """
        mirror = tail.mirror
        # Whoever waited for a turn finds most of its rings read.
        async with self._turns[mirror.namespace.name]:
            while missing := [name for name in channels if not _complete(mirror, name)]:
                if not await self._read_some(mirror, missing[:_CHANNELS]):
                    await tail.changed()

    async def _read_some(self, mirror: Mirror, channels: Sequence[str]) -> bool:
        """Read a few rings; return False when one of them must wait for the tail."""
        restarts, tailed = mirror.restarts, mirror.tailed
        life, contents, _ = await self._store.read(mirror.namespace.name, channels, "ring")
        self.reads += len(channels)
        if mirror.restarts != restarts:
            return True  # The mirror began anew meanwhile: read again.
        assert mirror.life is not None
        if not life.same_history(mirror.life):
            return False
        added = [
            mirror.add_ring(name, content, tailed)
            for name, content in zip(channels, contents, strict=True)
        ]
        return all(added)


def _complete(mirror: Mirror, channel: str) -> bool:
    ring = mirror.ring(channel)
    return channel not in mirror.index or (ring is not None and ring.complete)

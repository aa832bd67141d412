"""Reads rings from the store into mirrors, each once however many ask; serves nobody."""

import asyncio
from collections import defaultdict, deque
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
        """Return when each channel's ring is in the mirror, complete, or the mirror is full.

        At least one of them is there then. Raises StoreUnavailable.
        """
        mirror = tail.mirror
        kept = {name for name in channels if _complete(mirror, name)}
        pending = deque(name for name in channels if name not in kept)
        while pending and not (kept and mirror.full):
            async with self._turns[mirror.namespace.name]:
                # Whoever waited for a turn finds most of its rings read.
                missing: list[str] = []
                while pending and len(missing) < _CHANNELS:
                    name = pending.popleft()
                    if not _complete(mirror, name):
                        missing.append(name)
                if missing:
                    await self._read_some(tail, missing, kept)
            kept.update(name for name in missing if _complete(mirror, name))
            pending.extend(name for name in missing if name not in kept)

    async def _read_some(self, tail: Tail, channels: Sequence[str], kept: set[str]) -> None:
        """Read a few rings; waits for the tail when it must come further before they fit in."""
        mirror = tail.mirror
        restarts, tailed = mirror.restarts, mirror.tailed
        life, contents, _ = await self._store.read(mirror.namespace.name, channels, "ring")
        self.reads += len(channels)
        if mirror.restarts != restarts:
            return  # The mirror began anew meanwhile: read again.
        assert mirror.life is not None
        behind = not life.same_history(mirror.life)
        if not behind:
            for name, content in zip(channels, contents, strict=True):
                if kept and mirror.full:
                    return
                if mirror.add_ring(name, content, tailed, kept):
                    kept.add(name)
                else:
                    behind = True
        # What was tailed during the read is here already, and the next read will meet it.
        if behind and mirror.tailed == tailed:
            await tail.changed()


def _complete(mirror: Mirror, channel: str) -> bool:
    ring = mirror.ring(channel)
    return channel not in mirror.index or (ring is not None and ring.complete)

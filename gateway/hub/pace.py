"""The pace of batches: no faster than this worker's tail takes them; stores nothing itself."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.hub.tail import Tail
from gateway.protocol.position import Position

_AHEAD = 1.0  # What batches may have stored that the tail has not taken, in largest batches.
# What may be stored at once: two batches, or more if they are small. The store serves the tail
# 64 KiB between two rounds of publishes, so whatever is stored at once delays the tail.
_BATCHES = 2
_SMALL = 0.2


class Pace:
    """Keeps the batches that one worker stores close to its own tail.

    The bus holds four batches of the largest size; a tail that falls further behind loses its
    place and begins anew. A batch's weight is its share of the largest one.
    """

    def __init__(self, tail: Tail, *, wait_seconds: float = 1.0) -> None:
        self._tail = tail
        self._wait_seconds = wait_seconds
        self._entrance = asyncio.Lock()
        self._left = asyncio.Event()
        self._batches = 0
        self._weight = 0.0
        self._stored: deque[tuple[Position, float]] = deque()
        self._ahead = 0.0

    @asynccontextmanager
    async def turn(self, weight: float) -> AsyncIterator[None]:
        """Wait, first come first served, until a batch may be stored; it is while in the block."""
        async with self._entrance:
            while self._batches >= _BATCHES and self._weight + weight > _SMALL:
                self._left.clear()
                await self._left.wait()
            self._batches += 1
            self._weight += weight
        try:
            yield
        finally:
            self._batches -= 1
            self._weight -= weight
            self._left.set()

    async def keep(self, last: Position, weight: float) -> None:
        """Wait until the tail has come near the end of a batch that was stored.

        Not for long: it is stored, and a tail that stands still is no reason to doubt it.
        """
        self._stored.append((last, weight))
        self._ahead += weight
        due = None
        while self._ahead > _AHEAD:
            due, gone = self._stored.popleft()
            self._ahead -= gone
        if due is None or not self._tail.connected:
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._tail.reached(due)
        except TimeoutError:
            pass

"""Seals one namespace's slices as their time comes; knows no reader and no bytes."""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress

from gateway.hub.tail import Tail
from gateway.protocol.errors import GatewayError
from gateway.protocol.life import Life
from gateway.protocol.position import ORIGIN, Position
from gateway.store.redis import RedisStore

_log = logging.getLogger(__name__)
_MEASURED_FOR_SECONDS = 60.0  # Quartz drifts by less than 10 ms in it.
_BACKOFF_SECONDS = (0.05, 2.0)
_RESTART_SECONDS = 1.0  # The tail may have begun anew before we looked: look again.


class Sealer:
    """Knows which positions can get no more events, and asks the store for more when needed.

    That time passed proves nothing: an event may still be under way to an earlier position. A
    boundary is *sealed* when the store has raised its clock there and this worker has tailed all
    that was before. `on_sealed` is called then, on the loop.
    """

    def __init__(
        self, store: RedisStore, tail: Tail, on_sealed: Callable[[Position], None]
    ) -> None:
        self.sealed = ORIGIN
        self._store = store
        self._tail = tail
        self._name = tail.mirror.namespace.name
        self._on_sealed = on_sealed
        self._wanted: set[Position] = set()
        self._woken = asyncio.Event()
        self._moved = asyncio.Event()
        self._ahead_ms = 0.0
        self._measured_at: float | None = None
        self._measuring: asyncio.Task[Life] | None = None

    # -- time ---------------------------------------------------------------------------------

    async def now_ms(self, at_least: Position = ORIGIN) -> int:
        """Return the namespace's time: the store's, or its clock where that runs ahead.

        The store is asked when it has not been for a minute, or when this worker would say
        that `at_least` lies in the future. Raises StoreUnavailable.
        """
        loop = asyncio.get_running_loop()
        old = self._measured_at is None or loop.time() - self._measured_at > _MEASURED_FOR_SECONDS
        if old or 0 < at_least.ms - self._estimate_ms() < _MEASURED_FOR_SECONDS * 1000:
            await self._measure()
        return self._estimate_ms()

    def left_seconds(self, position: Position) -> float:
        """Return how long it takes, about, until the namespace's time is at a position."""
        return (position.ms - self._estimate_ms()) / 1000

    def _estimate_ms(self) -> int:
        ahead = self._tail.mirror.clock.ms
        return max(int(asyncio.get_running_loop().time() * 1000 + self._ahead_ms), ahead)

    async def _measure(self) -> None:
        """Take the store's time, once for all who want it at the same moment."""
        if self._measuring is None or self._measuring.done():
            # None of them may cancel it.
            self._measuring = asyncio.create_task(self._ask(ORIGIN))
            self._measuring.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._measuring)

    async def _ask(self, boundary: Position) -> Life:
        """Have the store seal a boundary if its time has come, and take its time."""
        life, now_ms = await self._store.seal(self._name, boundary)
        loop = asyncio.get_running_loop()
        self._measured_at = loop.time()
        self._ahead_ms = now_ms - self._measured_at * 1000
        if self._is_ours(life):
            self._tail.mirror.clock = max(self._tail.mirror.clock, life.clock)
        return life

    def _is_ours(self, life: Life) -> bool:
        known = self._tail.mirror.life
        return known is not None and life.same_history(known)

    # -- sealing ------------------------------------------------------------------------------

    def want(self, boundary: Position) -> None:
        """Have a boundary sealed when its time has come."""
        if boundary > self.sealed and boundary not in self._wanted:
            self._wanted.add(boundary)
            self._woken.set()

    async def reach(self, boundary: Position) -> None:
        """Return when a boundary is sealed, however long that takes."""
        self.want(boundary)
        while self.sealed < boundary:
            await self._moved.wait()

    async def run(self) -> None:
        """Seal what is wanted until cancelled; outages of the store are waited out."""
        pause, longest = _BACKOFF_SECONDS
        while True:
            try:
                await self._step()
                pause = _BACKOFF_SECONDS[0]
            except (GatewayError, TimeoutError) as error:
                _log.info("namespace %s: not sealed yet: %r", self._name, error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, longest)

    async def _step(self) -> None:
        self._woken.clear()
        if not self._wanted:
            await self._woken.wait()
            return
        await self.now_ms()
        due = [boundary for boundary in self._wanted if self.left_seconds(boundary) <= 0]
        if not due:
            # An earlier one may be wanted meanwhile.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.left_seconds(min(self._wanted))):
                    await self._woken.wait()
            return
        # What is before a sealed boundary is sealed, too: one call for all that are due.
        boundary = max(due)
        life = await self._ask(boundary)
        if life.clock < boundary:
            return  # The store's clock is behind our guess, which is now better.
        while self._is_ours(life) and self._tail.mirror.tailed < life.last:
            await self._tail.changed()
        if not self._is_ours(life):
            # Another history begins: what was tailed says nothing of it.
            async with asyncio.timeout(_RESTART_SECONDS):
                await self._tail.changed()
            return
        self._wanted = {wanted for wanted in self._wanted if wanted > boundary}
        if boundary > self.sealed:
            self.sealed = boundary
            self._on_sealed(boundary)
        self._moved.set()
        self._moved = asyncio.Event()

"""The tail: follows a namespace's bus, keeps its mirror current and tells who listens."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

from gateway.hub.mirror import Mirror
from gateway.protocol.errors import GatewayError
from gateway.protocol.event import Event
from gateway.protocol.life import Life
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.store.redis import RedisStore
from gateway.store.scripts import BusEntry, history_of

_log = logging.getLogger(__name__)
_COUNT = 1000  # Entries to a read: 600,000 to 1,000,000 events/s at 100 to 1,000, 11,500 at 1.
_BACKOFF_SECONDS = (0.05, 2.0)


class Listener(Protocol):
    """Whoever wants a namespace's events as they are tailed; called on the loop, never awaits."""

    def take(self, mirror: Mirror, entries: Sequence[Entry]) -> None:
        """The mirror has just taken in these entries."""

    def restart(self, mirror: Mirror, before: Position) -> None:
        """The mirror has just begun anew; it had tailed up to `before`."""

    def room(self, mirror: Mirror) -> asyncio.Future[None] | None:
        """Return what is done once the listener can take more; None when it can now."""


class Tail:
    """One reader of one namespace's bus.

    Nobody may assume that the bus is whole: each entry names the one before it and the history
    it belongs to, and whatever does not fit makes the mirror begin anew.
    """

    def __init__(
        self, store: RedisStore, mirror: Mirror, listeners: Sequence[Listener], block_ms: int
    ) -> None:
        self.mirror = mirror
        self.connected = False
        self.events = 0
        self._store = store
        self._name = mirror.namespace.name
        self._listeners = listeners
        self._block_ms = block_ms
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Follow the bus until cancelled; outages are waited out."""
        pause, longest = _BACKOFF_SECONDS
        while True:
            try:
                await self._meet()
                pause = _BACKOFF_SECONDS[0]
                while True:
                    await self._step()
            except GatewayError as error:
                if self.connected:
                    _log.warning("namespace %s: lost the store: %s", self._name, error)
                self.connected = False
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, longest)

    async def _meet(self) -> None:
        """Ask the store who it is now, and begin anew when it is not who it was."""
        life = await self._store.greet(self._name)
        known = self.mirror.life
        if known is None or not life.same_history(known):
            await self._begin()
        else:
            self.mirror.clock = max(self.mirror.clock, life.clock)
        if not self.connected:
            _log.info("namespace %s: following the store", self._name)
        self.connected = True

    async def _begin(self) -> None:
        while True:
            # The life first: what the index knows then reaches at least to its last position.
            life = await self._store.greet(self._name)
            index = {name: entry async for name, entry in self._store.scan_index(self._name)}
            # Names that were dropped meanwhile are missed only by who knows the floor they raised.
            if life.same_history(await self._store.greet(self._name)):
                break
        before = self.mirror.head
        self.mirror.restart(life, index)
        self._store.observe(self._name, life.clock)
        for listener in self._listeners:
            listener.restart(self.mirror, before)
        self._announce()

    async def _step(self) -> None:
        for listener in self._listeners:
            room = listener.room(self.mirror)
            if room is not None:
                await asyncio.wait([room])
        entries = await self._store.read_bus(self._name, self.mirror.tailed, _COUNT, self._block_ms)
        if not entries:
            await self._meet()  # A flushed store is silent: only its meta tells.
            return
        events = self._whole_part(entries)
        if events:
            taken = self.mirror.take(events)
            self.events += len(events)
            self._store.observe(self._name, self.mirror.tailed)
            for listener in self._listeners:
                listener.take(self.mirror, taken)
            self._announce()
        if len(events) < len(entries):
            _log.warning("namespace %s: the bus has a break; reading anew", self._name)
            await self._begin()

    def _whole_part(self, entries: Sequence[BusEntry]) -> list[Event]:
        """Return the events up to the first that does not follow what was tailed."""
        assert self.mirror.life is not None
        history, last = history_of(self.mirror.life), self.mirror.tailed
        events = []
        for entry in entries:
            if entry.history != history or entry.prev != last:
                break
            events.append(entry.event)
            last = entry.event.id
        return events

    def _announce(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def changed(self) -> None:
        """Wait until the tail has taken in something more."""
        await self._moved.wait()

    async def reached(self, position: Position) -> None:
        """Wait until an event that the store has given `position` was tailed."""
        while self.mirror.tailed < position:
            await self.changed()

    async def reach(self, position: Position, timeout_seconds: float) -> bool:
        """Wait until everything up to `position` has been tailed.

        Returns False when the store never gave such a position out. Raises TimeoutError when
        the tail does not come that far in time, StoreUnavailable when the store cannot be asked.
        """
        if position <= self.mirror.head:
            return True
        async with asyncio.timeout(timeout_seconds):
            life = await self._settled()
            if position > life.clock:
                return False
            self.mirror.clock = max(self.mirror.clock, life.clock)
            # The clock may be ahead of the last event; nothing stands between them.
            while self.mirror.tailed < min(position, life.last):
                await self.changed()
        return True

    async def _settled(self) -> Life:
        """Return the store's life once the mirror is of the same history."""
        while True:
            life = await self._store.greet(self._name)
            if self.mirror.life is not None and life.same_history(self.mirror.life):
                return life
            await self.changed()

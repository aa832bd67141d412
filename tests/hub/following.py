"""What the hub's tests share: a mirror that a tail keeps current, and who listens to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.hub.mirror import Mirror, NeedsRings, Verdict
from gateway.hub.rings import RingReader
from gateway.hub.tail import Tail
from gateway.protocol.event import Event
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection, parse_selection
from gateway.store.redis import RedisStore
from tests.running import until


@dataclass
class Heard:
    """A listener that writes down what it is told."""

    events: list[Event] = field(default_factory=list)
    restarts: list[Position] = field(default_factory=list)

    def take(self, mirror: Mirror, entries: Sequence[Entry]) -> None:
        self.events += [entry.event for entry in entries]

    def restart(self, mirror: Mirror, before: Position) -> None:
        self.restarts.append(before)

    def room(self, mirror: Mirror) -> asyncio.Future[None] | None:
        return None

    @property
    def ids(self) -> list[Position]:
        return [event.id for event in self.events]


class Follower:
    """One worker's tail of one namespace; it runs between `start` and `stop`."""

    def __init__(
        self, store: RedisStore, namespace: Namespace, limit_bytes: int, block_ms: int
    ) -> None:
        self.store = store
        self.heard = Heard()
        self.mirror = Mirror(namespace, limit_bytes)
        self.tail = Tail(store, self.mirror, [self.heard], block_ms)
        self.rings = RingReader(store)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        restarts = self.mirror.restarts
        fresh = self.mirror.life is None
        self._running = asyncio.create_task(self.tail.run())
        await until(lambda: self.mirror.restarts > restarts or not fresh)
        await until(lambda: self.tail.connected)

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._running = None
        self.tail.connected = False

    async def tailed(self, position: Position) -> None:
        await until(lambda: self.mirror.tailed >= position)

    def judge(self, *selectors: str, position: Position) -> Verdict:
        return self.mirror.judge(select(*selectors), position)

    async def replay(
        self, *selectors: str, position: Position, piece_bytes: int = 1000
    ) -> list[Event]:
        """Return all that a stream would get after `position`, in bounded pieces."""
        selection = select(*selectors)
        got: list[Event] = []
        while True:
            verdict = self.mirror.judge(selection, position)
            while isinstance(verdict, NeedsRings):
                await self.rings.read(self.tail, verdict.channels)
                verdict = self.mirror.judge(selection, position)
            piece = self.mirror.entries_after(selection, position, piece_bytes)
            if not piece:
                return got
            got += [entry.event for entry in piece]
            position = piece[-1].id


def select(*selectors: str) -> Selection:
    return parse_selection(selectors, ())


@asynccontextmanager
async def following(
    store: RedisStore,
    namespace: str = "default",
    *,
    limit_bytes: int = 1 << 28,
    block_ms: int = 200,
) -> AsyncIterator[Follower]:
    """Follow a namespace for as long as the block."""
    follower = Follower(store, store.namespaces[namespace], limit_bytes, block_ms)
    await follower.start()
    try:
        yield follower
    finally:
        await follower.stop()

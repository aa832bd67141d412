"""Snapshots of the channels that are asked for, kept current by the tail."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.protocol.errors import StoreUnavailable, UnknownChannel
from gateway.protocol.event import Event
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.protocol.state import State, load_state
from gateway.snapshot.variants import Snapshot
from gateway.store.redis import RedisStore
from gateway.store.scripts import IndexEntry

_DOUBTS = 5  # Each means that the channel ended or began while it was read.
_BEHIND_SECONDS = 2.0  # How long a read may wait for the tail to notice another history.


class Mirrored(Protocol):
    """A namespace as this worker has tailed it."""

    @property
    def namespace(self) -> Namespace: ...
    @property
    def life(self) -> Life | None: ...
    @property
    def index(self) -> Mapping[str, IndexEntry]: ...
    @property
    def tailed(self) -> Position: ...
    @property
    def restarts(self) -> int: ...
    def exists(self, channel: str) -> bool: ...


class Following(Protocol):
    """What keeps a namespace's mirror current."""

    @property
    def mirror(self) -> Mirrored: ...
    async def changed(self) -> None: ...


@dataclass(slots=True)
class SnapshotCounters:
    """What the cache did since it began. A hit is a snapshot that was rendered before."""

    hits: int = 0
    renders: int = 0
    variants: int = 0
    not_modified: int = 0
    loads: int = 0


@dataclass(slots=True, eq=False)
class _Kept:
    """A channel's folded state, the last event in it, and its newest rendering."""

    namespace: str
    state: State
    position: Position
    snapshot: Snapshot | None = None
    counted_bytes: int = 0

    def fold(self, event: Event) -> None:
        # The state was read while the tail went on: what is in it already must not fold twice.
        if event.id > self.position:
            self.state.fold(event)
            self.position = event.id

    @property
    def size_bytes(self) -> int:
        return self.state.size_bytes + (self.snapshot.size_bytes if self.snapshot else 0)


@dataclass(slots=True, eq=False)
class _Load:
    """One read of a state from the store, and the events tailed while it is under way."""

    task: "asyncio.Task[_Kept] | None" = None
    events: list[Event] = field(default_factory=list)


class Snapshots:
    """States by channel, the least recently used dropped beyond `limit_bytes`.

    A channel's first snapshot reads its state from the store; from then on the tail folds.
    """

    def __init__(self, store: RedisStore, *, min_interval_ms: int, limit_bytes: int) -> None:
        self.counters = SnapshotCounters()
        self._store = store
        self._min_interval_seconds = min_interval_ms / 1000
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._loads: dict[str, _Load] = {}
        self._size_bytes = 0

    # -- what the tail brings -----------------------------------------------------------------

    def take(self, mirror: Mirrored, entries: Sequence[Entry]) -> None:
        """Fold the namespace's new events into the states that are kept."""
        for entry in entries:
            channel = entry.event.channel
            load = self._loads.get(channel)
            if load is not None:
                load.events.append(entry.event)
            kept = self._kept.get(channel)
            if kept is None:
                continue
            if entry.event.deletion and entry.id > kept.position:
                self._drop(channel)
            else:
                kept.fold(entry.event)
                self._count(kept)
        self._evict()

    def restart(self, mirror: Mirrored, before: Position) -> None:
        """Forget the namespace's states: their history is another one now."""
        name = mirror.namespace.name
        for channel in [c for c, kept in self._kept.items() if kept.namespace == name]:
            self._drop(channel)

    def room(self, mirror: Mirrored) -> asyncio.Future[None] | None:
        """Folding is done at once: the tail never waits for it."""
        return None

    def _drop(self, channel: str) -> None:
        self._size_bytes -= self._kept.pop(channel).counted_bytes

    def _count(self, kept: _Kept) -> None:
        size = kept.size_bytes
        self._size_bytes += size - kept.counted_bytes
        kept.counted_bytes = size

    def _evict(self) -> None:
        while self._size_bytes > self._limit_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    # -- what readers ask ---------------------------------------------------------------------

    async def get(
        self, tail: Following, channel: str, at_least: Position | None = None
    ) -> Snapshot:
        """Return the channel's snapshot; not one rendered before the tail reached `at_least`.

        Raises UnknownChannel, StoreUnavailable.
        """
        doubts = 0
        while tail.mirror.exists(channel):
            kept = self._kept.get(channel)
            if kept is not None:
                self._kept.move_to_end(channel)  # Now the most recently used.
                return self._render(tail.mirror, channel, kept, at_least)
            # Not used as it comes: its history may end between the load's end and our turn, and
            # a channel that was unknown to the load may have begun.
            try:
                await self._load(tail, channel)
            except UnknownChannel as error:
                doubts += 1
                if doubts == _DOUBTS and tail.mirror.exists(channel):
                    raise StoreUnavailable(f"{channel} keeps ending and beginning") from error
        raise UnknownChannel(channel)

    def peek(self, mirror: Mirrored, channel: str) -> bytes | None:
        """Return the channel's snapshot, true at what was tailed last; None when it is not here.

        A channel that has ended is shown with an empty state.
        """
        kept = self._kept.get(channel)
        if mirror.exists(channel):
            # The store's state may have been read from beyond what was tailed.
            if kept is None or kept.position > mirror.tailed:
                return None
            self._kept.move_to_end(channel)
            return self._render(mirror, channel, kept, kept.position).body
        assert mirror.life is not None
        last = mirror.index[channel].last
        return Snapshot(mirror.namespace, channel, last, mirror.life.epoch, {}, 0.0).body

    async def load(self, tail: Following, channel: str) -> None:
        """Fetch what `peek` needs; raises UnknownChannel, StoreUnavailable."""
        await self.get(tail, channel)
        kept = self._kept.get(channel)
        try:
            async with asyncio.timeout(_BEHIND_SECONDS):
                while kept is not None and kept.position > tail.mirror.tailed:
                    await tail.changed()
        except TimeoutError as error:
            raise StoreUnavailable("this worker is behind the store") from error

    def _render(
        self, mirror: Mirrored, channel: str, kept: _Kept, at_least: Position | None
    ) -> Snapshot:
        life = mirror.life
        assert life is not None
        # Below the floor nobody could resume: a quiet channel would loop gap, snapshot, gap.
        position = max(kept.position, life.floor)
        snapshot, now = kept.snapshot, time.monotonic()
        if snapshot is not None and snapshot.epoch == life.epoch:
            fresh = now - snapshot.rendered_at < self._min_interval_seconds
            enough = at_least is None or at_least <= snapshot.position
            if snapshot.position == position or (fresh and enough):
                self.counters.hits += 1
                return snapshot
        self.counters.renders += 1
        snapshot = Snapshot(
            mirror.namespace, channel, position, life.epoch, kept.state.value(), now
        )
        kept.snapshot = snapshot
        self._count(kept)
        self._evict()
        return snapshot

    async def variant(self, snapshot: Snapshot, coding: str, inline_limit_bytes: int) -> bytes:
        """Return the snapshot's body in one content coding."""
        body = await snapshot.variant(coding, inline_limit_bytes, self._made)
        kept = self._kept.get(snapshot.channel)
        if kept is not None and kept.snapshot is snapshot:
            self._count(kept)
            self._evict()
        return body

    def _made(self) -> None:
        self.counters.variants += 1

    async def _load(self, tail: Following, channel: str) -> _Kept:
        load = self._loads.get(channel)
        if load is None:
            load = self._loads[channel] = _Load()
            # All who ask meanwhile wait for this one; none of them may cancel it.
            load.task = asyncio.create_task(self._read(tail, channel, load))
        assert load.task is not None
        return await asyncio.shield(load.task)

    async def _read(self, tail: Following, channel: str, load: _Load) -> _Kept:
        mirror = tail.mirror
        namespace = mirror.namespace
        try:
            async with asyncio.timeout(_BEHIND_SECONDS) as deadline:
                while True:
                    restarts = mirror.restarts
                    load.events.clear()
                    life, contents, _ = await self._store.read(namespace.name, [channel], "state")
                    self.counters.loads += 1
                    if mirror.restarts != restarts or mirror.life is None:
                        continue
                    index = contents[0].index
                    if life.same_history(mirror.life):
                        if index is not None and not index.deleted:
                            if not _has_end(load.events, index.last):
                                break
                            if mirror.exists(channel):
                                continue  # It ended and began again since it was read.
                        if index is None or not mirror.exists(channel):
                            raise UnknownChannel(channel)
                    # An answer would name a position that the tail has not come to.
                    await tail.changed()
        except TimeoutError as error:
            assert deadline.expired()
            raise StoreUnavailable("this worker is behind the store") from error
        finally:
            del self._loads[channel]
        state = load_state(namespace.reducer, contents[0].state)
        kept = self._kept[channel] = _Kept(namespace.name, state, index.last)
        for event in load.events:
            kept.fold(event)
        self._count(kept)
        return kept


def _has_end(events: Sequence[Event], after: Position) -> bool:
    """Tell whether a channel ends in its events after a position."""
    return any(event.deletion for event in events if event.id > after)

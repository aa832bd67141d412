"""Slices of channels: finds or begins the one asked for, and fills it; serves nobody itself."""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.hub.mirror import Mirror, Missing, NeedsRings
from gateway.hub.rings import RingReader
from gateway.hub.sealing import Sealer
from gateway.hub.slice import Slice
from gateway.hub.tail import Tail
from gateway.protocol.errors import GatewayError, StoreUnavailable
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.slice import HELD_SECONDS, boundary, lost_within, slice_of
from gateway.store.redis import RedisStore

SHARED_SECONDS = 1.0
"""What must be left of it, at the least, when it is on its way."""

_ALL = 2**62


class SliceAhead(GatewayError):
    """The slice lies in the future."""

    def __init__(self, number: int, current: int) -> None:
        super().__init__(f"slice {number} has not begun: the current one is {current}")
        self.number = number
        self.current = current


class SliceGone(GatewayError):
    """Nobody can vouch for the slice any more; `reason` is that of a gap.

    `over_in_seconds` is how long it lasts yet, 0 when it is over; positions as in a gap.
    """

    def __init__(
        self, number: int, reason: str, oldest: Position, newest: Position, over_in_seconds: float
    ) -> None:
        super().__init__(f"slice {number} cannot be served whole: {reason}")
        self.number = number
        self.reason = reason
        self.oldest = oldest
        self.newest = newest
        self.over_in_seconds = over_in_seconds


@dataclass(slots=True)
class SliceCounters:
    """What was done since the start: slices that were begun, ended whole, and cut off."""

    begun: int = 0
    ended: int = 0
    broken: int = 0


class Slices:
    """All slices that somebody reads, or read a short while ago, on this worker.

    A channel's current slice is *running*: the tail fills it. It is dropped when its last reader
    leaves, for it can be made again from the ring. It has at most twice `ring_limit_bytes` in each
    coding that is read; all of them have no bound together, for none that is read can be dropped:
    the subscribers' limit bounds their number. Slices that are over are kept, the least recently
    used dropped beyond `limit_bytes`.
    """

    def __init__(
        self,
        store: RedisStore,
        rings: RingReader,
        *,
        retry_ms: int,
        heartbeat_seconds: float,
        wait_seconds: float,
        limit_bytes: int,
    ) -> None:
        self.counters = SliceCounters()
        self.readers = 0
        self._store = store
        self._rings = rings
        self._retry_ms = retry_ms
        self._heartbeat_seconds = heartbeat_seconds
        self._wait_seconds = wait_seconds
        self._limit_bytes = limit_bytes
        self._sealers: dict[str, Sealer] = {}
        # A channel has two for a moment: one that is not sealed yet, and the next.
        self._running: defaultdict[str, dict[str, list[Slice]]] = defaultdict(dict)
        self._over: OrderedDict[tuple[str, int], Slice] = OrderedDict()
        self._over_bytes = 0

    def follow(self, tails: Mapping[str, Tail]) -> None:
        """Serve these namespaces; called once, before `run`."""
        for name, tail in tails.items():

            def sealed(position: Position, mirror: Mirror = tail.mirror) -> None:
                self._end_before(mirror, position)

            self._sealers[name] = Sealer(self._store, tail, sealed)

    async def run(self) -> None:
        """Seal what is running when its time has come, and keep quiet slices alive."""
        async with asyncio.TaskGroup() as tasks:
            for sealer in self._sealers.values():
                tasks.create_task(sealer.run())
            tasks.create_task(self._beat())

    # -- what the tail brings -----------------------------------------------------------------

    def take(self, mirror: Mirror, entries: Sequence[Entry]) -> None:
        """Add the namespace's new events to the slices they belong to."""
        running = self._running.get(mirror.namespace.name, {})
        if not running and not self._over:
            return
        shares: defaultdict[Slice, list[Entry]] = defaultdict(list)
        for entry in entries:
            slices = running.get(entry.event.channel, ())
            if entry.event.deletion:
                # Readers cannot be told within a slice; they find it gone.
                for slice in slices:
                    slice.broken = True
                    shares[slice] = []
                self._forget_channel(mirror.namespace, entry)
                continue
            for slice in slices:
                if slice.start < entry.id < slice.end:
                    shares[slice].append(entry)
        for slice, share in shares.items():
            slice.append(share)
            if slice.broken:
                slice.cut_off()
                self._take_out(slice)
                self.counters.broken += 1

    def restart(self, mirror: Mirror, before: Position) -> None:
        """Cut off every slice of the namespace: its history is another one now."""
        self._cut(mirror.namespace.name)
        for key in [k for k, kept in self._over.items() if kept.namespace is mirror.namespace]:
            self._forget(key)

    def room(self, mirror: Mirror) -> asyncio.Future[None] | None:
        """Slices take what comes: they are bounded by their length and their bytes."""
        return None

    def drain(self) -> None:
        """Cut off every running slice: this worker stops. Nothing in a slice may say so."""
        for name in list(self._running):
            self._cut(name)

    def _cut(self, namespace: str) -> None:
        for slices in self._running.pop(namespace, {}).values():
            for slice in slices:
                slice.cut_off()
                self.counters.broken += 1

    def _end_before(self, mirror: Mirror, position: Position) -> None:
        running = self._running.get(mirror.namespace.name, {})
        for slice in [s for slices in running.values() for s in slices if s.end <= position]:
            slice.finish()
            self._take_out(slice)
            self._keep(slice)

    def _take_out(self, slice: Slice) -> None:
        running = self._running[slice.namespace.name]
        slices = running.get(slice.channel, [])
        if slice in slices:
            slices.remove(slice)
            if not slices:
                del running[slice.channel]

    # -- slices that are over -----------------------------------------------------------------

    def _keep(self, slice: Slice) -> None:
        self.counters.ended += 1
        self._over[slice.channel, slice.number] = slice
        self.count(slice)

    def count(self, slice: Slice) -> None:
        """Take note that a slice may have grown: it was asked for in another coding."""
        key = (slice.channel, slice.number)
        if self._over.get(key) is not slice:
            return
        self._over.move_to_end(key)
        self._over_bytes += slice.size_bytes - slice.counted_bytes
        slice.counted_bytes = slice.size_bytes
        while self._over_bytes > self._limit_bytes and len(self._over) > 1:
            self._forget(next(iter(self._over)))

    def _forget(self, key: tuple[str, int]) -> None:
        self._over_bytes -= self._over.pop(key).counted_bytes

    def _forget_channel(self, namespace: Namespace, deletion: Entry) -> None:
        """Serve no slice any more of what was deleted."""
        last = slice_of(deletion.id.ms, namespace.slice_seconds)
        for number in range(last - namespace.ring_age_seconds // namespace.slice_seconds, last + 1):
            if (deletion.event.channel, number) in self._over:
                self._forget((deletion.event.channel, number))

    # -- what readers ask ---------------------------------------------------------------------

    async def current(self, tail: Tail, channel: str) -> Slice:
        """Return the channel's current slice, or the next one when that is about to begin.

        Raises SliceGone, StoreUnavailable.
        """
        sealer, seconds = self._sealers[tail.mirror.namespace.name], _length(tail)
        while True:
            number = slice_of(await sealer.now_ms(), seconds)
            end = boundary(number + 1, seconds)
            if sealer.left_seconds(end) < HELD_SECONDS:
                await self._await_sealed(sealer, end)
                continue
            self._check_begun_before(tail.mirror, number)
            slice = await self._get(tail, channel, number)
            if self._can_be_shared(slice):
                return slice

    def _check_begun_before(self, mirror: Mirror, number: int) -> None:
        """Refuse a slice within which the store's present life began; raises SliceGone.

        Whoever asks by the number names the epoch, too. All others may come from the one before.
        """
        life, start = mirror.life, boundary(number, mirror.namespace.slice_seconds)
        if life is not None and life.floor > start:
            left = self._sealers[mirror.namespace.name].left_seconds(
                boundary(number + 1, mirror.namespace.slice_seconds)
            )
            raise SliceGone(number, "evicted", life.floor, mirror.head, max(0.0, left))

    async def numbered(self, tail: Tail, channel: str, number: int) -> Slice:
        """Return one slice of the channel; it is over or running, never about to end.

        Raises SliceAhead, SliceGone, StoreUnavailable.
        """
        sealer, seconds = self._sealers[tail.mirror.namespace.name], _length(tail)
        start, end = boundary(number, seconds), boundary(number + 1, seconds)
        now_ms = await sealer.now_ms(start)
        if now_ms < start.ms:
            raise SliceAhead(number, slice_of(now_ms, seconds))
        # Before anything is waited for: a worker that has sealed nothing yet has no work with it.
        if now_ms - start.ms > tail.mirror.namespace.ring_age_seconds * 1000:
            raise SliceGone(number, "evicted", tail.mirror.head, tail.mirror.head, 0.0)
        while True:
            if sealer.left_seconds(end) < HELD_SECONDS:
                await self._await_sealed(sealer, end)
            slice = await self._get(tail, channel, number)
            if self._can_be_shared(slice):
                return slice

    def _can_be_shared(self, slice: Slice) -> bool:
        """Tell whether enough is left of a slice for a cache to be told to keep it."""
        return slice.finished or self.left_seconds(slice) >= SHARED_SECONDS

    async def _await_sealed(self, sealer: Sealer, position: Position) -> None:
        try:
            async with asyncio.timeout(
                max(0.0, sealer.left_seconds(position)) + self._wait_seconds
            ):
                await sealer.reach(position)
        except TimeoutError as error:
            raise StoreUnavailable(f"{position} is not sealed yet") from error

    def left_seconds(self, slice: Slice) -> float:
        """Return how long a running slice lasts yet, 0 when it is over."""
        if slice.finished:
            return 0.0
        return max(0.0, self._sealers[slice.namespace.name].left_seconds(slice.end))

    def age_seconds(self, slice: Slice) -> float:
        """Return how long ago a slice began."""
        return -self._sealers[slice.namespace.name].left_seconds(slice.start)

    def leave(self, slice: Slice) -> None:
        """Count a reader of a slice out; a running slice that nobody reads is dropped."""
        self.readers -= 1
        slice.readers -= 1
        self.drop_unread(slice)

    def drop_unread(self, slice: Slice) -> None:
        """Drop a running slice unless somebody reads it."""
        if not slice.readers:
            self._take_out(slice)

    def join(self, slice: Slice) -> None:
        """Count a reader of a slice in."""
        self.readers += 1
        slice.readers += 1

    async def _get(self, tail: Tail, channel: str, number: int) -> Slice:
        mirror = tail.mirror
        seconds = _length(tail)
        start, end = boundary(number, seconds), boundary(number + 1, seconds)
        sealer = self._sealers[mirror.namespace.name]
        # Until its beginning is sealed, an event may still get a position before it.
        await self._await_sealed(sealer, start)
        while True:
            for slice in self._running[mirror.namespace.name].get(channel, ()):
                if slice.number == number:
                    return slice
            # One that is kept is whole yet, but served only while its ring vouches for it: a cache
            # would keep it for longer than one can resume from its end.
            if self._judge(mirror, channel, number):
                kept = self._over.get((channel, number))
                if kept is None:
                    return self._begin(mirror, channel, number, over=end <= sealer.sealed)
                self._over.move_to_end((channel, number))
                return kept
            await self._rings.read(tail, [channel])

    def _judge(self, mirror: Mirror, channel: str, number: int) -> bool:
        """Tell whether the ring that holds a slice is in memory.

        Raises SliceGone, StoreUnavailable.
        """
        life = mirror.life
        if life is None:
            raise StoreUnavailable("the store has not answered yet")
        seconds = mirror.namespace.slice_seconds
        start, end = boundary(number, seconds), boundary(number + 1, seconds)
        sealer = self._sealers[mirror.namespace.name]
        over_in = max(0.0, sealer.left_seconds(end))
        if lost_within(life, start, end):
            raise SliceGone(number, "restored", mirror.head, mirror.head, over_in)
        # An epoch that began within the slice has nothing from before.
        start = max(start, min(life.floor, end))
        verdict = mirror.judge(_select(mirror.namespace, channel), start)
        if isinstance(verdict, Missing):
            raise SliceGone(number, verdict.reason, verdict.oldest, mirror.head, over_in)
        return not isinstance(verdict, NeedsRings)

    def _begin(self, mirror: Mirror, channel: str, number: int, *, over: bool) -> Slice:
        """Return a slice with everything that was tailed of it."""
        slice = Slice(mirror.namespace, channel, number, self._retry_ms)
        ring = mirror.ring(channel)
        if ring is not None:
            until = min(mirror.tailed, slice.end)
            slice.append(ring.after(slice.start, until, _ALL))
        self.counters.begun += 1
        if slice.broken and not over:
            raise SliceGone(number, "evicted", mirror.head, mirror.head, self.left_seconds(slice))
        if over:
            slice.finish()
            self._keep(slice)
        else:
            running = self._running[mirror.namespace.name]
            running.setdefault(channel, []).append(slice)
            self._sealers[mirror.namespace.name].want(slice.end)
        return slice

    # -- what happens by itself ---------------------------------------------------------------

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heartbeat_seconds / 4)
            before = loop.time() - self._heartbeat_seconds
            for slice in self._all_running():
                slice.beat(before)

    def _all_running(self) -> Iterable[Slice]:
        return [s for channels in self._running.values() for ss in channels.values() for s in ss]


def _length(tail: Tail) -> int:
    return tail.mirror.namespace.slice_seconds


def _select(namespace: Namespace, channel: str) -> Selection:
    enveloped = namespace.reducer is Reducer.KEYED
    return Selection(namespace.name, (channel,), (), enveloped)

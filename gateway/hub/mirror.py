"""A namespace as this worker has tailed it: index, life and rings; awaits only ring reads."""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from operator import attrgetter

from gateway.protocol.event import Event
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry, Ring
from gateway.protocol.selector import Selection
from gateway.store.scripts import ChannelContents, IndexEntry, last_of


@dataclass(frozen=True, slots=True)
class Resumable:
    """Everything after the position is in memory."""


@dataclass(frozen=True, slots=True)
class NeedsRings:
    """It can be told only when these channels' rings were read from the store."""

    channels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Missing:
    """Events after the position are gone; `oldest` is where one could still resume from."""

    reason: str
    oldest: Position


Verdict = Resumable | NeedsRings | Missing
_PAST = "\x7f"


class Mirror:
    """The worker's copy of one namespace, current up to `tailed`.

    `head` is the newest position that one may go on from: `tailed`, or the end of a cut after it.
    `clock` is the newest that the store is known to have given out.

    The index holds every channel of the namespace (bounded by its channels_limit), the one
    heard of last at its end, so that what moved since a position is found from there; `names`
    are its channels in the order of their names. Rings are
    kept for the channels used last, within `limit_bytes` and one ring more.
    """

    def __init__(self, namespace: Namespace, limit_bytes: int) -> None:
        self.namespace = namespace
        self.life: Life | None = None
        self.tailed = ORIGIN
        self.head = ORIGIN
        self.clock = ORIGIN
        self.index: dict[str, IndexEntry] = {}
        self.names: list[str] = []
        self.restarts = 0
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._rings: OrderedDict[str, Ring] = OrderedDict()
        # What complete rings took up when they were evicted; at most one entry to a channel.
        self._evicted_bytes: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether the rings take more than their limit even after the last eviction."""
        return self.size_bytes > self._limit_bytes

    # -- what the tail brings -----------------------------------------------------------------

    def restart(self, life: Life, index: Mapping[str, IndexEntry]) -> None:
        """Begin anew at the bus's end: the history is another one, or a part went by unseen."""
        self.life = life
        self.tailed = life.last
        # Past the last event the clock moves only with a cut or an epoch: nothing lies between.
        self.head = self.clock = life.clock
        self.index = dict(sorted(index.items(), key=_by_last))
        self.names = sorted(index)
        self.restarts += 1
        self.size_bytes = 0
        self._rings.clear()
        self._evicted_bytes.clear()

    def take(self, events: Iterable[Event]) -> list[Entry]:
        """Take in the namespace's next events and return their entries, frames not yet made."""
        entries = []
        latest: dict[str, Event] = {}  # Each channel's last event, in the order of these.
        for event in events:
            channel = event.channel
            ring = self._rings.get(channel)
            if ring is None:
                ring = self._rings[channel] = self._new_ring(event.prev)
                # A channel that the index did not know has nothing older in the store.
                ring.complete = channel not in self.index
            before = ring.size_bytes
            entries.append(ring.append(event))
            self.size_bytes += ring.size_bytes - before
            latest.pop(channel, None)
            latest[channel] = event
        for channel, event in latest.items():
            known = self.index.pop(channel, None)
            if known is None:
                insort(self.names, channel)
            if known is None or known.last < event.id:
                known = IndexEntry(event.id, event.deletion)
            self.index[channel] = known
        if entries:
            self.tailed = self.head = entries[-1].id
        self.clock = max(self.clock, self.tailed)
        self._evict()
        return entries

    def add_ring(
        self,
        channel: str,
        contents: ChannelContents,
        read_after: Position,
        keep: Container[str] = (),
    ) -> bool:
        """Put a ring into memory that was read from the store after `read_after` was tailed.

        Rings of `keep` are not evicted for it. Returns False when what the tail brought since
        then does not meet it: read again.
        """
        ring = self._rings.get(channel)
        if ring is None:
            known = self.index.get(channel)
            if known is not None and known.last > read_after:
                return False
            ring = self._rings[channel] = self._new_ring(read_after)
        elif not ring.complete and last_of(contents) < ring.resumable_from:
            # It was dropped and begun again while the store was read: events lie between.
            return False
        before = ring.size_bytes
        first = contents.ring[0].prev if contents.ring else last_of(contents)
        ring.backfill(contents.ring, first)
        self.size_bytes += ring.size_bytes - before
        self._evicted_bytes.pop(channel, None)
        self.ring(channel)
        self._evict(keep)
        return True

    def _new_ring(self, resumable_from: Position) -> Ring:
        rules = self.namespace
        return Ring(
            resumable_from,
            limit_events=rules.ring_limit_events,
            limit_bytes=rules.ring_limit_bytes,
            age_ms=rules.ring_age_seconds * 1000,
            spare_ms=rules.ring_spare_seconds * 1000,
        )

    def _evict(self, keep: Container[str] = ()) -> None:
        """Drop the rings used longest ago, but neither `keep` nor the one used last."""
        if not self.full:
            return
        size, victims = self.size_bytes, []
        for channel, ring in islice(self._rings.items(), len(self._rings) - 1):
            if size <= self._limit_bytes:
                break
            if channel not in keep:
                victims.append(channel)
                size -= ring.size_bytes
        for channel in victims:
            ring = self._rings.pop(channel)
            if ring.complete:
                self._evicted_bytes[channel] = ring.size_bytes
        self.size_bytes = size

    def ring(self, channel: str) -> Ring | None:
        """Return a channel's ring and count it as used."""
        ring = self._rings.get(channel)
        if ring is not None:
            self._rings.move_to_end(channel)
        return ring

    def span_seconds(self, channel: str, now_ms: int) -> float | None:
        """Return how far back the channel's ring reaches; None while only age bounds it.

        A ring that is not in memory is taken for such a one.
        """
        ring = self._rings.get(channel)
        span_ms = None if ring is None else ring.span_ms(now_ms)
        return None if span_ms is None else span_ms / 1000

    # -- what streams ask ---------------------------------------------------------------------

    def exists(self, channel: str) -> bool:
        """Tell whether the channel has been published to and not been deleted."""
        entry = self.index.get(channel)
        return entry is not None and not entry.deleted

    def moved_since(self, selection: Selection, position: Position) -> list[str]:
        """Return the selected channels that have something after `position`."""
        index = self.index
        moved = [n for n in selection.channels if n in index and index[n].last > position]
        for prefix in selection.prefixes:
            moved += self._moved_below(prefix, position)
        return moved

    def _moved_below(self, prefix: str, position: Position) -> list[str]:
        """Look at the prefix's channels or at those heard of last, whichever are fewer."""
        low, high = self._span(prefix)
        moved: list[str] = []
        for steps, (name, entry) in enumerate(reversed(self.index.items())):
            if entry.last <= position:
                return moved
            if steps == high - low:
                break
            if name.startswith(prefix):
                moved.append(name)
        return [name for name in self.names[low:high] if self.index[name].last > position]

    def _span(self, prefix: str) -> tuple[int, int]:
        low = bisect_left(self.names, prefix)
        # No character of a name sorts after this one.
        return low, bisect_left(self.names, prefix + _PAST, low)

    def names_from(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield the channels after `after` whose names begin with `prefix`, deleted ones too."""
        low, high = self._span(prefix)
        for at in range(max(low, bisect_right(self.names, after)), high):
            yield self.names[at]

    def judge(self, selection: Selection, position: Position) -> Verdict:
        """Tell whether a stream of `selection` can go on after `position` without a hole."""
        assert self.life is not None
        if position > self.clock:
            return Missing("unknown", self.head)
        if position < self.life.floor:
            return Missing("evicted", self.life.floor)
        if not self.life.vouches_for(position):
            return Missing("restored", self.head)
        oldest, reason, unread, size, rings = position, "", [], 0, 0
        for channel in self.moved_since(selection, position):
            ring = self.ring(channel)
            rings += 1
            size += max(ring.size_bytes if ring else 0, self._evicted_bytes.get(channel, 0))
            if ring is None or (position < ring.resumable_from and not ring.complete):
                unread.append(channel)
            elif position < ring.resumable_from:
                oldest = max(oldest, ring.resumable_from)
                reason = "deleted" if self.index[channel].deleted else "evicted"
        if reason:
            return Missing(reason, oldest)
        if unread and rings > 1 and size > self._limit_bytes:
            # They would push each other out for ever.
            return Missing("too_large", self.head)
        return NeedsRings(unread) if unread else Resumable()

    def entries_after(
        self, selection: Selection, position: Position, limit_bytes: int
    ) -> list[Entry]:
        """Return the selection's next entries in order, up to about `limit_bytes` in all.

        The position was judged Resumable.
        """
        parts = []
        until = self.tailed
        for channel in self.moved_since(selection, position):
            ring = self._rings[channel]
            part = ring.after(position, until, limit_bytes)
            if part:
                parts.append(part)
                if ring.has_between(part[-1].id, until):
                    # This ring goes on: nothing later than its piece may pass it.
                    until = part[-1].id
        if len(parts) == 1:
            return parts[0]
        merged: list[Entry] = []
        size = 0
        for entry in merge(*parts, key=attrgetter("id")):
            size += len(entry.event.data) + 64
            if entry.id > until or (merged and size > limit_bytes):
                break
            merged.append(entry)
        return merged


def _by_last(item: tuple[str, IndexEntry]) -> Position:
    return item[1].last

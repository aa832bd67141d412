"""A channel's last events in this worker's memory, with their frames; reads no store."""

from bisect import bisect_right
from collections.abc import Sequence

from gateway.protocol.event import Event
from gateway.protocol.position import Position
from gateway.protocol.sse import encode_enveloped, encode_event

_OVERHEAD_BYTES = 400  # Of one entry in memory: the event, its id and two frames' headers.
_DEAD_LIMIT = 64  # Dropped entries kept in the list until it is compacted.


class Entry:
    """One event of a ring and its frames, each encoded once, when first asked for."""

    __slots__ = ("_envelope", "_plain", "event", "id")

    def __init__(self, event: Event) -> None:
        self.id = event.id
        self.event = event
        self._plain: bytes | None = None
        self._envelope: bytes | None = None

    def frame(self, enveloped: bool) -> bytes:
        """Return the event's SSE bytes, with or without an envelope."""
        if enveloped:
            if self._envelope is None:
                self._envelope = encode_enveloped(self.event)
            return self._envelope
        if self._plain is None:
            self._plain = encode_event(self.event)
        return self._plain

    @property
    def size_bytes(self) -> int:
        """What the entry is counted as: its data in the event and in one frame."""
        return _OVERHEAD_BYTES + 2 * len(self.event.data)


class Ring:
    """Entries of one channel in order. Everything after `resumable_from` is in it.

    `complete` says that the store's ring holds nothing older that could still be fetched;
    `cut_short`, that its oldest event went for the number or the bytes of those after it. Their
    number spares those younger than `spare_ms`, as seen from the last event.
    """

    __slots__ = (
        "_age_ms", "_dead", "_entries", "_ids", "_limit_bytes", "_limit_events", "_spare_ms",
        "complete", "cut_short", "last", "resumable_from", "size_bytes",
    )  # fmt: skip

    def __init__(
        self,
        resumable_from: Position,
        *,
        limit_events: int,
        limit_bytes: int,
        age_ms: int,
        spare_ms: int = 0,
    ) -> None:
        self._entries: list[Entry] = []
        self._ids: list[Position] = []
        self._dead = 0
        self._limit_events = limit_events
        self._limit_bytes = limit_bytes
        self._age_ms = age_ms
        self._spare_ms = spare_ms
        self.cut_short = False
        self.complete = False
        self.resumable_from = resumable_from
        self.last = resumable_from
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._ids) - self._dead

    def append(self, event: Event) -> Entry:
        """Add the channel's next event, drop what goes over the bounds, return its entry."""
        if event.deletion:
            self._clear(event.id)
            return Entry(event)
        if event.prev > self.last:
            # The events between were never seen here.
            self._clear(event.prev)
            self.complete = False
        entry = Entry(event)
        self._entries.append(entry)
        self._ids.append(event.id)
        self.size_bytes += entry.size_bytes
        self.last = event.id
        self._trim()
        return entry

    def backfill(self, events: Sequence[Event], resumable_from: Position) -> None:
        """Put what the store's ring held before `resumable_from` of ours in front of it.

        `events` may reach into what is here already. The new `resumable_from` is never later
        than the old one. Does nothing to a ring that is complete: it was deleted, or went over
        its bounds, while the store was read, and what was read is older than that.
        """
        if self.complete:
            return
        older = [Entry(event) for event in events if event.id <= self.resumable_from]
        self._entries[: self._dead] = older
        self._ids[: self._dead] = [entry.id for entry in older]
        self._dead = 0
        self.size_bytes += sum(entry.size_bytes for entry in older)
        self.resumable_from = min(resumable_from, self.resumable_from)
        self.last = max(self.last, self.resumable_from)
        self.complete = True
        # Younger than its age, so what was before went otherwise.
        self.cut_short = self.resumable_from.ms > max(0, self.last.ms - self._age_ms)
        self._trim()

    def after(self, position: Position, until: Position, limit_bytes: int) -> list[Entry]:
        """Return entries with position < id <= until, up to about `limit_bytes` of data.

        At least one is returned when there is one.
        """
        low = bisect_right(self._ids, position, self._dead)
        high = bisect_right(self._ids, until, low)
        size = 0
        for at in range(low, high):
            size += len(self._entries[at].event.data) + 64
            if size > limit_bytes:
                high = max(at, low + 1)
                break
        return self._entries[low:high]

    def has_between(self, position: Position, until: Position) -> bool:
        """Tell whether there is an entry with position < id <= until."""
        at = bisect_right(self._ids, position, self._dead)
        return at < len(self._ids) and self._ids[at] <= until

    def span_ms(self, now_ms: int) -> float | None:
        """Return how far back the ring reaches, in milliseconds, at the pace of its events.

        None while only age bounds it. One that is not full yet, or not complete here, will be cut
        short when what comes next has filled it: that is told from how fast it came so far.
        """
        if self.cut_short:
            return max(0, now_ms - self.resumable_from.ms)
        data_bytes = (self.size_bytes - len(self) * _OVERHEAD_BYTES) // 2
        if data_bytes <= 0:
            return None
        # The first second tells little of a pace.
        reach_ms = max(1000, now_ms - self._ids[self._dead].ms)
        span_ms = reach_ms * self._limit_bytes / data_bytes
        by_number_ms = max(self._spare_ms, reach_ms * self._limit_events / len(self))
        span_ms = min(span_ms, by_number_ms)
        return span_ms if span_ms < self._age_ms else None

    def page(self, after: Position, limit: int) -> list[Event]:
        """Return up to `limit` events after a position, oldest first."""
        low = bisect_right(self._ids, after, self._dead)
        return [entry.event for entry in self._entries[low : low + limit]]

    def _clear(self, resumable_from: Position) -> None:
        self._entries.clear()
        self._ids.clear()
        self._dead = 0
        self.size_bytes = 0
        self.resumable_from = self.last = resumable_from
        self.complete = True
        self.cut_short = False

    def _trim(self) -> None:
        kept, oldest_ms = len(self), self.last.ms - self._age_ms
        spared_ms = self.last.ms - self._spare_ms
        while kept > 1:
            first_ms = self._ids[self._dead].ms
            is_old = first_ms < oldest_ms
            if not (
                is_old
                or (kept > self._limit_events and (first_ms < spared_ms or not self._spare_ms))
                or self.size_bytes > 2 * self._limit_bytes + kept * _OVERHEAD_BYTES
            ):
                break
            dropped = self._entries[self._dead]
            self.resumable_from = dropped.id
            self.cut_short = not is_old
            # The store keeps its ring within the same bounds.
            self.complete = True
            self.size_bytes -= dropped.size_bytes
            self._entries[self._dead] = _DROPPED
            self._dead += 1
            kept -= 1
        if self._dead > _DEAD_LIMIT and self._dead > kept:
            del self._entries[: self._dead]
            del self._ids[: self._dead]
            self._dead = 0


_DROPPED = Entry(Event(Position(0, 0), Position(0, 0), "", b""))

"""One set of selectors and all who follow it; makes the chunks they share."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from gateway.hub.mirror import Mirror
from gateway.hub.subscriber import Subscriber
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.sse import encode_gap

CHUNK_LIMIT_BYTES = 64 * 1024
"""A chunk joins frames up to this; a full connection holds at most one beyond its buffer."""

REPLAY_LIMIT_BYTES = 1024 * 1024
"""Merging rings costs by their number, so it is done for this much at a time, and shared."""

_PIECE_EVENTS = 256  # To one turn of a replay: about a chunk of small events.

SNAPSHOTS_NAMED = 100
"""Snapshot URLs in one gap; a wildcard may stand for more."""


class Chunk(NamedTuple):
    """Frames of consecutive events, joined; `end` is the last one's position."""

    data: bytes
    end: Position
    events: int


class Replay:
    """Entries from `start` to `end`, merged once for all who come back to somewhere between."""

    __slots__ = ("_entries", "_ids", "end", "start")

    def __init__(self, start: Position, end: Position, entries: list[Entry]) -> None:
        self.start = start
        self.end = end
        self._entries = entries
        self._ids = [entry.id for entry in entries]

    def after(self, position: Position) -> list[Entry]:
        """Return the entries after a position, at least to the end of a chunk."""
        low = bisect_right(self._ids, position)
        return self._entries[low : low + _PIECE_EVENTS]


class Subscription:
    """All subscribers of one selection.

    `current` subscribers have everything that the mirror has tailed; `behind` ones are served
    from the rings by their own position, until they are current. `written_at` is monotonic time
    in seconds of the last chunk that all current ones got.
    """

    __slots__ = (
        "behind", "current", "mirror", "position", "replay", "selection", "snapshots", "written_at",
    )  # fmt: skip

    def __init__(self, selection: Selection, mirror: Mirror, snapshots: str) -> None:
        self.selection = selection
        self.mirror = mirror
        self.snapshots = snapshots
        self.position = ORIGIN
        self.written_at = 0.0
        self.replay: Replay | None = None
        self.current: set[Subscriber] = set()
        self.behind: set[Subscriber] = set()

    def __len__(self) -> int:
        return len(self.current) + len(self.behind)

    def __contains__(self, subscriber: Subscriber) -> bool:
        return subscriber in self.current or subscriber in self.behind

    def members(self) -> Iterator[Subscriber]:
        """Yield every subscriber."""
        yield from self.current
        yield from self.behind

    def entries_after(self, position: Position) -> list[Entry]:
        """Return a subscriber's next entries, none when it has all that was tailed.

        The position was judged Resumable, or lies within the replay that is at hand.
        """
        replay = self.replay
        if replay is None or not self.has_replay(position):
            entries = self.mirror.entries_after(self.selection, position, REPLAY_LIMIT_BYTES)
            if not entries:
                return entries
            self.replay = replay = Replay(position, entries[-1].id, entries)
        return replay.after(position)

    def has_replay(self, position: Position) -> bool:
        """Tell whether the entries after a position are at hand, whatever the rings dropped."""
        return self.replay is not None and self.replay.start <= position < self.replay.end

    def chunks(self, entries: Sequence[Entry]) -> Iterator[Chunk]:
        """Yield the entries' frames joined into chunks, in order."""
        frames: list[bytes] = []
        size = 0
        end = ORIGIN
        for entry in entries:
            if frames and size >= CHUNK_LIMIT_BYTES:
                yield Chunk(b"".join(frames), end, len(frames))
                frames, size = [], 0
            frame = (
                self._end_of_channel(entry)
                if entry.event.deletion
                else entry.frame(self.selection.enveloped)
            )
            frames.append(frame)
            size += len(frame)
            end = entry.id
        if frames:
            yield Chunk(b"".join(frames), end, len(frames))

    def _end_of_channel(self, entry: Entry) -> bytes:
        return encode_gap(
            id=entry.id,
            reason="deleted",
            requested=str(entry.event.prev),
            oldest=entry.id,
            newest=entry.id,
            snapshots=[self.snapshots + entry.event.channel],
        )

    def gap(self, reason: str, requested: str, oldest: Position, id: Position) -> bytes:
        """Return the gap event of a subscriber whose position cannot be resumed from."""
        names = list(self.selection.channels)
        if self.selection.prefixes:
            below = chain.from_iterable(map(self.mirror.names_from, self.selection.prefixes))
            names += islice(filter(self.mirror.exists, below), SNAPSHOTS_NAMED + 1)
        return encode_gap(
            id=id,
            reason=reason,
            requested=requested,
            oldest=oldest,
            newest=self.mirror.head,
            snapshots=[self.snapshots + name for name in names[:SNAPSHOTS_NAMED]],
            more=len(names) > SNAPSHOTS_NAMED,
        )

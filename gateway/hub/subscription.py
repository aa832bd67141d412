"""One set of selectors and all who follow it; makes the chunks they share."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from gateway.hub.mirror import Mirror
from gateway.hub.subscriber import Subscriber
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.sse import encode_gap

CHUNK_LIMIT_BYTES = 64 * 1024
"""A chunk joins frames up to this; a full connection holds at most one beyond its buffer."""

SNAPSHOTS_NAMED = 100
"""Snapshot URLs in one gap; a wildcard may stand for more."""


class Chunk(NamedTuple):
    """Frames of consecutive events, joined; `end` is the last one's position."""

    data: bytes
    end: Position
    events: int


class Subscription:
    """All subscribers of one selection.

    `current` subscribers have everything that the mirror has tailed; `behind` ones are served
    from the rings by their own position, until they are current.
    """

    __slots__ = ("behind", "current", "mirror", "position", "selection", "snapshots")

    def __init__(self, selection: Selection, mirror: Mirror, snapshots: str) -> None:
        self.selection = selection
        self.mirror = mirror
        self.snapshots = snapshots
        self.position = ORIGIN
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
            mirror, prefixes = self.mirror, self.selection.prefixes
            found = (n for n in mirror.index if n.startswith(prefixes) and mirror.exists(n))
            names += islice(found, SNAPSHOTS_NAMED + 1)
        return encode_gap(
            id=id,
            reason=reason,
            requested=requested,
            oldest=oldest,
            newest=self.mirror.head,
            snapshots=[self.snapshots + name for name in names[:SNAPSHOTS_NAMED]],
            more=len(names) > SNAPSHOTS_NAMED,
        )

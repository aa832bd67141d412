"""Frames joined into what is written at once, made once for all who get it."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.protocol.coding import IDENTITY
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.protocol.stream_coding import encode_private

CHUNK_LIMIT_BYTES = 64 * 1024
"""A chunk joins frames up to this; a full connection holds at most one, or a larger frame."""

_FRAMING_BYTES = 64  # Of one event's frame, about, beside its data.
_CHUNKS_KEPT = 32  # Of one replay: those that start elsewhere than its own pieces are few.


class Chunk:
    """Frames of consecutive events, joined; `end` is the last one's position."""

    __slots__ = ("_coded", "data", "end", "events")

    def __init__(self, data: bytes, end: Position, events: int) -> None:
        self.data = data
        self.end = end
        self.events = events
        self._coded: dict[str, bytes] | None = None

    def private(self, coding: str) -> bytes:
        """Return the chunk in a content coding, in bytes that build on no others."""
        if coding == IDENTITY:
            return self.data
        if self._coded is None:
            self._coded = {}
        data = self._coded.get(coding)
        if data is None:
            data = self._coded[coding] = encode_private(coding, self.data)
        return data


def frame_bytes(entry: Entry) -> int:
    """Return about how many bytes the entry's frame has, without making it."""
    return len(entry.event.data) + _FRAMING_BYTES


def count_piece(entries: Sequence[Entry], start: int = 0) -> int:
    """Return the end of the longest run from `start` that makes a chunk; at least one entry."""
    size = 0
    for at in range(start, len(entries)):
        size += frame_bytes(entries[at])
        if size > CHUNK_LIMIT_BYTES and at > start:
            return at
    return len(entries)


class Replay:
    """Entries from `start` to `end`, merged once for all who come back to somewhere between.

    Whoever begins at the same event gets the same chunk, and after it all get the same ones.
    """

    __slots__ = ("_chunks", "_cuts", "_entries", "_ids", "_join", "end", "start")

    def __init__(
        self, start: Position, entries: Sequence[Entry], join: Callable[[Sequence[Entry]], Chunk]
    ) -> None:
        self.start = start
        self.end = entries[-1].id
        self._join = join
        self._entries = entries
        self._ids = [entry.id for entry in entries]
        self._cuts: list[int] = []
        at = 0
        while at < len(entries):
            at = count_piece(entries, at)
            self._cuts.append(at)
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()

    def chunk_after(self, position: Position) -> Chunk:
        """Return the chunk of the entries next after a position before `end`."""
        low = bisect_right(self._ids, position)
        chunk = self._chunks.get(low)
        if chunk is None:
            high = self._cuts[bisect_right(self._cuts, low)]
            chunk = self._chunks[low] = self._join(self._entries[low:high])
            if len(self._chunks) > _CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        else:
            self._chunks.move_to_end(low)
        return chunk

"""One slice of one channel as bytes that all its readers share; writes to no connection."""

import asyncio
from collections.abc import Sequence

from gateway.hub.heartbeats import HEARTBEAT
from gateway.protocol.coding import IDENTITY
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.ring import Entry
from gateway.protocol.slice import boundary, encode_slice_end, encode_slice_start
from gateway.protocol.stream_coding import BodyEncoder

_EMPTY_BYTES = 2048
_PIECE_BYTES = 64 * 1024
"""Written at once: no more than this and the connection's buffer waits for a slow reader."""


_INLINE_LIMIT_BYTES = 16 * 1024
"""What is compressed at once, in about a millisecond; more would hold up all other events."""


class Log:
    """A slice's bytes in one content coding, from the first one on; each was made once.

    `ended` says that it is whole, `cut` that it never will be.
    """

    __slots__ = ("_encoder", "_moved", "_parts", "cut", "ended", "size_bytes")

    def __init__(self, coding: str, data: bytes) -> None:
        self.ended = False
        self.cut = False
        self.size_bytes = 0
        self._parts: list[bytes] = []
        self._moved = asyncio.Event()
        self._encoder = None if coding == IDENTITY else BodyEncoder(coding)
        self.append(data)

    def append(self, data: bytes) -> None:
        """Add bytes, to be decoded at once."""
        self._add(data if self._encoder is None else self._encoder.encode(data))

    def end(self) -> None:
        """Add what a body in this coding ends with."""
        if self._encoder is not None:
            self._add(self._encoder.finish())
            self._encoder = None
        self.ended = True
        self._announce()

    def cut_off(self) -> None:
        """Say that nothing more comes, though it is not whole."""
        self.cut = True
        self._announce()

    def _add(self, part: bytes) -> None:
        for at in range(0, len(part), _PIECE_BYTES):
            self._parts.append(part[at : at + _PIECE_BYTES])
        self.size_bytes += len(part)
        self._announce()

    def _announce(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def after(self, at: int) -> tuple[bytes, int]:
        """Return the next bytes after a reader's place, which is 0 at first, and its next place."""
        parts, size, end = self._parts, 0, at
        while end < len(parts) and (end == at or size + len(parts[end]) <= _PIECE_BYTES):
            size += len(parts[end])
            end += 1
        return parts[at] if end == at + 1 else b"".join(parts[at:end]), end

    def rest(self, at: int) -> tuple[bytes, int]:
        """Return all bytes after a place, and the place after them."""
        return b"".join(self._parts[at:]), len(self._parts)

    async def changed(self) -> None:
        """Wait until there are more bytes, or the end."""
        await self._moved.wait()


class Slice:
    """The events of one channel between two boundaries, in every coding that was asked for.

    `broken` says that it must be cut off: it can never be whole, or grew past its bound. Times
    are those of the event loop, in seconds.
    """

    def __init__(self, namespace: Namespace, channel: str, number: int, retry_ms: int) -> None:
        self.namespace = namespace
        self.channel = channel
        self.number = number
        self.start = boundary(number, namespace.slice_seconds)
        self.end = boundary(number + 1, namespace.slice_seconds)
        self.readers = 0
        self.counted_bytes = 0
        self.finished = False
        self.broken = False
        self._enveloped = namespace.reducer is Reducer.KEYED
        self._plain = Log(IDENTITY, encode_slice_start(retry_ms))
        self._logs = {IDENTITY: self._plain}
        self._making: dict[str, asyncio.Task[Log]] = {}
        self._spoke_at = asyncio.get_running_loop().time()

    @property
    def size_bytes(self) -> int:
        """Bytes of all codings, and about what an empty slice takes."""
        return _EMPTY_BYTES + sum(log.size_bytes for log in self._logs.values())

    def append(self, entries: Sequence[Entry]) -> None:
        """Add the next events that belong to it."""
        if entries:
            self._add(b"".join([entry.frame(self._enveloped) for entry in entries]))
            # A slice that the ring cannot hold could not be served again either.
            if self._plain.size_bytes > 2 * self.namespace.ring_limit_bytes:
                self.broken = True

    def beat(self, before: float) -> None:
        """Add a comment when nothing was added since `before`."""
        if self._spoke_at <= before:
            self._add(HEARTBEAT)

    def finish(self) -> None:
        """Say that it is whole: all its events are in it."""
        self._add(encode_slice_end(self.number, self.namespace.slice_seconds))
        self.finished = True
        for log in self._logs.values():
            log.end()

    def cut_off(self) -> None:
        """Let every reader go, without an end."""
        for log in self._logs.values():
            log.cut_off()

    async def log(self, coding: str) -> Log:
        """Return its bytes in one of STREAM_CODINGS or identity, made for the first who asks."""
        log = self._logs.get(coding)
        if log is not None:
            return log
        task = self._making.get(coding)
        if task is None:
            # All who ask meanwhile wait for this one; none of them may cancel it.
            task = self._making[coding] = asyncio.create_task(self._make(coding))
        return await asyncio.shield(task)

    async def _make(self, coding: str) -> Log:
        try:
            log = await self._catch_up(coding)
            if self.finished:
                log.end()
            if self._plain.cut:
                log.cut_off()
            self._logs[coding] = log
            return log
        finally:
            del self._making[coding]

    async def _catch_up(self, coding: str) -> Log:
        """Return a log of all bytes so far; much is compressed off the loop."""
        data, at = self._plain.rest(0)
        if len(data) <= _INLINE_LIMIT_BYTES:
            return Log(coding, data)
        log = await asyncio.to_thread(Log, coding, data)
        while True:
            data, at = self._plain.rest(at)
            if len(data) <= _INLINE_LIMIT_BYTES:
                break
            await asyncio.to_thread(log.append, data)
        if data:
            log.append(data)
        return log

    def _add(self, data: bytes) -> None:
        for log in self._logs.values():
            log.append(data)
        self._spoke_at = asyncio.get_running_loop().time()

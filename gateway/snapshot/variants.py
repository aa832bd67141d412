"""Documents rendered once and their variants, each compressed once; folds nothing."""

import asyncio
from collections.abc import Callable

import orjson

from gateway.protocol.coding import IDENTITY, compress
from gateway.protocol.etag import SnapshotTag, digest_body
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position

# Of one that is kept, beside its bodies: objects, keys and entries of dicts. Measured with 20,000.
_OVERHEAD_BYTES = 800


class Rendering:
    """A JSON document of one epoch, true at `position`, as bytes."""

    __slots__ = ("_making", "_variants", "digest", "epoch", "position")

    def __init__(self, body: bytes, epoch: str, position: Position) -> None:
        # What orjson made holds 4 KiB, however small it is, for as long as it is kept: a copy.
        body = bytes(memoryview(body))
        self.position = position
        self.epoch = epoch
        self.digest = digest_body(body)
        self._variants: dict[str, bytes] = {IDENTITY: body}
        self._making: dict[str, asyncio.Task[bytes]] = {}

    @property
    def body(self) -> bytes:
        """The document itself, not compressed."""
        return self._variants[IDENTITY]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes with all variants made so far."""
        return _OVERHEAD_BYTES + sum(map(len, self._variants.values()))

    def tag(self, coding: str) -> SnapshotTag:
        """Return the strong entity tag of one variant."""
        return SnapshotTag(self.epoch, self.position, self.digest, coding)

    async def variant(
        self, coding: str, inline_limit_bytes: int, made: Callable[[], None]
    ) -> bytes:
        """Return the body in one content coding, made by the first who asks.

        Bodies over `inline_limit_bytes` are compressed off the loop; `made` is called once
        per variant.
        """
        variant = self._variants.get(coding)
        if variant is not None:
            return variant
        body = self._variants[IDENTITY]
        if len(body) <= inline_limit_bytes:
            made()
            variant = self._variants[coding] = compress(coding, body)
            return variant
        task = self._making.get(coding)
        if task is None:
            made()
            # All who ask meanwhile wait for this one; none of them may cancel it.
            task = asyncio.create_task(asyncio.to_thread(compress, coding, body))
            self._making[coding] = task
        variant = self._variants[coding] = await asyncio.shield(task)
        self._making.pop(coding, None)
        return variant


class Snapshot(Rendering):
    """A channel's state as JSON bytes, true at `position`.

    `rendered_at` is monotonic time in seconds.
    """

    __slots__ = ("channel", "rendered_at")

    def __init__(
        self,
        namespace: Namespace,
        channel: str,
        position: Position,
        epoch: str,
        state: object,
        rendered_at: float,
    ) -> None:
        document = {
            "channel": channel,
            "id": str(position),
            "epoch": epoch,
            "reducer": namespace.reducer,
            "slice_seconds": namespace.slice_seconds,
            "state": state,
        }
        super().__init__(orjson.dumps(document), epoch, position)
        self.channel = channel
        self.rendered_at = rendered_at

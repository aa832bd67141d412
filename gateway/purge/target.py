"""What a cache to be purged is to the purger, and what can go wrong with one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gateway.protocol.cache_control import channel_key, snapshot_key
from gateway.protocol.errors import GatewayError
from gateway.protocol.position import Position


class Purge(NamedTuple):
    """A channel whose kept snapshot is old; the new one reaches at least to `position`.

    When it `ended`, all that is kept of it is old: its history is gone.
    """

    channel: str
    position: Position
    ended: bool = False


def key_of(purge: Purge) -> str:
    """Return the key of all that is old: the snapshot, or with the channel's end everything."""
    return channel_key(purge.channel) if purge.ended else snapshot_key(purge.channel)


class PurgeFailed(GatewayError):
    """A target did not take a purge; `retry_after_seconds` is what it asked for, 0 for nothing."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class Target(Protocol):
    """One kind of cache. `batch_limit` is how many channels one call may name."""

    @property
    def batch_limit(self) -> int: ...

    async def purge(self, namespace: str, purges: Sequence[Purge]) -> None:
        """Have every kept answer of these channels fetched anew; raises PurgeFailed.

        To repeat it does no harm.
        """

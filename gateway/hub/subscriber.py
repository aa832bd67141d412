"""One open stream: its connection, its position, never a queue."""

from typing import TYPE_CHECKING, Protocol

from gateway.protocol.position import Position

if TYPE_CHECKING:
    from gateway.hub.subscription import Subscription


class Connection(Protocol):
    """The seam to the transport. The hub calls it on the loop; it never awaits."""

    def write(self, chunk: bytes) -> bool:
        """Take the whole chunk; return False when no more is taken until it is writable again.

        The transport then calls the hub's `writable`.
        """

    def close(self) -> None:
        """End the stream after what was written."""

    def abort(self) -> None:
        """End the stream at once; what was not sent is dropped."""


class Subscriber:
    """A reader of one subscription.

    `position` is the last that it got or came with; while it is current, the subscription's
    own may be further on and counts. `full_since` is monotonic time in seconds, 0 while its
    connection takes more. `lagging` says that it was current and fell behind. `since` says
    that it asked for a span of time, not for a position.
    """

    __slots__ = ("connection", "full_since", "lagging", "position", "since", "subscription")

    def __init__(
        self,
        connection: Connection,
        subscription: "Subscription",
        position: Position,
        since: bool = False,
    ) -> None:
        self.connection = connection
        self.subscription = subscription
        self.position = position
        self.since = since
        self.full_since = 0.0
        self.lagging = False

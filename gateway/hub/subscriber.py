"""One open stream: its connection, its position, never a queue."""

from typing import TYPE_CHECKING, Protocol

from gateway.protocol.position import Position

if TYPE_CHECKING:
    from gateway.hub.group import Group
    from gateway.hub.subscription import Subscription


class Connection(Protocol):
    """The seam to the transport. The hub calls it on the loop; it never awaits.

    Nothing is written to a connection that does not take more: the rest of a chunk comes first.
    """

    @property
    def fd(self) -> int:
        """The socket that passes write to directly, or -1 when they must call `write`."""

    def write(self, chunk: bytes) -> bool:
        """Take the whole chunk; return False when no more is taken until it is writable again.

        The transport then calls the hub's `writable`, or its `leave` when the reader is gone.
        """

    def keep(self, chunk: bytes, outcome: int) -> None:
        """Go on with a chunk of which a pass wrote `outcome` bytes, or failed with `-errno`.

        Takes no more until it is writable again. Only for a connection that has an `fd`.
        """

    def count_unsent(self) -> int:
        """Return how many bytes the reader has not got yet, here and in the kernel."""

    def close(self) -> None:
        """End the stream; everything before was handed over, or the connection takes no more."""

    def abort(self) -> None:
        """End the stream at once; what was not sent is dropped."""


class Subscriber:
    """A reader of one subscription.

    `position` is the last that it got or came with; while it is current, the subscription's
    own may be further on and counts. It is current while it has a `group`, in which it stands
    at `slot`. `full_since` is monotonic time in seconds, 0 while its connection takes more;
    it moves on whenever the reader took some of the `unsent` bytes.
    `lagging` says that it was current and fell behind, `since` that it asked for a span of time,
    not for a position, `ending` that it is closed once its connection took everything.
    """

    __slots__ = (
        "coding", "connection", "ending", "full_since", "group", "lagging", "open",
        "position", "since", "slot", "subscription", "unsent",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        subscription: "Subscription",
        position: Position,
        *,
        since: bool = False,
        coding: str = "identity",
    ) -> None:
        self.connection = connection
        self.subscription = subscription
        self.position = position
        self.since = since
        self.coding = coding
        self.group: Group | None = None
        self.slot = -1
        self.full_since = 0.0
        self.unsent = 0
        self.lagging = False
        self.ending = False
        self.open = True

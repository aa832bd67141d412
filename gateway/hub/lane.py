"""The current subscribers of one content coding, and the encoder that they share."""

from collections.abc import Iterator

from gateway.hub.chunk import Chunk
from gateway.hub.group import Group, KeptGroup
from gateway.hub.subscriber import Subscriber
from gateway.protocol.coding import IDENTITY
from gateway.protocol.stream_coding import StreamEncoder, open_encoder

Leg = tuple[Group, bytes]


class Lane:
    """Subscribers of one subscription who accept one coding.

    With a coding, those who joined since its encoder last cut its history stand `apart`: they
    get the same data as bytes of their own until it does so again. At rest, an encoder without
    history has nobody apart.
    """

    __slots__ = ("_apart", "_encoder", "_together")

    def __init__(self, coding: str) -> None:
        self._encoder: StreamEncoder | None = None if coding == IDENTITY else open_encoder(coding)
        # Sockets and kept transports are walked differently.
        self._together: tuple[Group, Group] = (Group(), KeptGroup())
        self._apart: tuple[Group, Group] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._groups()))

    def __iter__(self) -> Iterator[Subscriber]:
        for group in self._groups():
            yield from filter(None, group.members)

    def _groups(self) -> tuple[Group, ...]:
        return self._together + (self._apart or ())

    def plain_groups(self) -> tuple[Group, ...]:
        """Return the groups of readers who take the chunks as they are."""
        return () if self.coded else self._together

    @property
    def coded(self) -> bool:
        """Whether an encoder makes what is written."""
        return self._encoder is not None

    @property
    def open(self) -> bool:
        """Whether the shared bytes build on some that a newcomer has not seen."""
        return self._encoder is not None and self._encoder.open

    def add(self, subscriber: Subscriber) -> None:
        """Take in a subscriber that has everything; between passes only."""
        groups = self._together
        if self.open:
            if self._apart is None:
                self._apart = (Group(), KeptGroup())
            groups = self._apart
        _place(subscriber, groups).add(subscriber)

    def encode(self, chunk: Chunk, now: float, *, sync: bool = False) -> list[Leg]:
        """Return who is to get which bytes, and hold them until `let_go`."""
        if self._encoder is None:
            legs = [(group, chunk.data) for group in self._together]
        else:
            if not any(map(len, self._together)):
                self._encoder.reset()
                self._gather()
            data = self._encoder.encode(chunk.data, chunk.events, now, sync=sync)
            legs = [(group, data) for group in self._together]
            if self._apart is not None:
                private = chunk.private(self._encoder.coding)
                legs += [(group, private) for group in self._apart]
        legs = [leg for leg in legs if len(leg[0])]
        for group, _ in legs:
            group.hold()
        return legs

    def let_go(self) -> None:
        """End a pass; who stood apart joins the others when the history was cut."""
        for group in self._groups():
            group.let_go()
        if not self.open:
            self._gather()

    def _gather(self) -> None:
        for group in self._apart or ():
            for subscriber in list(filter(None, group.members)):
                group.discard(subscriber)
                _place(subscriber, self._together).add(subscriber)
        self._apart = None


def _place(subscriber: Subscriber, groups: tuple[Group, Group]) -> Group:
    """Return which of two groups a subscriber belongs to: that of sockets, or the other."""
    sockets, kept = groups
    return sockets if subscriber.connection.fd >= 0 else kept

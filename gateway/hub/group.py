"""Subscribers who get the same bytes, side by side in an array; knows nothing of positions."""

from array import array

from gateway.hub.subscriber import Subscriber
from gateway.hub.writing import write_all


class Group:
    """Subscribers whose sockets a tight loop walks.

    Between passes whoever leaves is replaced by the last. While a pass walks the group it is
    `held`: nobody is added, and a place that falls empty stays empty until it is let go.
    `grown` says that somebody was added since the last round of heartbeats began.
    """

    __slots__ = ("_dead", "_fds", "_silent", "grown", "held", "members")

    def __init__(self) -> None:
        self.members: list[Subscriber | None] = []
        self.held = False
        self.grown = False
        self._silent = 0
        self._fds = array("i")
        self._dead: list[int] = []

    def __len__(self) -> int:
        return len(self.members) - len(self._dead)

    def add(self, subscriber: Subscriber) -> None:
        """Append a subscriber; not while a pass is under way."""
        assert not self.held
        subscriber.group, subscriber.slot = self, len(self.members)
        self.members.append(subscriber)
        self._fds.append(subscriber.connection.fd)
        self.grown = True

    def discard(self, subscriber: Subscriber) -> None:
        """Take a subscriber out, before its socket is closed: the number is reused at once."""
        slot = subscriber.slot
        assert self.members[slot] is subscriber
        subscriber.group, subscriber.slot = None, -1
        if self.held:
            self.members[slot] = None
            self._fds[slot] = -1
            self._dead.append(slot)
        else:
            self._fill(slot)

    def hold(self) -> None:
        """Keep every place as it is: a pass begins."""
        self.held = True

    def let_go(self) -> None:
        """Fill the places that fell empty: the pass is over."""
        self.held = False
        # From the end on, so that whoever is last is still there.
        for slot in sorted(self._dead, reverse=True):
            self._fill(slot)
        self._dead.clear()

    def _fill(self, slot: int) -> None:
        last = self.members.pop()
        fd = self._fds.pop()
        if slot < len(self.members):
            assert last is not None
            self.members[slot], self._fds[slot], last.slot = last, fd, slot

    def write(self, data: bytes, start: int, stop: int) -> list[Subscriber]:
        """Write to the places from `start` up to `stop`; return who takes no more for now."""
        full = []
        for slot, outcome in write_all(self._fds, start, stop, data):
            subscriber = self.members[slot]
            assert subscriber is not None
            subscriber.connection.keep(data, outcome)
            full.append(subscriber)
        return full

    def begin_round(self) -> None:
        """Begin a round of heartbeats: all present members are to get one."""
        self._silent = len(self.members)
        self.grown = False

    def beat(self, data: bytes, parts_left: int) -> tuple[int, list[Subscriber]]:
        """Write to the next of the round's `parts_left` parts; return how many, and who is full.

        From the end on: whoever takes the place of a member that left is written to sooner.
        """
        stop = min(self._silent, len(self.members))
        self._silent = stop - -(-stop // parts_left)
        return stop - self._silent, self.write(data, self._silent, stop)


class KeptGroup(Group):
    """Subscribers whose transports are written to one by one."""

    __slots__ = ()

    def write(self, data: bytes, start: int, stop: int) -> list[Subscriber]:
        """Write to the places from `start` up to `stop`; return who takes no more for now."""
        return [
            subscriber
            for subscriber in self.members[start:stop]
            if subscriber is not None and not subscriber.connection.write(data)
        ]

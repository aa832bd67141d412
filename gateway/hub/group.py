"""Subscribers who get the same bytes, side by side in an array; knows nothing of positions."""

from array import array

from gateway.hub.subscriber import Subscriber
from gateway.hub.writing import write_all

_SLOWDOWN = 10  # A part of a round shrinks by at most this fraction from one round to the next.


class Group:
    """Subscribers whose sockets a tight loop walks.

    Between passes whoever leaves is replaced by the last. While a pass walks the group it is
    `held`: nobody is added, and a place that falls empty stays empty until it is let go.
    A round of heartbeats goes from the first on, so that nobody's next one is late for a change
    of places: whoever gets another one only moves towards the first.
    """

    __slots__ = ("_beaten_places", "_dead", "_fds", "_share", "held", "members")

    def __init__(self) -> None:
        self.members: list[Subscriber | None] = []
        self.held = False
        self._beaten_places = 0
        self._share = 0
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
        """Keep every place as it is: a pass begins, and no round of heartbeats goes on."""
        self.held = True
        self._beaten_places = 0

    def let_go(self) -> None:
        """Fill the places that fell empty: the pass is over."""
        self.held = False
        # From the end on, so that whoever is last is still there.
        for slot in sorted(self._dead, reverse=True):
            self._fill(slot)
        self._dead.clear()

    def _fill(self, slot: int) -> None:
        if slot < self._beaten_places:
            # The last one has not got this round's heartbeat: it must not stand before who has.
            self._beaten_places -= 1
            self._move(self._beaten_places, slot)
            slot = self._beaten_places
        self._move(len(self.members) - 1, slot)
        self.members.pop()
        self._fds.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            member = self.members[source]
            assert member is not None
            self.members[target], self._fds[target] = member, self._fds[source]
            member.slot = target

    def write(self, data: bytes, start: int, stop: int) -> list[Subscriber]:
        """Write to the places from `start` up to `stop`; return who takes no more for now."""
        full = []
        for slot, outcome in write_all(self._fds, start, stop, data):
            subscriber = self.members[slot]
            assert subscriber is not None
            subscriber.connection.keep(data, outcome)
            full.append(subscriber)
        return full

    def begin_round(self, parts: int) -> None:
        """Begin a round of heartbeats, in so many parts: all members are to get one."""
        self._beaten_places = 0
        # Where many have left, the others' turns come later than in the round before, but only
        # by a little in each: nobody waits much longer than an interval.
        self._share = max(-(-len(self.members) // parts), self._share - self._share // _SLOWDOWN)

    def beat(self, data: bytes, parts_left: int) -> tuple[int, list[Subscriber]]:
        """Write to the next of the round's `parts_left` parts; return how many, and who is full."""
        start, size = self._beaten_places, len(self.members)
        share = max(self._share, -(-(size - start) // parts_left))
        self._beaten_places = min(start + share, size)
        return self._beaten_places - start, self.write(data, start, self._beaten_places)


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

"""One set of selectors and all who follow it; makes the chunks they share, writes nothing."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from gateway.hub.chunk import Chunk, Replay, count_piece, frame_bytes
from gateway.hub.group import Group
from gateway.hub.lane import Lane, Leg
from gateway.hub.mirror import Mirror
from gateway.hub.subscriber import Subscriber
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.sse import encode_gap

REPLAY_LIMIT_BYTES = 1024 * 1024
"""Merging rings costs by their number, so it is done for this much at a time, and shared."""

SNAPSHOTS_NAMED = 100
"""Snapshot URLs in one gap; a wildcard may stand for more."""


class Pass:
    """One chunk on its way to all current subscribers: which of them have got it."""

    __slots__ = ("_at", "_leg", "end", "events", "lanes", "legs")

    def __init__(self, chunk: Chunk, lanes: list[Lane], legs: list[Leg]) -> None:
        self.end = chunk.end
        self.events = chunk.events
        self.lanes = lanes
        self.legs = legs
        self._leg = 0
        self._at = 0

    @property
    def over(self) -> bool:
        """Whether every place was written to."""
        return self._leg == len(self.legs)

    def advance(self, writes: int) -> tuple[int, list[Subscriber]]:
        """Write to the next places, of one group; return how many, and who takes no more."""
        group, data = self.legs[self._leg]
        start, size = self._at, len(group.members)
        stop = min(start + writes, size)
        full = group.write(data, start, stop)
        self._leg, self._at = (self._leg + 1, 0) if stop == size else (self._leg, stop)
        return stop - start, full

    def reached(self, subscriber: Subscriber) -> bool:
        """Tell whether the chunk was written to a subscriber."""
        for number, (group, _) in enumerate(self.legs):
            if subscriber.group is group:
                return number < self._leg or (number == self._leg and subscriber.slot < self._at)
        return False


class Subscription:
    """All subscribers of one selection.

    *Current* subscribers stand in lanes and have everything up to `position`, but for the pass
    that is under way; what was tailed since is `waiting` for the next one. Those `behind` are
    served from the rings by their own position. When one of them has everything it becomes
    current, or, while others have yet to be written to, a newcomer until that is done.
    Times are monotonic seconds. `due` is when the next pass is to begin: None when nothing waits,
    0 once it stands in the queue of those to be written. `passed_at` is what the time to join is
    counted from. Heartbeats count from `silent_since`; of the round that is under way
    `beaten_parts` are done.
    """

    __slots__ = (
        "_lanes",
        "beaten_parts",
        "behind",
        "due",
        "mirror",
        "newcomers",
        "passed_at",
        "passing",
        "position",
        "replay",
        "reset",
        "selection",
        "silent_since",
        "snapshots",
        "waiting",
        "waiting_bytes",
    )  # fmt: skip

    def __init__(self, selection: Selection, mirror: Mirror, snapshots: str, now: float) -> None:
        self.selection = selection
        self.mirror = mirror
        self.snapshots = snapshots
        self.position = ORIGIN
        self.replay: Replay | None = None
        # The last states that stood for events, and what they are the states of.
        self.reset: tuple[object, Chunk] | None = None
        self.behind: set[Subscriber] = set()
        self.newcomers: set[Subscriber] = set()
        self.passing: Pass | None = None
        self.waiting: list[Entry] = []
        self.waiting_bytes = 0
        self.due: float | None = None
        self.passed_at = 0.0
        self.silent_since = now
        self.beaten_parts = 0
        self._lanes: dict[str, Lane] = {}

    def __len__(self) -> int:
        return self.count_current() + len(self.behind) + len(self.newcomers)

    def count_current(self) -> int:
        """Return how many have everything but what is on its way to all of them."""
        return sum(map(len, self._lanes.values()))

    def members(self) -> Iterator[Subscriber]:
        """Yield every subscriber."""
        yield from self.current()
        yield from self.behind
        yield from self.newcomers

    def current(self) -> Iterator[Subscriber]:
        """Yield those that stand in lanes."""
        for lane in self._lanes.values():
            yield from lane

    def lanes(self) -> list[Lane]:
        """Return the lanes; somebody stands in each."""
        return list(self._lanes.values())

    def plain_groups(self) -> list[Group]:
        """Return the groups of readers without an encoder that they share."""
        return [group for lane in self._lanes.values() for group in lane.plain_groups()]

    # -- who is where -------------------------------------------------------------------------

    @property
    def at_rest(self) -> bool:
        """Whether everything tailed was written to all current subscribers."""
        return self.passing is None and not self.waiting

    def position_of(self, subscriber: Subscriber) -> Position:
        """Return what a current subscriber has got."""
        reached = self.passing is not None and self.passing.reached(subscriber)
        shared = self.passing.end if reached and self.passing is not None else self.position
        return max(subscriber.position, shared)

    def arrive(self, subscriber: Subscriber) -> None:
        """Make a subscriber that has everything tailed so far current, now or soon."""
        self.behind.discard(subscriber)
        subscriber.lagging = False
        if not self.behind:
            self.replay = self.reset = None
        if self.at_rest:
            self.admit(subscriber)
        else:
            self.newcomers.add(subscriber)

    def admit(self, subscriber: Subscriber) -> None:
        """Put a subscriber into its lane; between passes only."""
        lane = self._lanes.get(subscriber.coding)
        if lane is None:
            lane = self._lanes[subscriber.coding] = Lane(subscriber.coding)
        lane.add(subscriber)

    def recede(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its lane, to be served by its own position from now on."""
        if subscriber.group is not None:
            subscriber.position = self.position_of(subscriber)
            self._step_out(subscriber)
        self.newcomers.discard(subscriber)
        self.behind.add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a subscriber, wherever it is."""
        if subscriber.group is not None:
            self._step_out(subscriber)
        self.newcomers.discard(subscriber)
        self.behind.discard(subscriber)
        if not self.behind:
            self.replay = self.reset = None

    def _step_out(self, subscriber: Subscriber) -> None:
        assert subscriber.group is not None
        subscriber.group.discard(subscriber)
        # With nobody in it, a lane's encoder has no use. A pass under way keeps its own list.
        if not len(self._lanes[subscriber.coding]):
            del self._lanes[subscriber.coding]

    # -- what is written ----------------------------------------------------------------------

    def wait(self, entries: Sequence[Entry]) -> None:
        """Keep new entries for the next pass."""
        self.waiting += entries
        self.waiting_bytes += sum(map(frame_bytes, entries))

    def take_piece(self) -> list[Entry]:
        """Return the entries of the next pass: as many as one chunk holds."""
        end = count_piece(self.waiting)
        piece = self.waiting[:end]
        del self.waiting[:end]
        self.waiting_bytes -= sum(map(frame_bytes, piece))
        return piece

    def drop_waiting(self) -> None:
        """Forget what waits: nobody is current, or all are served by position again."""
        self.waiting.clear()
        self.waiting_bytes = 0

    def chunk_after(self, position: Position) -> Chunk | None:
        """Return a subscriber's next chunk, None when it has all that was tailed.

        The position was judged Resumable, or lies within the replay that is at hand.
        """
        replay = self.replay
        if replay is None or not self.has_replay(position):
            entries = self.mirror.entries_after(self.selection, position, REPLAY_LIMIT_BYTES)
            if not entries:
                return None
            self.replay = replay = Replay(position, entries, self.join)
        return replay.chunk_after(position)

    def has_replay(self, position: Position) -> bool:
        """Tell whether the entries after a position are at hand, whatever the rings dropped."""
        return self.replay is not None and self.replay.start <= position < self.replay.end

    def join(self, entries: Sequence[Entry]) -> Chunk:
        """Return the entries' frames as one chunk."""
        enveloped = self.selection.enveloped
        frames = [
            self._end_of_channel(entry) if entry.event.deletion else entry.frame(enveloped)
            for entry in entries
        ]
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        return Chunk(data, entries[-1].id, len(frames))

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
            below = chain.from_iterable(map(self.mirror.names_from, self.selection.prefixes))
            names += islice(filter(self.mirror.exists, below), SNAPSHOTS_NAMED + 1)
        return encode_gap(
            id=id,
            reason=reason,
            requested=requested,
            oldest=oldest,
            newest=self.mirror.head,
            snapshots=[self.snapshots + name for name in names[:SNAPSHOTS_NAMED]],
            more=len(names) > SNAPSHOTS_NAMED,
        )

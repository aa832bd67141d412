"""Passes: one write per current subscriber of all that its subscription got meanwhile.

A subscription that was quiet is written to at once, a busy one every few milliseconds, and a
pass over many subscribers is done in parts, so that whatever else the loop has to do gets its
turn in between. Who takes no more is left to others.
"""

import asyncio
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter

from gateway.hub.chunk import CHUNK_LIMIT_BYTES, Chunk
from gateway.hub.counters import HubCounters
from gateway.hub.mirror import Mirror
from gateway.hub.subscriber import Subscriber
from gateway.hub.subscription import Pass, Subscription
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry

TURN_WRITES = 1024
"""Written before others get the loop: at 4 us each, the cost of one send(), about 4 ms."""

ROOM_BYTES = 1024 * 1024
"""May wait for a subscription's next passes before its namespace's tail is held back."""


class Passes:
    """Writes to current subscribers; all of it synchronous, in turns of the loop.

    `join_seconds` is the least time from one pass of a subscription to its next: from its end on
    when it carried several events, else from its beginning, less what it took. `write` writes to
    one subscriber. `lag` is told of whoever takes no more, and takes it off its lane;
    `observe` of the seconds from the oldest event of a pass to its beginning.
    """

    def __init__(
        self,
        join_seconds: float,
        counters: HubCounters,
        write: Callable[[Subscriber, Chunk], bool],
        lag: Callable[[Subscriber], None],
        observe: Callable[[float], None],
    ) -> None:
        self._observe = observe
        self._join_seconds = join_seconds
        self._counters = counters
        self._write = write
        self._lag = lag
        self._ready: deque[Subscription] = deque()
        self._later: list[tuple[float, int, Subscription]] = []
        self._order = count()
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._crowded: defaultdict[Mirror, set[Subscription]] = defaultdict(set)
        self._room: dict[Mirror, asyncio.Future[None]] = {}

    # -- what is offered ----------------------------------------------------------------------

    def offer(self, subscription: Subscription, entries: Sequence[Entry]) -> None:
        """Take a subscription's new entries; `run` writes them, now or a little later."""
        if subscription.at_rest and not subscription.count_current():
            # Those behind find them in the rings.
            subscription.position = entries[-1].id
            return
        subscription.wait(entries)
        if subscription.waiting_bytes > ROOM_BYTES:
            self._crowded[subscription.mirror].add(subscription)
        if subscription.passing is None:
            self._schedule(subscription)

    def _schedule(self, subscription: Subscription) -> None:
        now = time.monotonic()
        # A full chunk gains nothing by waiting.
        full = subscription.waiting_bytes >= CHUNK_LIMIT_BYTES
        due = 0.0 if full else subscription.passed_at + self._join_seconds
        if due <= now:
            if subscription.due != 0.0:
                subscription.due = 0.0
                self._ready.append(subscription)
        elif subscription.due is None:
            subscription.due = due
            heappush(self._later, (due, next(self._order), subscription))
            self._arm(now)

    def _arm(self, now: float) -> None:
        """See that the loop wakes us when the next pass is due."""
        if not self._later:
            return
        first = self._later[0][0]
        if self._timer is not None:
            if self._wakes_at <= first:
                return
            self._timer.cancel()
        self._wakes_at = first
        delay = max(0.0, first - now)
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        # The clock of the loop may be a little ahead of ours.
        now = time.monotonic() + 0.001
        while self._later and self._later[0][0] <= now:
            due, _, subscription = heappop(self._later)
            if subscription.due == due:
                subscription.due = 0.0
                self._ready.append(subscription)
        self._arm(now)
        self.run()

    def heartbeat(self, subscription: Subscription, data: bytes) -> None:
        """Write a comment to all readers who share an encoder, and cut its history there.

        Only for a subscription at rest. Its next event finds the encoder as if new.
        """
        lanes = [lane for lane in subscription.lanes() if lane.coded]
        if lanes:
            chunk = Chunk(data, subscription.position, 0)
            now = time.monotonic()
            legs = [leg for lane in lanes for leg in lane.encode(chunk, now, sync=True)]
            subscription.passing = Pass(chunk, lanes, legs)
            subscription.due = 0.0
            self._ready.append(subscription)

    def forget(self, subscription: Subscription) -> None:
        """Drop what is on its way to a subscription; whoever was to get it is served otherwise."""
        if subscription.passing is not None:
            for lane in subscription.passing.lanes:
                lane.let_go()
        subscription.passing = None
        subscription.drop_waiting()
        subscription.due = None
        self._make_room(subscription)

    # -- writing ------------------------------------------------------------------------------

    def run(self) -> None:
        """Write what is due, up to a turn's worth, and see that the rest is written, too."""
        left = TURN_WRITES
        while self._ready and left > 0:
            subscription = self._ready.popleft()
            if subscription.due != 0.0:
                continue  # It was dropped meanwhile.
            left -= self._advance(subscription, left)
            if subscription.passing is not None:
                self._ready.append(subscription)
        if self._ready and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        self.run()

    def _advance(self, subscription: Subscription, writes: int) -> int:
        """Write a part of a subscription's pass; return about what it cost, in writes."""
        passing = subscription.passing or self._begin(subscription)
        done = 1
        while not passing.over and done < writes:
            written, full = passing.advance(writes - done)
            done += written
            for subscriber in full:
                self._lag(subscriber)
        if passing.over:
            self._end(subscription, passing)
        return done

    def _begin(self, subscription: Subscription) -> Pass:
        entries = subscription.take_piece()
        now = time.monotonic()
        subscription.passed_at = subscription.silent_since = now
        subscription.beaten_parts = 0
        chunk = subscription.join(entries)
        self._serve_newcomers(subscription, entries)
        lanes = subscription.lanes()
        legs = [leg for lane in lanes for leg in lane.encode(chunk, now)]
        for group, data in legs:
            self._counters.delivered_bytes += len(data) * len(group)
            self._counters.deliveries += chunk.events * len(group)
        self._counters.passes += 1
        self._observe(max(0.0, time.time() - entries[0].id.ms / 1000))
        subscription.passing = Pass(chunk, lanes, legs)
        self._make_room(subscription)
        return subscription.passing

    def _end(self, subscription: Subscription, passing: Pass) -> None:
        for lane in passing.lanes:
            lane.let_go()
        subscription.position = max(subscription.position, passing.end)
        subscription.passing = None
        subscription.due = None
        for subscriber in list(subscription.newcomers):
            if subscription.at_rest or subscriber.position <= subscription.position:
                subscription.newcomers.discard(subscriber)
                subscription.admit(subscriber)
        now = time.monotonic()
        if passing.events > 1:
            # Events come faster than passes go: were the next one to follow at once, passes would
            # take all the time there is, each for next to nothing.
            subscription.passed_at = now
        elif passing.events == 1:
            # A pass that took long has no fellow to wait for: counted twice, its own time is
            # rest enough from half of the time to join on.
            subscription.passed_at -= now - subscription.passed_at
        if subscription.waiting:
            self._schedule(subscription)

    def _serve_newcomers(self, subscription: Subscription, entries: Sequence[Entry]) -> None:
        """Give those who came during a pass what they lack of the next one."""
        chunks: dict[Position, Chunk | None] = {}
        for subscriber in list(subscription.newcomers):
            position = subscriber.position
            if position not in chunks:
                start = bisect_right(entries, position, key=attrgetter("id"))
                chunks[position] = subscription.join(entries[start:]) if entries[start:] else None
            chunk = chunks[position]
            if chunk is None:
                continue
            subscriber.position = chunk.end
            self._counters.deliveries += chunk.events
            if not self._write(subscriber, chunk):
                self._lag(subscriber)

    # -- holding the tail back ----------------------------------------------------------------

    def room(self, mirror: Mirror) -> "asyncio.Future[None] | None":
        """Return what is done once more may be offered for a namespace; None when it may now."""
        if not self._crowded.get(mirror):
            return None
        future = self._room.get(mirror)
        if future is None:
            future = self._room[mirror] = asyncio.get_running_loop().create_future()
        return future

    def _make_room(self, subscription: Subscription) -> None:
        crowded = self._crowded.get(subscription.mirror)
        if crowded and subscription.waiting_bytes <= ROOM_BYTES:
            crowded.discard(subscription)
            future = None if crowded else self._room.pop(subscription.mirror, None)
            if future is not None and not future.done():
                future.set_result(None)

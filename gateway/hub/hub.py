"""The hub: one write per subscriber of what its subscription got; opens no connections."""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from gateway.hub.mirror import Mirror, Missing, NeedsRings
from gateway.hub.rings import RingReader
from gateway.hub.subscriber import Connection, Subscriber
from gateway.hub.subscription import Chunk, Subscription
from gateway.hub.tail import Tail
from gateway.protocol.errors import GatewayError
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.sse import (
    encode_block,
    encode_comment,
    encode_unavailable,
    jittered_retry_ms,
)

_log = logging.getLogger(__name__)
HEARTBEAT = encode_comment("heartbeat")
_BEATS = 10  # Looks at who was silent, to one heartbeat's interval.
_TURN_LIMIT_BYTES = 256 * 1024  # Written to one subscriber that is behind, before others' turn.
_TURN_RINGS = 512  # Read for one subscriber, before others' turn.
_TURN_SUBSCRIBERS = 64  # Served between two yields to the loop.
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Times of the hub. `snapshots` is the path that snapshot URLs begin with."""

    retry_ms: int = 2000
    heartbeat_seconds: float = 15.0
    write_timeout_seconds: float = 30.0
    snapshots: str = "/snapshots/"


@dataclass(slots=True)
class HubCounters:
    """What the hub did since it began."""

    deliveries: int = 0
    bytes: int = 0
    lagging: int = 0
    gaps: int = 0
    timeouts: int = 0


@dataclass(slots=True)
class _Stall:
    """Subscribers of one namespace whose replay waits for rings from the store."""

    subscribers: set[Subscriber] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Hub:
    """Subscriptions of all namespaces on this worker.

    Everything but `run` is synchronous: membership changes only between passes, and a
    subscriber is attached before it is served, so nothing falls between replay and live.
    """

    def __init__(
        self,
        options: HubOptions,
        observe_delivery: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.counters = HubCounters()
        self.subscribers = 0
        self._options = options
        self._observe_delivery = observe_delivery
        self._subscriptions: dict[Selection, Subscription] = {}
        self._by_channel: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._by_prefix: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._stalls: defaultdict[str, _Stall] = defaultdict(_Stall)

    # -- joining and leaving ------------------------------------------------------------------

    def join(
        self,
        connection: Connection,
        mirror: Mirror,
        selection: Selection,
        position: Position | None,
        *,
        since: bool = False,
        malformed: str = "",
    ) -> Subscriber:
        """Attach a stream and serve it from `position` on, or from now when that is None.

        With `since` the position only bounds a span of time: what is left of it is served.
        `malformed` is a position that could not be read: a gap says so.
        """
        subscription = self._subscriptions.get(selection) or self._open(selection, mirror)
        start = mirror.head if position is None else position
        subscriber = Subscriber(connection, subscription, start, since)
        subscription.behind.add(subscriber)
        self.subscribers += 1
        first = encode_block(retry_ms=self._options.retry_ms, id=start)
        if malformed:
            self.counters.gaps += 1
            first += subscription.gap("malformed", malformed, start, start)
        if self._write(subscriber, first):
            self._catch_up(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Detach a stream whose connection is gone or ends; a second call does nothing."""
        subscription = subscriber.subscription
        if subscriber not in subscription:
            return
        subscription.current.discard(subscriber)
        subscription.behind.discard(subscriber)
        self._stalls[subscription.selection.namespace].subscribers.discard(subscriber)
        if not subscription.behind:
            subscription.replay = None
        self.subscribers -= 1
        if not len(subscription):
            self._forget(subscription)

    def writable(self, subscriber: Subscriber) -> None:
        """The connection takes more again: go on where the subscriber is."""
        if subscriber in subscriber.subscription.behind:
            subscriber.full_since = 0.0
            self._catch_up(subscriber)

    def followers(self, channel: str) -> int:
        """Return how many streams of this worker get the channel's events."""
        return sum(map(len, self._subscriptions_of(channel)))

    def count_lagging(self) -> int:
        """Return how many streams are not current."""
        return sum(len(subscription.behind) for subscription in self._subscriptions.values())

    def _open(self, selection: Selection, mirror: Mirror) -> Subscription:
        subscription = Subscription(selection, mirror, self._options.snapshots)
        subscription.written_at = time.monotonic()
        self._subscriptions[selection] = subscription
        for channel in selection.channels:
            self._by_channel[channel].add(subscription)
        for prefix in selection.prefixes:
            self._by_prefix[prefix].add(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        selection = subscription.selection
        del self._subscriptions[selection]
        for table, names in (
            (self._by_channel, selection.channels),
            (self._by_prefix, selection.prefixes),
        ):
            for name in names:
                table[name].discard(subscription)
                if not table[name]:
                    del table[name]

    # -- what the tail brings -----------------------------------------------------------------

    def take(self, mirror: Mirror, entries: Sequence[Entry]) -> None:
        """Write the mirror's new entries to all who follow them."""
        shares: defaultdict[Subscription, list[Entry]] = defaultdict(list)
        for entry in entries:
            for subscription in self._subscriptions_of(entry.event.channel):
                shares[subscription].append(entry)
        for subscription, share in shares.items():
            # Its subscribers were current up to the entry before these.
            for chunk in subscription.chunks(share):
                self._pass(subscription, chunk)
        now = time.time()
        for entry in {entry.id: entry for share in shares.values() for entry in share}.values():
            self._observe_delivery(max(0.0, now - entry.id.ms / 1000))

    def restart(self, mirror: Mirror, before: Position) -> None:
        """Have every subscriber of the namespace judged anew by what it got, in turns."""
        life = mirror.life
        assert life is not None
        # Who was current has seen everything up to `before`, unless that is history no more.
        whole = before <= life.clock and life.vouches_for(before)
        for subscription in self._subscriptions.values():
            if subscription.mirror is not mirror:
                continue
            for subscriber in subscription.current:
                got = max(subscriber.position, subscription.position)
                subscriber.position = before if whole else got
            subscription.behind |= subscription.current
            subscription.current.clear()
            subscription.replay = None
            # From here each subscriber's own position counts, until the next pass.
            subscription.position = ORIGIN
            for subscriber in subscription.behind:
                self._stall(subscriber)

    def _subscriptions_of(self, channel: str) -> Iterator[Subscription]:
        yield from self._by_channel.get(channel, ())
        if self._by_prefix:
            at = channel.find("/")
            while at > 0:
                yield from self._by_prefix.get(channel[: at + 1], ())
                at = channel.find("/", at + 1)

    # -- writing ------------------------------------------------------------------------------

    def _pass(self, subscription: Subscription, chunk: Chunk) -> None:
        """Write one chunk to every current subscriber of a subscription."""
        self.counters.deliveries += chunk.events * len(subscription.current)
        subscription.position = chunk.end
        self._send(subscription, chunk.data)

    def _send(self, subscription: Subscription, data: bytes) -> None:
        self.counters.bytes += len(data) * len(subscription.current)
        subscription.written_at = time.monotonic()
        full = [s for s in subscription.current if not s.connection.write(data)]
        for subscriber in full:
            self._fall_behind(subscriber, max(subscriber.position, subscription.position))

    def _fall_behind(self, subscriber: Subscriber, position: Position) -> None:
        subscription = subscriber.subscription
        subscription.current.discard(subscriber)
        subscription.behind.add(subscriber)
        subscriber.position = position
        subscriber.full_since = time.monotonic()
        subscriber.lagging = True
        self.counters.lagging += 1

    def _write(self, subscriber: Subscriber, data: bytes) -> bool:
        self.counters.bytes += len(data)
        takes_more = subscriber.connection.write(data)
        if not takes_more:
            subscriber.full_since = time.monotonic()
        return takes_more

    def _catch_up(self, subscriber: Subscriber) -> None:
        """Serve a subscriber from the rings until it is current, full, or must wait for them.

        Called again when it still is behind after a turn's worth of bytes: others wait, too.
        """
        subscription = subscriber.subscription
        left = _TURN_LIMIT_BYTES
        while left > 0:
            if not self._is_at_hand(subscriber):
                verdict = subscription.mirror.judge(subscription.selection, subscriber.position)
                if isinstance(verdict, NeedsRings):
                    self._stall(subscriber)
                    return
                if isinstance(verdict, Missing):
                    if not self._miss(subscriber, verdict):
                        return
                    continue
            entries = subscription.entries_after(subscriber.position)
            if not entries:
                self._become_current(subscriber)
                return
            for chunk in subscription.chunks(entries):
                subscriber.position = chunk.end
                self.counters.deliveries += chunk.events
                left -= len(chunk.data)
                if not self._write(subscriber, chunk.data):
                    return
        asyncio.get_running_loop().call_soon(self._go_on, subscriber)

    def _go_on(self, subscriber: Subscriber) -> None:
        if subscriber in subscriber.subscription.behind and not subscriber.full_since:
            self._catch_up(subscriber)

    @staticmethod
    def _is_at_hand(subscriber: Subscriber) -> bool:
        """Tell whether a replay made for others holds all that the subscriber lacks."""
        subscription, position = subscriber.subscription, subscriber.position
        life = subscription.mirror.life
        # It may reach over a cut, inside of which nobody resumes.
        return subscription.has_replay(position) and life is not None and life.vouches_for(position)

    def _become_current(self, subscriber: Subscriber) -> None:
        subscription = subscriber.subscription
        subscription.behind.discard(subscriber)
        subscription.current.add(subscriber)
        subscriber.lagging = False
        if not subscription.behind:
            subscription.replay = None

    def _stall(self, subscriber: Subscriber) -> None:
        """Leave a subscriber to the namespace's fetching task."""
        stall = self._stalls[subscriber.subscription.selection.namespace]
        stall.subscribers.add(subscriber)
        stall.wake.set()

    def _miss(self, subscriber: Subscriber, verdict: Missing) -> bool:
        """Tell a subscriber of its gap; return whether it can be served on at once."""
        subscription = subscriber.subscription
        mirror = subscription.mirror
        assert mirror.life is not None
        asked = subscriber.position
        if subscriber.since and asked < mirror.life.floor:
            # Nothing that a span of time could mean lies before the namespace began.
            subscriber.position = mirror.life.floor
            return True
        resumed = verdict.oldest if subscriber.since else mirror.head
        self.counters.gaps += 1
        subscriber.position = resumed
        takes_more = self._write(
            subscriber, subscription.gap(verdict.reason, str(asked), verdict.oldest, resumed)
        )
        if subscriber.lagging and verdict.reason == "evicted":
            # It reads slower than events come: it begins again from the snapshot.
            self.leave(subscriber)
            subscriber.connection.close()
            return False
        return takes_more

    # -- what happens by itself ---------------------------------------------------------------

    async def run(self, rings: RingReader, tails: Iterable[Tail]) -> None:
        """Beat, end streams that take nothing, and fetch rings that replays wait for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._sweep())
            for tail in tails:
                tasks.create_task(self._fetch(rings, tail))

    async def _beat(self) -> None:
        tick = self._options.heartbeat_seconds / _BEATS
        while True:
            await asyncio.sleep(tick)
            # So that no stream is silent for longer than the whole interval.
            due = time.monotonic() - self._options.heartbeat_seconds + tick
            for subscription in list(self._subscriptions.values()):
                if subscription.written_at <= due:
                    self._send(subscription, HEARTBEAT)

    async def _sweep(self) -> None:
        limit = self._options.write_timeout_seconds
        while True:
            await asyncio.sleep(limit / 10)
            oldest = time.monotonic() - limit
            for subscription in list(self._subscriptions.values()):
                for subscriber in list(subscription.behind):
                    if 0.0 < subscriber.full_since < oldest:
                        # The rest of a chunk is unsent: anything more would land inside it.
                        self.counters.timeouts += 1
                        self.leave(subscriber)
                        subscriber.connection.abort()

    async def _fetch(self, rings: RingReader, tail: Tail) -> None:
        """Serve one namespace's stalled subscribers, fetching the rings that they wait for."""
        stall = self._stalls[tail.mirror.namespace.name]
        while True:
            await stall.wake.wait()
            stall.wake.clear()
            waiting = list(stall.subscribers)
            stall.subscribers.clear()
            wanting: list[tuple[Sequence[str], Subscriber]] = []
            async for subscriber in _in_turns(waiting):
                selection = subscriber.subscription.selection
                verdict = tail.mirror.judge(selection, subscriber.position)
                if isinstance(verdict, NeedsRings):
                    wanting.append((verdict.channels, subscriber))
                else:
                    self._go_on(subscriber)
            # A wide replay lets the narrow ones pass.
            wanting.sort(key=lambda want: len(want[0]))
            try:
                async for channels, subscriber in _in_turns(wanting):
                    # Some of them: who stalled meanwhile is not kept waiting for all.
                    await rings.read(tail, channels[:_TURN_RINGS])
                    self._go_on(subscriber)
            except GatewayError as error:
                _log.warning("replay: %s", error)
                for _, subscriber in wanting:
                    if subscriber in subscriber.subscription.behind:
                        self.end(subscriber, "store")

    def end(self, subscriber: Subscriber, reason: str) -> None:
        """Tell a subscriber why its stream ends for now, and end it; one that left is let be."""
        if subscriber not in subscriber.subscription:
            return
        retry_ms = jittered_retry_ms(self._options.retry_ms, random.random())
        subscriber.connection.write(encode_unavailable(reason, retry_ms))
        self.leave(subscriber)
        subscriber.connection.close()

    def drain(self) -> None:
        """End every stream: this worker stops. Clients come back, spread over time."""
        for subscription in list(self._subscriptions.values()):
            for subscriber in list(subscription.members()):
                self.end(subscriber, "draining")


async def _in_turns(items: Sequence[_T]) -> AsyncIterator[_T]:
    """Yield the items, and now and then the loop to others."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _TURN_SUBSCRIBERS == 0:
            await asyncio.sleep(0)

"""The hub: who follows what on this worker, and the way of an event to them; opens no sockets."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.hub.chunk import Chunk
from gateway.hub.counters import HubCounters
from gateway.hub.heartbeats import Heartbeats
from gateway.hub.mirror import Mirror
from gateway.hub.passes import Passes
from gateway.hub.replays import Replays, States
from gateway.hub.rings import RingReader
from gateway.hub.subscriber import Connection, Subscriber
from gateway.hub.subscription import Subscription
from gateway.hub.tail import Tail
from gateway.protocol.coding import IDENTITY
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection
from gateway.protocol.sse import encode_block, encode_unavailable, jittered_retry_ms


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Times of the hub. `snapshots` is the path that snapshot URLs begin with."""

    retry_ms: int = 2000
    heartbeat_seconds: float = 15.0
    write_timeout_seconds: float = 30.0
    join_seconds: float = 0.005
    snapshots: str = "/snapshots/"


class Hub:
    """Subscriptions of all namespaces on this worker.

    Everything but `run` is synchronous: membership changes only between passes, and a
    subscriber is attached before it is served, so nothing falls between replay and live.
    """

    def __init__(
        self,
        options: HubOptions,
        states: States,
        observe_delivery: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.counters = HubCounters()
        self.subscribers = 0
        self._options = options
        self._subscriptions: dict[Selection, Subscription] = {}
        self._by_channel: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._by_prefix: defaultdict[str, set[Subscription]] = defaultdict(set)
        self._replays = Replays(self.counters, states, self.end, self._finish)
        self._passes = Passes(
            options.join_seconds, self.counters, self._replays.write, self._lag, observe_delivery
        )
        self._heartbeats = Heartbeats(
            options.heartbeat_seconds, self.counters, self._passes, self._lag
        )

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
        coding: str = IDENTITY,
    ) -> Subscriber:
        """Attach a stream and serve it from `position` on, or from now when that is None.

        With `since` the position only bounds a span of time: what is left of it is served.
        `malformed` is a position that could not be read: a gap says so.
        """
        subscription = self._subscriptions.get(selection) or self._open(selection, mirror)
        start = mirror.head if position is None else position
        subscriber = Subscriber(connection, subscription, start, since=since, coding=coding)
        subscription.behind.add(subscriber)
        self.subscribers += 1
        first = encode_block(retry_ms=self._options.retry_ms, id=start)
        if malformed:
            self.counters.gaps += 1
            first += subscription.gap("malformed", malformed, start, start)
        if self._replays.write(subscriber, Chunk(first, start, 0)):
            if position is None:
                subscription.arrive(subscriber)
            else:
                self._replays.catch_up(subscriber)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Detach a stream whose connection is gone or ends; a second call does nothing."""
        if not subscriber.open:
            return
        subscriber.open = False
        subscription = subscriber.subscription
        subscription.remove(subscriber)
        self._replays.forget(subscriber)
        self.subscribers -= 1
        if not len(subscription):
            self._forget(subscription)

    def writable(self, subscriber: Subscriber) -> None:
        """The connection takes more again: go on where the subscriber is."""
        subscriber.full_since = 0.0
        if subscriber.ending:
            self.leave(subscriber)
            subscriber.connection.close()
        elif subscriber in subscriber.subscription.behind:
            self._replays.catch_up(subscriber)

    def followers(self, channel: str) -> int:
        """Return how many streams of this worker get the channel's events."""
        return sum(map(len, self._subscriptions_of(channel)))

    def count_lagging(self) -> int:
        """Return how many streams are not current."""
        return sum(len(subscription.behind) for subscription in self._subscriptions.values())

    def _open(self, selection: Selection, mirror: Mirror) -> Subscription:
        now = time.monotonic()
        subscription = Subscription(selection, mirror, self._options.snapshots, now)
        self._subscriptions[selection] = subscription
        for channel in selection.channels:
            self._by_channel[channel].add(subscription)
        for prefix in selection.prefixes:
            self._by_prefix[prefix].add(subscription)
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        self._passes.forget(subscription)
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
        """Write the mirror's new entries to all who follow them, now or a moment later."""
        shares: defaultdict[Subscription, list[Entry]] = defaultdict(list)
        for entry in entries:
            for subscription in self._subscriptions_of(entry.event.channel):
                shares[subscription].append(entry)
        for subscription, share in shares.items():
            self._passes.offer(subscription, share)
        self._passes.run()

    def room(self, mirror: Mirror) -> "asyncio.Future[None] | None":
        """Return what the namespace's tail must wait for before it brings more; None for nothing.

        Without it the events that wait for a subscription's passes would have no bound.
        """
        return self._passes.room(mirror)

    def restart(self, mirror: Mirror, before: Position) -> None:
        """Have every subscriber of the namespace judged anew by what it got, in turns."""
        life = mirror.life
        assert life is not None
        # Who had everything has seen it up to `before`, unless that is history no more.
        whole = before <= life.clock and life.vouches_for(before)
        for subscription in self._subscriptions.values():
            if subscription.mirror is not mirror:
                continue
            seen_all = whole and subscription.at_rest
            for subscriber in [*subscription.current(), *subscription.newcomers]:
                subscription.recede(subscriber)
                if seen_all:
                    subscriber.position = before
            self._passes.forget(subscription)
            subscription.replay = subscription.reset = None
            # From here each subscriber's own position counts, until the next pass.
            subscription.position = ORIGIN
            for subscriber in subscription.behind:
                self._replays.stall(subscriber)

    def _subscriptions_of(self, channel: str) -> Iterator[Subscription]:
        yield from self._by_channel.get(channel, ())
        if self._by_prefix:
            at = channel.find("/")
            while at > 0:
                yield from self._by_prefix.get(channel[: at + 1], ())
                at = channel.find("/", at + 1)

    # -- what happens by itself ---------------------------------------------------------------

    async def run(self, rings: RingReader, tails: Iterable[Tail]) -> None:
        """Beat, end streams that take nothing, and fetch what replays wait for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeats.run(self._subscriptions))
            tasks.create_task(self._sweep())
            for tail in tails:
                tasks.create_task(self._replays.fetch(rings, tail))

    async def _sweep(self) -> None:
        limit = self._options.write_timeout_seconds
        while True:
            await asyncio.sleep(limit / 10)
            for subscription in list(self._subscriptions.values()):
                for subscriber in list(subscription.behind):
                    if subscriber.full_since:
                        self._look_at(subscriber, time.monotonic() - limit)

    def _look_at(self, subscriber: Subscriber, oldest: float) -> None:
        """End a stream whose reader has taken nothing since `oldest`, be it ever so slow."""
        unsent = subscriber.connection.count_unsent()
        if unsent != subscriber.unsent:
            subscriber.unsent, subscriber.full_since = unsent, time.monotonic()
        elif subscriber.full_since < oldest:
            # The rest of a chunk is unsent: anything more would land inside it.
            self.counters.timeouts += 1
            self.leave(subscriber)
            subscriber.connection.abort()

    def _lag(self, subscriber: Subscriber) -> None:
        """Take a subscriber that takes no more out of its lane: it is behind from now on."""
        subscriber.subscription.recede(subscriber)
        subscriber.full_since = time.monotonic()
        subscriber.lagging = True
        self.counters.lags += 1

    def _finish(self, subscriber: Subscriber) -> None:
        """Close a stream once its connection took everything, or at once."""
        if subscriber.full_since:
            subscriber.ending = True
        else:
            self.leave(subscriber)
            subscriber.connection.close()

    def end(self, subscriber: Subscriber, reason: str) -> None:
        """Tell a subscriber why its stream ends for now, and end it; one that left is let be."""
        if not subscriber.open:
            return
        if not subscriber.full_since:
            retry_ms = jittered_retry_ms(self._options.retry_ms, random.random())
            last = encode_unavailable(reason, retry_ms)
            self._replays.write(subscriber, Chunk(last, subscriber.position, 0), last=True)
        # Whoever takes no more is closed bare: a word to it would land inside an event.
        self.leave(subscriber)
        subscriber.connection.close()

    def drain(self) -> None:
        """End every stream: this worker stops. Clients come back, spread over time."""
        for subscription in list(self._subscriptions.values()):
            for subscriber in list(subscription.members()):
                self.end(subscriber, "draining")

"""Replays: subscribers that are behind, served from the rings by their own position."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

from gateway.hub.chunk import Chunk
from gateway.hub.counters import HubCounters
from gateway.hub.mirror import Mirror, Missing, NeedsRings, Resumable, Verdict
from gateway.hub.rings import RingReader
from gateway.hub.subscriber import Subscriber
from gateway.hub.subscription import REPLAY_LIMIT_BYTES, Subscription
from gateway.hub.tail import Tail
from gateway.protocol.errors import GatewayError, StoreUnavailable, UnknownChannel
from gateway.protocol.position import Position
from gateway.protocol.sse import encode_block
from gateway.protocol.stream_coding import closing_of

_log = logging.getLogger(__name__)
_TURN_LIMIT_BYTES = 256 * 1024  # Written to one subscriber that is behind, before others' turn.
_TURN_RINGS = 512  # Read for one subscriber, before others' turn.
_TURN_SUBSCRIBERS = 64  # Served between two yields to the loop.
_CONFLATED_CHANNELS = 100  # Whose states may stand for lost events; beyond, it is a gap.
_EVENTS_BYTES = 4096  # Lacking at most this, a reader gets events: no state need be rendered.
_CONFLATED = ("evicted", "deleted", "too_large")
_T = TypeVar("_T")


class States(Protocol):
    """Who knows the state of channels: what conflation puts in place of events."""

    def peek(self, mirror: Mirror, channel: str) -> bytes | None:
        """Return the channel's snapshot, true at what was tailed last; None when it is not here."""

    async def load(self, tail: Tail, channel: str) -> None:
        """Fetch what `peek` needs; raises GatewayError."""


@dataclass(slots=True)
class _Stall:
    """Subscribers of one namespace that wait for the store, and the states that they wait for.

    Those who wait for no states wait for rings.
    """

    subscribers: dict[Subscriber, Sequence[str]] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class _Then(Enum):
    """How to go on with a subscriber."""

    EVENTS = "the rings have its next events"
    GO_ON = "it got something else: look again"
    WAIT = "it takes no more, waits for the store, or has left"


class Replays:
    """Serves those behind until they have everything, or are told of their gap.

    `end` tells a subscriber why and takes it off the hub; `finish` does so without a word once
    its connection took everything.
    """

    def __init__(
        self,
        counters: HubCounters,
        states: States,
        end: Callable[[Subscriber, str], None],
        finish: Callable[[Subscriber], None],
    ) -> None:
        self._counters = counters
        self._states = states
        self._end = end
        self._finish = finish
        self._stalls: defaultdict[str, _Stall] = defaultdict(_Stall)

    def write(self, subscriber: Subscriber, chunk: Chunk, *, last: bool = False) -> bool:
        """Write to one subscriber alone; return whether it takes more."""
        data = chunk.private(subscriber.coding)
        if last:
            data += closing_of(subscriber.coding)
        self._counters.delivered_bytes += len(data)
        takes_more = subscriber.connection.write(data)
        if not takes_more:
            subscriber.full_since = time.monotonic()
        return takes_more

    def forget(self, subscriber: Subscriber) -> None:
        """Let go of a subscriber that leaves."""
        self._stalls[subscriber.subscription.selection.namespace].subscribers.pop(subscriber, None)

    def stall(self, subscriber: Subscriber, states: Sequence[str] = ()) -> None:
        """Leave a subscriber to the namespace's fetching task: for states, or for rings."""
        stall = self._stalls[subscriber.subscription.selection.namespace]
        stall.subscribers[subscriber] = states
        stall.wake.set()

    def go_on(self, subscriber: Subscriber, *, loaded: bool = False) -> None:
        """Serve a subscriber if it still is behind and takes more."""
        if subscriber in subscriber.subscription.behind and not subscriber.full_since:
            self.catch_up(subscriber, loaded=loaded)

    def catch_up(self, subscriber: Subscriber, *, loaded: bool = False) -> None:
        """Serve a subscriber from the rings until it is current, full, or must wait for them.

        It goes on in another turn when it still is behind after its share of bytes: others wait,
        too. `loaded` says that the states it waited for were fetched: it waits for none again.
        """
        subscription = subscriber.subscription
        left = _TURN_LIMIT_BYTES
        while left > 0:
            then = self._judge(subscriber, loaded)
            if then is _Then.WAIT:
                return
            if then is _Then.GO_ON:
                break
            chunk = subscription.chunk_after(subscriber.position)
            if chunk is None:
                subscription.arrive(subscriber)
                return
            subscriber.position = chunk.end
            self._counters.deliveries += chunk.events
            left -= len(chunk.data)
            if not self.write(subscriber, chunk):
                return
        asyncio.get_running_loop().call_soon(self.go_on, subscriber)

    def _judge(self, subscriber: Subscriber, loaded: bool) -> _Then:
        """Tell a subscriber of its gap or its state, where events will not do."""
        if self._is_at_hand(subscriber):
            return _Then.EVENTS
        subscription = subscriber.subscription
        verdict = subscription.mirror.judge(subscription.selection, subscriber.position)
        then = self._try_to_conflate(subscriber, verdict, loaded)
        if then is not _Then.EVENTS:
            return then
        if isinstance(verdict, NeedsRings):
            self.stall(subscriber)
            return _Then.WAIT
        if isinstance(verdict, Missing):
            return self._miss(subscriber, verdict)
        return _Then.EVENTS

    @staticmethod
    def _is_at_hand(subscriber: Subscriber) -> bool:
        """Tell whether a replay made for others holds all that the subscriber lacks."""
        subscription, position = subscriber.subscription, subscriber.position
        life = subscription.mirror.life
        if subscriber.lagging and subscription.mirror.namespace.conflate:
            return False
        # It may reach over a cut, inside of which nobody resumes.
        return subscription.has_replay(position) and life is not None and life.vouches_for(position)

    def _miss(self, subscriber: Subscriber, verdict: Missing) -> _Then:
        """Tell a subscriber of its gap."""
        subscription = subscriber.subscription
        mirror = subscription.mirror
        assert mirror.life is not None
        asked = subscriber.position
        if subscriber.since and asked < mirror.life.floor:
            # Nothing that a span of time could mean lies before the namespace began.
            subscriber.position = mirror.life.floor
            return _Then.GO_ON
        resumed = verdict.oldest if subscriber.since else mirror.head
        self._counters.gaps += 1
        subscriber.position = resumed
        gap = subscription.gap(verdict.reason, str(asked), verdict.oldest, resumed)
        ends = subscriber.lagging and verdict.reason == "evicted"
        takes_more = self.write(subscriber, Chunk(gap, resumed, 0), last=ends)
        if ends:
            # It reads slower than events come: it begins again from the snapshot.
            self._finish(subscriber)
            return _Then.WAIT
        return _Then.GO_ON if takes_more else _Then.WAIT

    # -- conflation ---------------------------------------------------------------------------

    def _try_to_conflate(self, subscriber: Subscriber, verdict: Verdict, loaded: bool) -> _Then:
        """Write states in place of the events that a slow reader lacks, where that is less."""
        subscription = subscriber.subscription
        mirror = subscription.mirror
        if not subscriber.lagging or not mirror.namespace.conflate:
            return _Then.EVENTS
        if isinstance(verdict, Missing) and verdict.reason not in _CONFLATED:
            return _Then.EVENTS
        selection, position = subscription.selection, subscriber.position
        channels = mirror.moved_since(selection, position)
        if not 0 < len(channels) <= _CONFLATED_CHANNELS or position >= mirror.tailed:
            return _Then.EVENTS
        # The index may know of events that were not tailed yet.
        newest = min(mirror.tailed, max(mirror.index[channel].last for channel in channels))
        if isinstance(verdict, Resumable) and self._lacks_less(
            subscription, position, newest, _EVENTS_BYTES
        ):
            return _Then.EVENTS
        chunk = self._reset(subscription, channels)
        if chunk is None:
            if loaded:
                return _Then.EVENTS  # There is no room for all of them at once.
            self.stall(subscriber, channels)
            return _Then.WAIT
        size = len(chunk.data)
        if isinstance(verdict, Resumable):
            if self._lacks_less(subscription, position, newest, size):
                return _Then.EVENTS
        elif size > REPLAY_LIMIT_BYTES and len(channels) > 1:
            return _Then.EVENTS
        self._counters.conflations += 1
        subscriber.position = chunk.end
        return _Then.GO_ON if self.write(subscriber, chunk) else _Then.WAIT

    @staticmethod
    def _lacks_less(
        subscription: Subscription, position: Position, newest: Position, size_bytes: int
    ) -> bool:
        """Tell whether the events after `position`, up to `newest`, have at most so many bytes."""
        lacking = subscription.mirror.entries_after(subscription.selection, position, size_bytes)
        return not lacking or lacking[-1].id >= newest

    def _reset(self, subscription: Subscription, channels: Sequence[str]) -> Chunk | None:
        """Return the states of channels as events, at one position; made once for all who ask."""
        mirror = subscription.mirror
        key = (mirror.tailed, tuple(channels))
        if subscription.reset is not None and subscription.reset[0] == key:
            return subscription.reset[1]
        blocks = []
        for channel in channels:
            state = self._states.peek(mirror, channel)
            if state is None:
                return None
            # Only the last one moves the reader's position: all of them, or none.
            last = mirror.tailed if channel == channels[-1] else None
            blocks.append(encode_block(id=last, type="reset", data=state))
        chunk = Chunk(b"".join(blocks), mirror.tailed, 0)
        subscription.reset = (key, chunk)
        return chunk

    # -- what happens by itself ---------------------------------------------------------------

    async def fetch(self, rings: RingReader, tail: Tail) -> None:
        """Serve one namespace's stalled subscribers, fetching what they wait for."""
        stall = self._stalls[tail.mirror.namespace.name]
        while True:
            await stall.wake.wait()
            stall.wake.clear()
            waiting = list(stall.subscribers.items())
            stall.subscribers.clear()
            wanting: list[tuple[Sequence[str], bool, Subscriber]] = []
            async for subscriber, states in in_turns(waiting):
                selection = subscriber.subscription.selection
                verdict = tail.mirror.judge(selection, subscriber.position)
                if states:
                    wanting.append((states, True, subscriber))
                elif isinstance(verdict, NeedsRings):
                    wanting.append((verdict.channels, False, subscriber))
                else:
                    self.go_on(subscriber)
            # A wide replay lets the narrow ones pass.
            wanting.sort(key=lambda want: len(want[0]))
            async for number, (channels, is_states, subscriber) in in_turns(
                list(enumerate(wanting, 1))
            ):
                try:
                    if is_states:
                        await self._load(tail, channels)
                    else:
                        # Some of them: who stalled meanwhile is not kept waiting for all.
                        await rings.read(tail, channels[:_TURN_RINGS])
                except GatewayError as error:
                    _log.warning("replay: %s", error)
                    self._give_up(subscriber)
                    if isinstance(error, StoreUnavailable):
                        # It would say the same to all who wait.
                        for _, _, other in wanting[number:]:
                            self._give_up(other)
                        break
                self.go_on(subscriber, loaded=is_states)

    def _give_up(self, subscriber: Subscriber) -> None:
        if subscriber in subscriber.subscription.behind and not subscriber.full_since:
            self._end(subscriber, "store")

    async def _load(self, tail: Tail, channels: Sequence[str]) -> None:
        for channel in channels:
            with suppress(UnknownChannel):  # It ended meanwhile: that is a state, too.
                await self._states.load(tail, channel)


async def in_turns(items: Sequence[_T]) -> AsyncIterator[_T]:
    """Yield the items, and now and then the loop to others."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _TURN_SUBSCRIBERS == 0:
            await asyncio.sleep(0)

"""Heartbeats: a comment to whoever got nothing for a while, spread over time; one timer for all."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.hub.counters import HubCounters
from gateway.hub.group import Group
from gateway.hub.passes import Passes
from gateway.hub.subscriber import Subscriber
from gateway.hub.subscription import Subscription
from gateway.protocol.sse import encode_comment

HEARTBEAT = encode_comment("heartbeat")
_PARTS = 20  # Of a subscription's readers, one after the other.
_TURN_SUBSCRIPTIONS = 1000  # Looked at between two yields to the loop.


class Heartbeats:
    """Sees that no stream is silent for longer than `interval_seconds`.

    After half an interval of silence a subscription's readers get a comment, a part of them at a
    time, the last part at its end; then each of them once an interval. Readers who share an
    encoder get theirs together, at the beginning: it goes through what they share.
    """

    def __init__(
        self,
        interval_seconds: float,
        counters: HubCounters,
        passes: Passes,
        lag: Callable[[Subscriber], None],
    ) -> None:
        self._interval = interval_seconds
        self._counters = counters
        self._passes = passes
        self._lag = lag

    async def run(self, subscriptions: Mapping[Any, Subscription]) -> None:
        """Beat until cancelled."""
        while True:
            await asyncio.sleep(self._interval / 2 / _PARTS)
            for number, subscription in enumerate(list(subscriptions.values()), 1):
                self._beat(subscription, time.monotonic())
                if number % _TURN_SUBSCRIPTIONS == 0:
                    await asyncio.sleep(0)
            self._passes.run()

    def _beat(self, subscription: Subscription, now: float) -> None:
        half = self._interval / 2
        silent = now - subscription.silent_since - half
        if silent < 0 or not subscription.at_rest:
            return
        # A part early rather than late: the last one is due when the interval ends.
        due = min(_PARTS, 2 + int(silent / half * _PARTS))
        groups = subscription.plain_groups()
        if subscription.beaten_parts == 0:
            self._passes.heartbeat(subscription, HEARTBEAT)
            for group in groups:
                group.begin_round(_PARTS)
        while subscription.beaten_parts < due:
            for group in groups:
                self._beat_part(group, _PARTS - subscription.beaten_parts)
            subscription.beaten_parts += 1
        if subscription.beaten_parts == _PARTS:
            subscription.silent_since += self._interval
            subscription.beaten_parts = 0

    def _beat_part(self, group: Group, parts_left: int) -> None:
        written, full = group.beat(HEARTBEAT, parts_left)
        self._counters.delivered_bytes += written * len(HEARTBEAT)
        for subscriber in full:
            self._lag(subscriber)

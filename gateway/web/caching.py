"""The headers that tell caches how long to keep what a channel's readers get; renders nothing."""

import time
from collections.abc import Sequence

from gateway.hub.mirror import Mirror
from gateway.protocol.cache_control import (
    LONG_POLL_MAX_AGE_SECONDS,
    NO_STORE,
    cache_tags,
    history_cache_control,
    history_cdn_cache_control,
    history_max_age_seconds,
    life_limit_seconds,
    surrogate_keys,
)
from gateway.protocol.event import Event
from gateway.protocol.namespace import Namespace
from gateway.protocol.slice import slice_cache_control

VARY = {"Vary": "Accept-Encoding"}


def follow_headers(namespace: Namespace, channel: str, *, snapshot: bool = False) -> dict[str, str]:
    """Return the headers by which caches find and drop what they keep of a channel."""
    return {
        "Surrogate-Key": surrogate_keys(namespace.name, channel, snapshot=snapshot),
        "Cache-Tag": cache_tags(namespace.name, channel, snapshot=snapshot),
    }


def slice_headers(namespace: Namespace, channel: str, seconds: int) -> dict[str, str]:
    """Return the headers of a slice that may be kept for so many seconds."""
    return {
        "Cache-Control": slice_cache_control(seconds),
        "CDN-Cache-Control": slice_cache_control(seconds).removeprefix("public, "),
        **follow_headers(namespace, channel),
    }


class CacheLife:
    """How long caches may keep snapshots and pages: never longer than one can resume from them.

    What a ring's age allows was checked at the start. A channel that is too busy for its ring has
    less, and `shortened` counts the answers that said so.
    """

    def __init__(self) -> None:
        self.shortened = 0

    def of_snapshot(self, mirror: Mirror, channel: str) -> dict[str, str]:
        """Return the headers of a channel's snapshot, or of the 304 in its place."""
        rules = mirror.namespace
        limit = life_limit_seconds(mirror.span_seconds(channel, _now_ms()))
        if rules.cache.within(limit) is not rules.cache:
            self.shortened += 1
        return {
            "Cache-Control": rules.cache.cache_control(limit),
            "CDN-Cache-Control": rules.cache.cdn_cache_control(limit),
            **VARY,
            **follow_headers(rules, channel, snapshot=True),
        }

    def of_page(
        self,
        mirror: Mirror,
        channel: str,
        events: Sequence[Event],
        *,
        settled: bool,
        waited: bool,
    ) -> dict[str, str]:
        """Return the headers of a page of history; a `settled` one can change no more."""
        rules = mirror.namespace
        # What was published just now bounds the age where this machine's clock is behind.
        now_ms = max(_now_ms(), mirror.clock.ms)
        age_seconds = max(0.0, (now_ms - events[0].id.ms) / 1000) if settled else 0.0
        seconds = history_max_age_seconds(
            settled=settled,
            first_event_age_seconds=age_seconds,
            ring_age_seconds=rules.ring_age_seconds,
        )
        if waited and not settled:
            seconds = LONG_POLL_MAX_AGE_SECONDS
        seconds = self._within_span(mirror, channel, age_seconds, seconds)
        return {
            "Cache-Control": history_cache_control(seconds),
            "CDN-Cache-Control": history_cdn_cache_control(seconds),
            **VARY,
            **follow_headers(rules, channel),
        }

    def of_finished_slice(self, mirror: Mirror, channel: str, age_seconds: float) -> dict[str, str]:
        """Return the headers of a slice that is over and began so long ago: kept as a page is."""
        rules = mirror.namespace
        seconds = history_max_age_seconds(
            settled=True,
            first_event_age_seconds=age_seconds,
            ring_age_seconds=rules.ring_age_seconds,
        )
        seconds = self._within_span(mirror, channel, age_seconds, seconds)
        return slice_headers(rules, channel, seconds)

    def _within_span(self, mirror: Mirror, channel: str, age_seconds: float, seconds: int) -> int:
        """Return `seconds`, or what the ring still vouches for of something that old, if less."""
        limit = life_limit_seconds(mirror.span_seconds(channel, _now_ms()))
        if limit is None or limit - age_seconds >= seconds:
            return seconds
        self.shortened += 1
        return max(0, int(limit - age_seconds))

    @staticmethod
    def of_nothing(namespace: Namespace, channel: str) -> dict[str, str]:
        """Return the headers of an answer that is for this caller at this moment only."""
        return {"Cache-Control": NO_STORE, **VARY, **follow_headers(namespace, channel)}


def _now_ms() -> int:
    return int(time.time() * 1000)

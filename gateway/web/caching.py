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

VARY = {"Vary": "Accept-Encoding"}


def follow_headers(namespace: Namespace, channel: str) -> dict[str, str]:
    """Return the headers by which caches find and drop what they keep of a channel."""
    return {
        "Surrogate-Key": surrogate_keys(namespace.name, channel),
        "Cache-Tag": cache_tags(namespace.name, channel),
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
            **follow_headers(rules, channel),
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
        rules, now_ms = mirror.namespace, _now_ms()
        age_seconds = max(0.0, (now_ms - events[0].id.ms) / 1000) if settled else 0.0
        seconds = history_max_age_seconds(
            settled=settled,
            first_event_age_seconds=age_seconds,
            ring_age_seconds=rules.ring_age_seconds,
        )
        if waited and not settled:
            seconds = LONG_POLL_MAX_AGE_SECONDS
        limit = life_limit_seconds(mirror.span_seconds(channel, now_ms))
        if limit is not None and limit - age_seconds < seconds:
            self.shortened += 1
            seconds = max(0, int(limit - age_seconds))
        return {
            "Cache-Control": history_cache_control(seconds),
            "CDN-Cache-Control": history_cdn_cache_control(seconds),
            **VARY,
            **follow_headers(rules, channel),
        }

    @staticmethod
    def of_nothing(namespace: Namespace, channel: str) -> dict[str, str]:
        """Return the headers of an answer that is for this caller at this moment only."""
        return {"Cache-Control": NO_STORE, **VARY, **follow_headers(namespace, channel)}


def _now_ms() -> int:
    return int(time.time() * 1000)

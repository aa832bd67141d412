"""Cache policy: what shared caches and browsers are told to keep, for how long, under which keys.

Source: RFC 9111 5.2.2 (Cache-Control), RFC 5861 (stale-…), RFC 9213 (CDN-Cache-Control).
"""

import hashlib
from dataclasses import dataclass

from gateway.protocol.errors import GatewayError

NO_STORE = "no-store"
"""Errors, administration and publishing: true for this caller at this moment only."""

STREAM = "no-cache, no-transform"
"""Streams: a proxy that compresses or rewrites one also buffers it."""

NO_STALE_LIFE = "stale-while-revalidate=0, stale-if-error=0"
"""Said aloud: Varnish keeps what is over for another 10 s unless it is told not to."""

UNKNOWN_CHANNEL = f"public, max-age=1, {NO_STALE_LIFE}"
"""A channel that does not exist yet: a second keeps a crowd off, and hides its birth no longer."""

LIFE_MARGIN_SECONDS = 10
"""For what the settings do not show: the way from cache to browser, and clocks that differ."""

HISTORY_TAIL_MAX_AGE_SECONDS = 1
"""A page that the next event may change: as short as an unknown channel, for the same reason."""

LONG_POLL_MAX_AGE_SECONDS = 2
"""An answer to `wait`: long enough that all who waited for it behind a cache find it there.

NGINX looks every half second whether it has come. Nobody is told something old by it: the next
request is for another URL.
"""

KEY_LIMIT_BYTES = 128
"""Akamai drops longer tags without a word; CloudFront allows 256, Fastly and Cloudflare 1024."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long a namespace's snapshots may be kept; whole seconds, none below zero."""

    browser_max_age_seconds: int
    edge_max_age_seconds: int
    stale_while_revalidate_seconds: int
    stale_if_error_seconds: int

    def within(self, limit_seconds: float | None) -> "CachePolicy":
        """Return the policy, shortened where a life of `limit_seconds` is less than its own.

        The stale times go first, then the edge's age, then the browser's: what was promised to be
        fresh is what readers notice most. None is no limit.
        """
        if limit_seconds is None or life_seconds(self) <= limit_seconds:
            return self
        left = max(0, int(limit_seconds))
        browser = min(self.browser_max_age_seconds, left)
        edge = min(self.edge_max_age_seconds, left - browser)
        stale = left - browser - edge
        return CachePolicy(
            browser,
            edge,
            min(self.stale_while_revalidate_seconds, stale),
            min(self.stale_if_error_seconds, stale),
        )

    def cache_control(self, limit_seconds: float | None = None) -> str:
        """Return `Cache-Control`, for browsers and for caches that know no other field.

        With a limit below a second nothing may be kept at all.
        """
        if limit_seconds is not None and limit_seconds < 1:
            return NO_STORE
        policy = self.within(limit_seconds)
        return (
            f"public, max-age={policy.browser_max_age_seconds}"
            f", s-maxage={policy.edge_max_age_seconds}, {policy._stale}"
        )

    def cdn_cache_control(self, limit_seconds: float | None = None) -> str:
        """Return `CDN-Cache-Control`; RFC 9213 2.1: it overrules the other at the edge."""
        if limit_seconds is not None and limit_seconds < 1:
            return NO_STORE
        policy = self.within(limit_seconds)
        return f"max-age={policy.edge_max_age_seconds}, {policy._stale}"

    @property
    def _stale(self) -> str:
        return (
            f"stale-while-revalidate={self.stale_while_revalidate_seconds}"
            f", stale-if-error={self.stale_if_error_seconds}"
        )


class CacheLifeTooLong(GatewayError):
    """A cache could hold a snapshot whose position the ring has dropped."""

    def __init__(self, policy: CachePolicy, ring_age_seconds: float) -> None:
        super().__init__(
            f"edge_max_age_seconds ({policy.edge_max_age_seconds})"
            f" + browser_max_age_seconds ({policy.browser_max_age_seconds})"
            f" + the larger of stale_while_revalidate_seconds"
            f" ({policy.stale_while_revalidate_seconds})"
            f" and stale_if_error_seconds ({policy.stale_if_error_seconds})"
            f" + a margin of {LIFE_MARGIN_SECONDS} = {life_seconds(policy) + LIFE_MARGIN_SECONDS}"
            f" must be below ring_age_seconds ({ring_age_seconds:g})"
        )
        self.policy = policy
        self.ring_age_seconds = ring_age_seconds


def life_seconds(policy: CachePolicy) -> int:
    """Return the longest time between a snapshot's making and its last use, without margin."""
    return (
        policy.edge_max_age_seconds
        + policy.browser_max_age_seconds
        + max(policy.stale_while_revalidate_seconds, policy.stale_if_error_seconds)
    )


def check_policy(policy: CachePolicy, ring_age_seconds: float) -> None:
    """Make sure that whatever a cache may hold can still be resumed from.

    Raises CacheLifeTooLong, which names each setting and its number.
    """
    if life_seconds(policy) + LIFE_MARGIN_SECONDS >= ring_age_seconds:
        raise CacheLifeTooLong(policy, ring_age_seconds)


def life_limit_seconds(span_seconds: float | None) -> float | None:
    """Return the longest life of what is cached of a channel whose ring spans this much time.

    None where nothing but age bounds the ring. Half the span is margin enough for a ring so short
    that LIFE_MARGIN_SECONDS would leave nothing.
    """
    if span_seconds is None:
        return None
    return max(0.0, span_seconds - min(LIFE_MARGIN_SECONDS, span_seconds / 2))


def history_max_age_seconds(
    *, settled: bool, first_event_age_seconds: float, ring_age_seconds: float
) -> int:
    """Return how long a page of history may be kept, in whole seconds.

    A page is `settled` when its `after` was given and it is full: no later event can change
    it. It lives until its first event leaves the ring, when the same request becomes a gap.
    """
    if not settled:
        return HISTORY_TAIL_MAX_AGE_SECONDS
    # A position may run ahead of this machine's clock: such an event is new, not younger.
    age_seconds = max(0.0, first_event_age_seconds)
    return max(0, int(ring_age_seconds - age_seconds - LIFE_MARGIN_SECONDS))


def history_cache_control(max_age_seconds: int) -> str:
    """Return the `Cache-Control` of a page of history; no stale life, as its end is a gap."""
    return f"public, max-age={max_age_seconds}, {NO_STALE_LIFE}"


def history_cdn_cache_control(max_age_seconds: int) -> str:
    """Return the `CDN-Cache-Control` of a page of history."""
    return f"max-age={max_age_seconds}, {NO_STALE_LIFE}"


def surrogate_keys(namespace: str, channel: str, *, snapshot: bool = False) -> str:
    """Return the value of `Surrogate-Key`: the namespace's key, the channel's, a snapshot's own."""
    return " ".join(_keys(namespace, channel, snapshot=snapshot))


def cache_tags(namespace: str, channel: str, *, snapshot: bool = False) -> str:
    """Return the value of `Cache-Tag`: the same keys, as other CDNs want them."""
    return ",".join(_keys(namespace, channel, snapshot=snapshot))


def channel_key(channel: str) -> str:
    """Return the key of everything that is kept of a channel: old when its history is."""
    return _key("ch", channel)


def snapshot_key(channel: str) -> str:
    """Return the key of a channel's snapshot alone: old after each event.

    Slices that run, and pages that can change no more, are as good as before.
    """
    return _key("st", channel)


def _keys(namespace: str, channel: str, *, snapshot: bool) -> tuple[str, ...]:
    keys = _key("ns", namespace), channel_key(channel)
    return (*keys, snapshot_key(channel)) if snapshot else keys


def _key(kind: str, name: str) -> str:
    # A dot joins, for Akamai refuses the colon.
    key = f"{kind}.{name}"
    if len(key) <= KEY_LIMIT_BYTES:
        return key
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    # No name has a `#`, so no hash is another name's key.
    return f"{kind}#{digest}"

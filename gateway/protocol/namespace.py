"""Namespaces: the rules that all channels of one share."""

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.protocol.cache_control import CachePolicy

SLICES_KEPT = 3
"""Slices that a ring must cover: the present one, and two for readers that come late."""


class Reducer(StrEnum):
    """How a channel's events add up to its state."""

    LAST = "last"
    MERGE = "merge"
    KEYED = "keyed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Namespace:
    """One namespace's rules; sizes in bytes, ages in seconds.

    `conflate` lets a reader that cannot keep up get the state in place of events;
    `stream_codings` are the content codings that streams are offered in; `slice_seconds` is the
    length of a slice. Events younger than `ring_spare_seconds` leave the ring by its bytes only.
    """

    name: str
    reducer: Reducer = Reducer.LAST
    protected: bool = False
    ring_limit_events: int = 1000
    ring_limit_bytes: int = 8 * 1024 * 1024
    ring_age_seconds: int = 3600
    channels_limit: int = 100_000
    state_limit_bytes: int = 1024 * 1024
    keys_limit: int = 10_000
    conflate: bool = False
    stream_codings: tuple[str, ...] = ()
    slice_seconds: int = 30
    ring_spare_seconds: int = 0
    cache: CachePolicy = field(default_factory=lambda: CachePolicy(0, 1, 5, 60))

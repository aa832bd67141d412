"""Slices: a channel's time line cut into pieces of equal length, and how they begin and end.

Slice `k` of `S` seconds holds the events whose milliseconds are from `k * S * 1000` up to, and
without, `(k + 1) * S * 1000`. Holds no events and reads no clock.
"""

import orjson

from gateway.protocol.errors import InvalidField
from gateway.protocol.life import Life
from gateway.protocol.position import Position
from gateway.protocol.sse import encode_block

HELD_SECONDS = 2.0
"""A request this close to a slice's end waits for it: what would be left of the slice is too short
for a cache to share, and one told to keep nothing may share nothing for minutes (Varnish)."""

_LARGEST_MS = 2**53 - 1  # As in a position.


def slice_of(ms: int, slice_seconds: int) -> int:
    """Return the number of the slice that a time in milliseconds lies in."""
    return ms // (slice_seconds * 1000)


def boundary(number: int, slice_seconds: int) -> Position:
    """Return where a slice begins: no event stands there, so one may resume from it."""
    return Position(number * slice_seconds * 1000, 0)


def parse_slice_number(text: str, slice_seconds: int) -> int:
    """Return a slice's number; raises InvalidField when it is none, or ends past all positions."""
    # As long as the largest position: longer texts are no numbers of slices, whatever they spell.
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise InvalidField("slice", text[:100], "must be a whole number, 0 or more")
    if text != str(int(text)):
        raise InvalidField("slice", text, "must not begin with 0")
    number, largest = int(text), _LARGEST_MS // (slice_seconds * 1000) - 1
    if number > largest:
        raise InvalidField("slice", text, f"must be at most {largest}")
    return number


def lost_within(life: Life, start: Position, end: Position) -> bool:
    """Tell whether the store may have lost an event that stood in a slice, or before its end."""
    return any(cut.recovered < end and cut.resumed > start for cut in life.cuts)


def slice_cache_control(max_age_seconds: int) -> str:
    """Return the `Cache-Control` of a slice, running or over.

    It never outlives its time: a cache that has a grace of its own (Varnish: 10 s) would play a
    slice that is over to whoever waits for the next. `no-transform`: what compresses or rewrites
    a stream also holds it back.
    """
    return (
        f"public, max-age={max_age_seconds}, stale-while-revalidate=0, stale-if-error=0"
        ", no-transform"
    )


def encode_slice_start(retry_ms: int) -> bytes:
    """Return what every reader of a slice gets first: how long to wait before the next one."""
    return encode_block(retry_ms=retry_ms)


def encode_slice_end(number: int, slice_seconds: int) -> bytes:
    """Return the event that says a slice is whole; its id is the boundary to the next.

    It has data, the number of the next slice, so that an EventSource dispatches it.
    """
    return encode_block(
        id=boundary(number + 1, slice_seconds),
        type="end",
        data=orjson.dumps({"next": number + 1}),
    )

"""Cursors: what makes the URL of each long-poll a new one; reads no clock, waits for nothing.

Source: Durable Streams protocol, "Caching and Collapsing", server-generated cursors.
"""

from gateway.protocol.errors import InvalidField
from gateway.protocol.position import Position

EPOCH_MS = 1_728_432_000_000
"""2024-10-09T00:00:00Z, where the protocol's intervals are counted from."""

INTERVAL_MS = 20_000
"""Readers whose waits end within one interval get one cursor, and wait together from then on."""

JITTER_MS = 1000
"""The most that a cursor moves on within its interval.

The protocol adds up to an hour, and such a cursor is ahead of the clock for an hour: whoever comes
meanwhile is given another one, and asks for URLs of its own. A wait takes a second at least, so in
steps of a second no cursor runs ahead of the clock.
"""

_LIMIT = 10**15


def parse_cursor(text: str) -> int:
    """Return the cursor that `text` spells; raises InvalidField.

    One from the future is taken: it may come from a worker whose clock is ahead.
    """
    if text.isascii() and text.isdigit() and len(text) <= 16:
        cursor = int(text)
        if cursor < _LIMIT and text == str(cursor):
            return cursor
    raise InvalidField("cursor", text[:100], "must be the cursor of the answer before this one")


def next_cursor(
    given: int | None, now_ms: int, jitter: float, moved_to: Position | None = None
) -> int:
    """Return the cursor of an answer, later than the `given` one: that of the request, if any.

    It counts milliseconds. `moved_to` is the last event of the answer, None when there is none:
    readers who got the same event then go on with the same cursor, whatever theirs was before, and
    so by the same URL. Without an event it is the beginning of the interval. `jitter`, from 0 to
    1, sets it apart from `given` where neither does.
    """
    if moved_to is None:
        cursor = (now_ms - EPOCH_MS) // INTERVAL_MS * INTERVAL_MS
    else:
        cursor = moved_to.ms - EPOCH_MS
    cursor = max(cursor, 0)  # A clock, or an event, from before the epoch.
    if given is None or given < cursor:
        return cursor
    return given + 1 + int(jitter * (JITTER_MS - 1))

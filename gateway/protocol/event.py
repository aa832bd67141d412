"""Events: what is published, and what it becomes once it has a position."""

import re
from typing import NamedTuple

from gateway.protocol.errors import InvalidField, LimitExceeded
from gateway.protocol.position import Position

_FORBIDDEN = re.compile(r"[\r\n\0]")

RESERVED_TYPES = frozenset({"gap", "unavailable", "reset", "end"})
"""Types of the gateway's own events: a reader could not tell a publisher's from them."""


# Both are made for every event: as named tuples in a third of the time of frozen dataclasses.
class NewEvent(NamedTuple):
    """An event on its way in. `data` is UTF-8; `json` says that it is one JSON text."""

    channel: str
    data: bytes
    json: bool = False
    type: str = ""
    key: str = ""
    idempotency_key: str = ""


class Event(NamedTuple):
    """One stored event.

    `prev` is the position of the channel's event before it (`0-0` for the first).
    A `deletion` marks the end of the channel's history; it has no data.
    """

    id: Position
    prev: Position
    channel: str
    data: bytes
    json: bool = False
    type: str = ""
    key: str = ""
    deletion: bool = False


def check_token(value: str, field: str, limit_bytes: int) -> str:
    """Return an event's type or key unchanged when a stream can carry it.

    Raises InvalidField for CR, LF or NUL, LimitExceeded beyond `limit_bytes` of UTF-8.
    Source: WHATWG HTML 9.2.6 (a line ends at CR or LF; an id with NUL is ignored).
    """
    if _FORBIDDEN.search(value):
        raise InvalidField(field, value[:300], "must not contain CR, LF or NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidField(field, ascii(value[:100]), "must be valid Unicode") from None
    if size > limit_bytes:
        raise LimitExceeded(field, value[:300], f"must be at most {limit_bytes} bytes")
    return value


def check_type(value: str, limit_bytes: int) -> str:
    """Return an event's type unchanged; as check_token, and InvalidField for a reserved one."""
    if value in RESERVED_TYPES:
        rule = f"is reserved for the gateway's own events: {', '.join(sorted(RESERVED_TYPES))}"
        raise InvalidField("type", value, rule)
    return check_token(value, "type", limit_bytes)

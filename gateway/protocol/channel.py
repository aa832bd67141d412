"""Names of channels and the namespace each belongs to."""

import re
from collections.abc import Container

from gateway.protocol.errors import InvalidField, LimitExceeded

DEFAULT_NAMESPACE = "default"
CHANNEL_LIMIT_BYTES = 255
_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+", re.ASCII)
_RULE = "must be segments of A-Z a-z 0-9 . _ ~ - joined by /, none of them empty, . or .."


def check_channel(name: str, field: str = "channel", limit_bytes: int = CHANNEL_LIMIT_BYTES) -> str:
    """Return `name` unchanged when it is a channel's name.

    Raises InvalidField for a bad name and LimitExceeded for one over `limit_bytes`.
    """
    for segment in name.split("/"):
        # RFC 3986 5.2.4: clients remove dot segments from a path before they send it.
        if segment in (".", "..") or _SEGMENT.fullmatch(segment) is None:
            raise InvalidField(field, name[:300], _RULE)
    if len(name) > limit_bytes:
        raise LimitExceeded(field, name[:300], f"must be at most {limit_bytes} bytes")
    return name


def namespace_of(name: str, declared: Container[str]) -> str:
    """Return the first segment of `name` when it is declared, else `default`."""
    first = name.partition("/")[0]
    return first if first in declared else DEFAULT_NAMESPACE

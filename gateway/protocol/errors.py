"""Errors that callers of the gateway can act on; all share one root and carry their data."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.protocol.position import Position

_PASSWORD = re.compile(r"(?<=://)[^@/]*(?=@)")


def hide_password(text: str) -> str:
    """Return `text` with the user and password of a URL in it replaced by stars."""
    return _PASSWORD.sub("***", text)


class GatewayError(Exception):
    """Root of every error that the gateway raises on purpose."""


class InvalidField(GatewayError):
    """A value that breaks a rule: which field, the value as given, and the rule in words.

    `line` counts from 1 when the field stands in a batch.
    """

    def __init__(self, field: str, value: object, rule: str, line: int | None = None) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule
        self.line = line


class LimitExceeded(InvalidField):
    """A value that is well formed but larger than a configured limit."""


class TooLarge(LimitExceeded):
    """A request's body, or an event in it, that has too many bytes or lines."""


class InvalidBatch(GatewayError):
    """A batch with at least one bad line; nothing of it was stored."""

    def __init__(self, errors: list[InvalidField]) -> None:
        super().__init__(f"{len(errors)} bad line(s)")
        self.errors = errors


class UnknownChannel(GatewayError):
    """The channel has no events and no state (never published, or deleted)."""

    def __init__(self, channel: str) -> None:
        super().__init__(f"channel {channel!r} is unknown")
        self.channel = channel


class PositionMismatch(GatewayError):
    """`If-Match` names another position than the channel's last one."""

    def __init__(self, channel: str, expected: str, current: "Position | None") -> None:
        super().__init__(f"{channel}: expected position {expected}, it is {current or 'unknown'}")
        self.channel = channel
        self.expected = expected
        self.current = current


class IdempotencyConflict(GatewayError):
    """An idempotency key was used before for another event."""

    def __init__(self, key: str, line: int | None = None) -> None:
        super().__init__(f"idempotency key {key!r} was used for another event")
        self.key = key
        self.line = line


class StoreBusy(GatewayError):
    """Too much waits for the store already; nothing was stored, and trying again may help."""


class MergeContention(GatewayError):
    """Other workers kept changing a merged channel; nothing was stored; try again."""


class StoreUnavailable(GatewayError):
    """Redis did not take the command; nothing was stored."""


class OutcomeUnknown(StoreUnavailable):
    """The connection broke while a publish was under way: it may or may not be stored."""


class StoreRefused(GatewayError):
    """The store holds something this gateway must not build on (start-up or data check)."""


class ProtectedNamespace(GatewayError):
    """The namespace is protected, and the caller has no right to it."""

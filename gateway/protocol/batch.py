"""Publish requests as bytes: one event, or a batch of lines; every line is checked."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from gateway.protocol.channel import CHANNEL_LIMIT_BYTES, check_channel, namespace_of
from gateway.protocol.errors import InvalidBatch, InvalidField, TooLarge
from gateway.protocol.event import NewEvent, check_token, check_type
from gateway.protocol.json_value import (
    dump_json,
    has_long_digits,
    parse_json,
    parse_plain_json,
)
from gateway.protocol.namespace import Namespace
from gateway.protocol.state import check_foldable

_FIELDS = frozenset({"channel", "data", "type", "key", "idempotency_key"})
_IDEMPOTENCY_KEY_LIMIT_BYTES = 255
_ERRORS_NAMED = 100  # Bad lines named in one answer; a wrong file has all of them bad.


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """Bounds of what one request may publish; sizes in bytes of UTF-8."""

    event_bytes: int = 256 * 1024
    batch_bytes: int = 8 * 1024 * 1024
    batch_events: int = 10_000
    channel_bytes: int = CHANNEL_LIMIT_BYTES
    key_bytes: int = 255
    type_bytes: int = 255


def parse_event(
    channel: str,
    body: bytes,
    content_type: str,
    limits: PublishLimits,
    *,
    type: str = "",
    key: str = "",
    idempotency_key: str = "",
) -> NewEvent:
    """Return the event that a request's body and parameters spell.

    The body is JSON when the content type says so (`application/json`, `…+json`), text when it
    is `text/…`; of any other kind (curl sends a form's) it is JSON when it is an object or an
    array, else text. Raises InvalidField, TooLarge.
    """
    check_channel(channel, limit_bytes=limits.channel_bytes)
    _check_names(type, key, idempotency_key, limits)
    _check_size(body, limits)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        rule = f"must be UTF-8: {error.reason} at byte {error.start}"
        raise InvalidField("data", None, rule) from None
    return NewEvent(channel, body, _is_json(body, text, content_type), type, key, idempotency_key)


def _is_json(body: bytes, text: str, content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    if not body or kind.startswith("text/"):
        return False
    if kind == "application/json" or kind.endswith("+json"):
        parse_json(body)
        return True
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        parse_json(body)
    except InvalidField:
        return False
    return True


def parse_batch(
    body: bytes, namespaces: Mapping[str, Namespace], limits: PublishLimits
) -> tuple[str, list[NewEvent], list[int]]:
    """Return a batch's namespace, its events, and the line of each, counted from 1.

    A line is `{"channel", "data", "type", "key", "idempotency_key"}`, the first two needed;
    blank lines are passed over. `data` is text when it is a string, else a JSON value. The
    namespace's reducer must be able to take each.
    Raises InvalidBatch naming each bad line, TooLarge when the whole is too large.
    """
    if len(body) > limits.batch_bytes:
        raise TooLarge("body", None, f"a batch is at most {limits.batch_bytes} bytes")
    events: list[NewEvent] = []
    lines: list[int] = []
    errors: list[InvalidField] = []
    namespace: str | None = None
    # What holds for many lines is looked at once: digits of the whole, and each channel's name.
    parse = parse_json if has_long_digits(body) else parse_plain_json
    channels: set[str] = set()
    for number, raw in enumerate(body.split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            event = _parse_line(raw, parse, channels, limits)
            if event.channel not in channels:
                own = namespace_of(event.channel, namespaces)
                namespace = namespace or own
                if own != namespace:
                    rule = f"is in namespace {own}, the batch in {namespace}: one namespace a batch"
                    raise InvalidField("channel", event.channel, rule)
                reducer = namespaces[own].reducer
                channels.add(event.channel)
            check_foldable(event, reducer)
            events.append(event)
            lines.append(number)
        except InvalidField as error:
            error.line = number
            errors.append(error)
            if len(errors) == _ERRORS_NAMED:
                break
        if len(events) > limits.batch_events:
            rule = f"a batch is at most {limits.batch_events} lines"
            raise TooLarge("body", None, rule)
    if errors:
        raise InvalidBatch(errors)
    if namespace is None:
        raise InvalidField("body", None, "a batch needs at least one line")
    return namespace, events, lines


def _parse_line(
    raw: bytes,
    parse: Callable[[bytes, str], object],
    channels: Container[str],
    limits: PublishLimits,
) -> NewEvent:
    """Return the event that a line spells; `channels` are names that need no other look."""
    line = parse(raw, "line")
    if not isinstance(line, dict):
        raise InvalidField("line", _excerpt(raw), 'must be an object {"channel", "data", …}')
    channel, type = line.get("channel"), line.get("type", "")
    key, idempotency_key = line.get("key", ""), line.get("idempotency_key", "")
    if not (
        line.keys() <= _FIELDS
        and "data" in line
        and isinstance(channel, str)
        and isinstance(type, str)
        and isinstance(key, str)
        and isinstance(idempotency_key, str)
    ):
        raise _malformed(line)
    if channel not in channels:
        check_channel(channel, limit_bytes=limits.channel_bytes)
    if type or key or idempotency_key:
        _check_names(type, key, idempotency_key, limits)
    value = line["data"]
    is_json = not isinstance(value, str)
    data = dump_json(value) if is_json else value.encode()
    _check_size(data, limits)
    return NewEvent(channel, data, is_json, type, key, idempotency_key)


def _malformed(line: dict[str, object]) -> InvalidField:
    """Return what is wrong with the fields of a line, the first of it."""
    for name in line:
        if name not in _FIELDS:
            rule = f"is unknown; a line has {', '.join(sorted(_FIELDS))}"
            return InvalidField(name[:100], None, rule)
    for name in ("channel", "type", "key", "idempotency_key"):
        if not isinstance(line.get(name, ""), str):
            return InvalidField(name, line[name], "must be a string")
    return InvalidField("data" if "channel" in line else "channel", None, "is needed")


def _check_names(type: str, key: str, idempotency_key: str, limits: PublishLimits) -> None:
    check_type(type, limits.type_bytes)
    check_token(key, "key", limits.key_bytes)
    check_token(idempotency_key, "idempotency_key", _IDEMPOTENCY_KEY_LIMIT_BYTES)


def _check_size(data: bytes, limits: PublishLimits) -> None:
    if len(data) > limits.event_bytes:
        rule = f"an event is at most {limits.event_bytes} bytes, this one has {len(data)}"
        raise TooLarge("data", None, rule)


def _excerpt(raw: bytes) -> str:
    return raw[:100].decode(errors="replace")

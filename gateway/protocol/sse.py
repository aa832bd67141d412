"""Server-Sent Events on the wire: frames, first blocks and comments as bytes.

Source: WHATWG HTML 9.2.5 (format) and 9.2.6 (interpretation).
"""

import re

import orjson

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import Event
from gateway.protocol.position import Position

_LINE_END = re.compile(rb"\r\n|\r|\n")


def encode_block(
    *,
    id: Position | None = None,
    type: str = "",
    data: bytes | None = None,
    retry_ms: int | None = None,
) -> bytes:
    """Return one block of fields and its blank line.

    `data` of None gives a block without data: clients take its id and dispatch nothing.
    Raises InvalidField when `type` holds CR, LF or NUL.
    """
    lines: list[bytes] = []
    if retry_ms is not None:
        lines.append(b"retry: %d\n" % retry_ms)
    if id is not None:
        lines.append(b"id: %d-%d\n" % id)
    if type:
        if "\n" in type or "\r" in type or "\0" in type:
            raise InvalidField("type", type, "must not contain CR, LF or NUL")
        lines.append(b"event: %b\n" % type.encode())
    if data is not None:
        # CR, LF and CRLF each end a line, so each becomes a line of data: 9.2.6.
        parts = _LINE_END.split(data) if b"\n" in data or b"\r" in data else (data,)
        lines += [b"data: %b\n" % part for part in parts]
    lines.append(b"\n")
    return b"".join(lines)


def encode_event(event: Event) -> bytes:
    """Return the frame of `event` for a stream of one exact channel: its data verbatim."""
    return encode_block(id=event.id, type=event.type, data=event.data)


def encode_enveloped(event: Event) -> bytes:
    """Return the frame of `event` with an envelope, for streams where data alone says too little.

    Data is one line of JSON: `channel`, `key` when it has one, and `data` (text as a string).
    """
    envelope: dict[str, object] = {"channel": event.channel}
    if event.key:
        envelope["key"] = event.key
    envelope["data"] = json_data(event)
    return encode_block(id=event.id, type=event.type, data=orjson.dumps(envelope))


def json_data(event: Event) -> object:
    """Return what stands for the event's data inside a JSON document, bytes kept as they are."""
    # A JSON text may be spread over lines, which an envelope's single line cannot hold.
    return orjson.Fragment(_LINE_END.sub(b" ", event.data)) if event.json else event.data.decode()


def encode_comment(text: str) -> bytes:
    """Return one comment line and a blank line, UTF-8; clients ignore it.

    Raises InvalidField if `text` has CR or LF.
    """
    if "\r" in text or "\n" in text:
        raise InvalidField("comment", text, "must not contain CR or LF")
    return b": %b\n\n" % text.encode()


def encode_gap(
    *,
    id: Position,
    reason: str,
    requested: str,
    oldest: Position,
    newest: Position,
    snapshots: list[str],
    more: bool = False,
) -> bytes:
    """Return the `gap` event: what was asked for cannot be resumed; start from the snapshots.

    `id` is where the stream goes on. `snapshots` are URLs; one channel's also stands alone as
    `snapshot`, and `more` says that the list was cut.
    """
    gap: dict[str, object] = {
        "reason": reason,
        "requested": requested,
        "oldest": str(oldest),
        "newest": str(newest),
        "snapshots": snapshots,
    }
    if len(snapshots) == 1 and not more:
        gap["snapshot"] = snapshots[0]
    if more:
        gap["more"] = True
    return encode_block(id=id, type="gap", data=orjson.dumps(gap))


def jittered_retry_ms(retry_ms: int, random: float) -> int:
    """Return how long a client is to wait, between `retry_ms` and twice that.

    `random` is from 0.0 up to 1.0: clients that lost their streams together come back spread out.
    """
    return retry_ms + int(random * (retry_ms + 1))


def encode_unavailable(reason: str, retry_ms: int) -> bytes:
    """Return the last event of a stream that a passing condition ends; the client comes back."""
    data = orjson.dumps({"reason": reason})
    return encode_block(type="unavailable", data=data, retry_ms=retry_ms)

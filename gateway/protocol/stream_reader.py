"""The reader's side of Server-Sent Events: bytes in, blocks out; no connection is made here.

Source: WHATWG HTML 9.2.6, rule by rule, so that a command shows what a browser would see.
"""

import re
from dataclasses import dataclass, field

from gateway.protocol.errors import GatewayError

BLOCK_LIMIT_BYTES = 64 * 1024 * 1024
"""What one unfinished block may hold; far above the largest event, far below a machine's memory."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class MalformedStream(GatewayError):
    """What came is no event stream, or one with a block too large to hold."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream: what a blank line ends.

    `id` is the last event id after it. `data` is None when it has no data: a browser then takes
    the id and dispatches nothing. `retry_ms` is None unless the block sets it.
    """

    id: str
    type: str = "message"
    data: str | None = None
    retry_ms: int | None = None


@dataclass(slots=True)
class _Fields:
    type: str = ""
    data: list[str] = field(default_factory=list)
    retry_ms: int | None = None
    size: int = 0
    seen: bool = False


class EventStreamParser:
    """Parses one response; `last_event_id` is what the response before it ended with."""

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self._pending = b""
        self._started = False
        self._skip_line_feed = False
        self._fields = _Fields()

    def feed(self, chunk: bytes) -> list[Block]:
        """Return the blocks that `chunk` completes.

        Raises MalformedStream when an unfinished block exceeds BLOCK_LIMIT_BYTES.
        """
        if not chunk:
            return []
        if self._skip_line_feed and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._skip_line_feed = chunk.endswith(b"\r")
        pending = self._pending + chunk
        if not self._started:
            if len(pending) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(pending):
                self._pending = pending
                return []
            pending = pending.removeprefix(_BYTE_ORDER_MARK)
            self._started = True
        *lines, self._pending = _LINE_END.split(pending)
        blocks = [self._take(line.decode("utf-8", "replace")) for line in lines]
        held = len(self._pending) + self._fields.size
        if held > BLOCK_LIMIT_BYTES:
            raise MalformedStream(f"a block of the stream exceeds {BLOCK_LIMIT_BYTES} bytes")
        return [block for block in blocks if block is not None]

    def _take(self, line: str) -> Block | None:
        if not line:
            return self._finish()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        fields = self._fields
        match name:
            case "data":
                fields.data.append(value)
                fields.size += len(value) + 1
            case "event":
                fields.type = value
            case "id" if "\0" not in value:
                self.last_event_id = value
            case "retry" if _DIGITS.fullmatch(value):
                fields.retry_ms = int(value)
            case _:
                # A comment, or a field that we do not know: both are ignored.
                return None
        fields.seen = True
        return None

    def _finish(self) -> Block | None:
        fields, self._fields = self._fields, _Fields()
        if not fields.seen:
            return None
        data = "\n".join(fields.data) if fields.data else None
        return Block(self.last_event_id, fields.type or "message", data, fields.retry_ms)

"""Files of events: NDJSON and CSV into lines of a batch; nothing is sent here."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.protocol.errors import GatewayError, InvalidField
from gateway.protocol.json_value import dump_json, parse_json

SUFFIXES = (".ndjson", ".jsonl", ".csv")

# RFC 8259 6: what stands in a cell exactly like this is a number. An identifier such as 007 or
# 1,000 is none.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


class InvalidFile(GatewayError):
    """A file of events that cannot be read; says where in it."""

    def __init__(self, path: Path, rule: str, line: int | None = None) -> None:
        place = f"{path}:{line}" if line else str(path)
        super().__init__(f"{place}: {rule}")
        self.path = path
        self.line = line
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Template:
    """What the command line says of all events of a file.

    `channel` may be empty when each line of the file names its own. `key_column` names the
    field of each event's object that holds its key. Line N gets the idempotency key
    `<idempotency_key>:N`, so that the same file may be sent again and is stored once.
    """

    channel: str = ""
    type: str = ""
    key: str = ""
    key_column: str = ""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One event as a line of a batch: where in the file it begins and ends, and its bytes."""

    number: int
    end_bytes: int
    group: str
    body: bytes


def read_events(path: Path, template: Template) -> Iterator[Line]:
    """Yield the file's events in order, as they are asked for. Raises InvalidFile."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidFile(path, f"must end in {', '.join(SUFFIXES)}")
    if suffix == ".csv" and not template.channel:
        raise InvalidFile(path, "rows of a CSV file need a CHANNEL to be published to")
    try:
        yield from _read_csv(path, template) if suffix == ".csv" else _read_ndjson(path, template)
    except OSError as error:
        raise InvalidFile(path, f"cannot be read: {error.strerror}") from None


def _read_ndjson(path: Path, template: Template) -> Iterator[Line]:
    end_bytes = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            end_bytes += len(raw)
            text = raw.strip().removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")
            if not text:
                continue
            try:
                value = parse_json(text, "line")
                event = _event_of(value, template)
            except InvalidField as error:
                raise InvalidFile(path, error.rule, number) from None
            yield _line(path, number, end_bytes, event, template, value)


def _event_of(value: object, template: Template) -> dict[str, object]:
    """Return the batch's members for one NDJSON value."""
    if template.channel:
        return {"data": value}
    if not isinstance(value, dict) or not isinstance(value.get("channel"), str):
        raise InvalidField("line", None, "must be an object with a channel, or give a CHANNEL")
    # What was read from a stream has an id, and gets a new one.
    return {name: member for name, member in value.items() if name != "id"}


def _read_csv(path: Path, template: Template) -> Iterator[Line]:
    end_bytes = 0

    def lines(file: Iterable[bytes]) -> Iterator[str]:
        nonlocal end_bytes
        for number, raw in enumerate(file, 1):
            end_bytes += len(raw)
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InvalidFile(path, "must be UTF-8", number) from None

    with path.open("rb") as file:
        rows = csv.reader(lines(file), strict=True)
        try:
            names = next(rows, [])
            _check_header(path, names)
            for row in rows:
                if not row:
                    continue
                number = rows.line_num
                if len(row) != len(names):
                    rule = f"has {len(row)} values for {len(names)} columns"
                    raise InvalidFile(path, rule, number)
                named = dict(zip(names, row, strict=True))
                try:
                    data = {name: _cell(name, text) for name, text in named.items()}
                except InvalidField as error:
                    raise InvalidFile(path, f"{error.field} {error.rule}", number) from None
                # The key is the cell as it is spelled: 1.50 is another key than 1.5.
                yield _line(path, number, end_bytes, {"data": data}, template, named)
        except csv.Error as error:
            raise InvalidFile(path, f"must be CSV: {error}", rows.line_num) from None


def _check_header(path: Path, names: list[str]) -> None:
    if not names:
        raise InvalidFile(path, "must begin with a line of column names")
    if "" in names or len(set(names)) < len(names):
        raise InvalidFile(path, "every column needs a name of its own", 1)


def _cell(name: str, text: str) -> object:
    """Return the value of a cell: a number, None for an empty one, else text."""
    return parse_json(text.encode(), name) if _NUMBER.fullmatch(text) else text or None


def _line(
    path: Path,
    number: int,
    end_bytes: int,
    event: dict[str, object],
    template: Template,
    value: object,
) -> Line:
    if template.channel:
        event = {"channel": template.channel, **event}
    if template.type:
        event["type"] = template.type
    if template.key:
        event["key"] = template.key
    if template.key_column:
        event["key"] = _key(
            path, number, value if template.channel else event.get("data"), template
        )
    if template.idempotency_key:
        event["idempotency_key"] = f"{template.idempotency_key}:{number}"
    group = str(event["channel"]).partition("/")[0]
    return Line(number, end_bytes, group, dump_json(event))


def _key(path: Path, number: int, value: object, template: Template) -> str:
    member = value.get(template.key_column) if isinstance(value, Mapping) else None
    if isinstance(member, str) and member:
        return member
    if isinstance(member, int | float) and not isinstance(member, bool):
        return dump_json(member).decode()
    raise InvalidFile(path, f"has no text or number in {template.key_column} for a key", number)

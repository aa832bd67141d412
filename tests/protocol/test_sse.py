"""Frames, judged by a reader written after the standard."""

import math
from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import Event
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.sse import (
    encode_block,
    encode_comment,
    encode_enveloped,
    encode_event,
    encode_gap,
    encode_unavailable,
    jittered_retry_ms,
    json_data,
)


@dataclass
class Reader:
    """What a browser makes of a stream: WHATWG HTML 9.2.5 and 9.2.6, line by line."""

    dispatched: list[tuple[str, str, str]] = field(default_factory=list)
    last_id: str = ""
    retry_ms: int | None = None

    def read(self, stream: bytes) -> "Reader":
        text = stream.decode().removeprefix("\ufeff")
        data, type_, identifier = "", "", self.last_id
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert lines.pop() == "", "the stream ends inside a line"
        for line in lines:
            if not line:
                self.last_id = identifier
                if data:
                    self.dispatched.append((type_ or "message", data[:-1], identifier))
                data = type_ = ""
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "data":
                    data += value + "\n"
                case "event":
                    type_ = value
                case "id" if "\0" not in value:
                    identifier = value
                case "retry" if value.isascii() and value.isdigit():
                    self.retry_ms = int(value)
        return self


def event(data: bytes, *, json: bool = False, type: str = "", key: str = "") -> Event:
    return Event(Position(5, 1), ORIGIN, "a/b", data, json=json, type=type, key=key)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
lines = st.text(st.sampled_from("ab: \r\n\0\u2028é"), max_size=40)
tokens = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)


def test_a_frame_is_id_type_and_data() -> None:
    frame = encode_event(event(b'{"a":1}', json=True, type="price", key="k"))
    assert frame == b'id: 5-1\nevent: price\ndata: {"a":1}\n\n'
    assert encode_event(event(b"x")) == b"id: 5-1\ndata: x\n\n"


@given(texts | lines, tokens)
def test_a_reader_gets_the_data_with_its_line_ends_as_lf(data: str, type: str) -> None:
    reader = Reader().read(encode_event(event(data.encode(), type=type)))
    expected = data.replace("\r\n", "\n").replace("\r", "\n")
    assert reader.dispatched == [(type or "message", expected, "5-1")]


@pytest.mark.parametrize("data", [b"", b"\n", b"\r", b"\r\n", b"\n\n", b"a\n", b"\r\n\ra", b" a"])
def test_empty_lines_and_blanks_are_kept(data: bytes) -> None:
    reader = Reader().read(encode_event(event(data)))
    expected = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode()
    assert reader.dispatched == [("message", expected, "5-1")]


def test_the_first_block_sets_retry_and_id_and_dispatches_nothing() -> None:
    block = encode_block(retry_ms=2000, id=Position(7, 0))
    assert block == b"retry: 2000\nid: 7-0\n\n"
    reader = Reader().read(block)
    assert (reader.retry_ms, reader.last_id, reader.dispatched) == (2000, "7-0", [])


def test_a_block_without_anything_is_a_blank_line() -> None:
    assert encode_block() == b"\n"


@pytest.mark.parametrize("type", ["a\nb", "a\rb", "a\0b"])
def test_a_type_that_would_break_the_block_is_refused(type: str) -> None:
    with pytest.raises(InvalidField, match="type: must not contain CR, LF or NUL"):
        encode_block(type=type, data=b"x")


@given(texts | lines, tokens)
def test_an_envelope_holds_channel_key_and_text_in_one_line(data: str, key: str) -> None:
    frame = encode_enveloped(event(data.encode(), type="t", key=key))
    [(type, body, identifier)] = Reader().read(frame).dispatched
    expected: dict[str, object] = {"channel": "a/b", "key": key, "data": data}
    if not key:
        del expected["key"]
    assert (type, identifier, orjson.loads(body)) == ("t", "5-1", expected)
    assert frame.count(b"\ndata: ") == 1


@pytest.mark.parametrize(
    "data", [b'{"a":\n[1,\r\n2.0],\r"b":"\\n"}', b"12345678901234567890123", b" 1 "]
)
def test_json_stands_in_an_envelope_as_it_was_published(data: bytes) -> None:
    frame = encode_enveloped(event(data, json=True))
    one_line = data.replace(b"\r\n", b" ").replace(b"\n", b" ").replace(b"\r", b" ")
    assert frame == b'id: 5-1\ndata: {"channel":"a/b","data":%b}\n\n' % one_line


def test_text_that_looks_like_json_stays_a_string() -> None:
    assert json_data(event(b'{"a":1}')) == '{"a":1}'
    assert orjson.dumps(json_data(event(b'{"a":1}', json=True))) == b'{"a":1}'


def test_a_comment_is_ignored_by_readers() -> None:
    assert encode_comment("heartbeat") == b": heartbeat\n\n"
    assert Reader().read(encode_comment("é data: x")).dispatched == []


@pytest.mark.parametrize("text", ["a\ndata: x", "a\r"])
def test_a_comment_of_several_lines_is_refused(text: str) -> None:
    with pytest.raises(InvalidField, match="comment: must not contain CR or LF"):
        encode_comment(text)


def gap(snapshots: list[str], *, more: bool = False) -> tuple[str, dict[str, object], str]:
    frame = encode_gap(
        id=Position(9, 0),
        reason="evicted",
        requested="1-2",
        oldest=Position(5, 0),
        newest=Position(9, 0),
        snapshots=snapshots,
        more=more,
    )
    [(type, body, identifier)] = Reader().read(frame).dispatched
    return type, orjson.loads(body), identifier


def test_a_gap_tells_why_and_where_to_start_again() -> None:
    assert gap(["/snapshots/a"]) == (
        "gap",
        {
            "reason": "evicted",
            "requested": "1-2",
            "oldest": "5-0",
            "newest": "9-0",
            "snapshots": ["/snapshots/a"],
            "snapshot": "/snapshots/a",
        },
        "9-0",
    )


def test_a_gap_of_several_channels_names_no_single_snapshot() -> None:
    _, body, _ = gap(["/snapshots/a", "/snapshots/b"])
    assert body["snapshots"] == ["/snapshots/a", "/snapshots/b"]
    assert not {"snapshot", "more"} & set(body)


@pytest.mark.parametrize("snapshots", [[], ["/snapshots/a"], ["/snapshots/a", "/snapshots/b"]])
def test_a_gap_says_when_its_list_was_cut(snapshots: list[str]) -> None:
    _, body, _ = gap(snapshots, more=True)
    assert body["more"] is True
    assert "snapshot" not in body


def test_a_passing_condition_is_named_and_leaves_the_position_alone() -> None:
    first = encode_block(id=Position(7, 0), retry_ms=2000)
    reader = Reader().read(first + encode_unavailable("draining", 3210))
    assert reader.dispatched == [("unavailable", '{"reason":"draining"}', "7-0")]
    assert (reader.retry_ms, reader.last_id) == (3210, "7-0")


@given(st.lists(st.tuples(texts | lines, tokens), max_size=5))
def test_frames_in_a_row_are_read_one_by_one(events: list[tuple[str, str]]) -> None:
    stream = encode_block(retry_ms=1, id=ORIGIN) + encode_comment("heartbeat")
    for data, type in events:
        stream += encode_event(event(data.encode(), type=type)) + encode_comment("heartbeat")
    assert len(Reader().read(stream).dispatched) == len(events)


def test_a_retry_is_spread_between_the_setting_and_its_double() -> None:
    assert jittered_retry_ms(2000, 0.0) == 2000
    assert jittered_retry_ms(2000, 0.5) == 3000
    assert jittered_retry_ms(2000, math.nextafter(1.0, 0.0)) == 4000
    assert jittered_retry_ms(0, 0.9) == 0

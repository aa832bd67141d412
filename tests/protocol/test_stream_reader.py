"""The reader's parser of event streams: WHATWG HTML 9.2.6, rule by rule."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import stream_reader
from gateway.protocol.position import Position
from gateway.protocol.sse import encode_block, encode_comment
from gateway.protocol.stream_reader import Block, EventStreamParser, MalformedStream


def parse(data: bytes) -> list[Block]:
    return EventStreamParser().feed(data)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_line_ending_counts(end: bytes) -> None:
    lines = [b"id: 1-0", b"event: price", b"data: a", b"data: b", b"", b""]
    assert parse(end.join(lines)) == [Block("1-0", "price", "a\nb")]


def test_a_line_ending_that_is_cut_in_two_ends_one_line() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\ndata: b\r") == []
    assert parser.feed(b"\n") == []
    assert parser.feed(b"\r") == [Block("", data="a\nb")]


def test_an_empty_chunk_changes_nothing() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\ndata: b\n\n") == [Block("", data="a\nb")]


def test_an_unfinished_block_is_dropped() -> None:
    assert parse(b"data: a\n\ndata: b\n") == [Block("", data="a")]


def test_a_block_without_data_sets_the_id_and_dispatches_nothing() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"retry: 2500\nid: 7-0\n\n") == [Block("7-0", retry_ms=2500)]
    assert parser.last_event_id == "7-0"
    assert parser.feed(b"data\n\n") == [Block("7-0", data="")]


def test_the_id_of_the_response_before_it_stays_until_another_comes() -> None:
    parser = EventStreamParser("5-1")
    assert parser.feed(b"data: a\n\nid\ndata: b\n\n") == [
        Block("5-1", data="a"),
        Block("", data="b"),
    ]


def test_comments_and_unknown_fields_are_ignored() -> None:
    assert parse(b": heartbeat\n\nfoo: bar\nDATA: x\n\n") == []


@pytest.mark.parametrize("line", [b"id: 1\x002", b"retry: 1.5", b"retry: -1", b"retry:"])
def test_what_breaks_a_field_is_ignored(line: bytes) -> None:
    assert parse(line + b"\ndata: x\n\n") == [Block("", data="x")]


def test_one_space_after_the_colon_is_no_data() -> None:
    assert parse(b"data:a\ndata: b\ndata:  c:d\n\n") == [Block("", data="a\nb\n c:d")]


def test_one_byte_order_mark_at_the_start_is_no_data() -> None:
    parser = EventStreamParser()
    blocks = [block for byte in b"\xef\xbb\xbfdata: a\n\n" for block in parser.feed(bytes([byte]))]
    assert blocks == [Block("", data="a")]
    assert parse(b"data: a\n\n\xef\xbb\xbfdata: b\n\n") == [Block("", data="a")]


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert parse(b"data: \xff\n\n") == [Block("", data="\ufffd")]


def test_an_endless_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "BLOCK_LIMIT_BYTES", 10)
    with pytest.raises(MalformedStream, match="exceeds 10 bytes"):
        parse(b"data: 12345678")


def test_endless_data_without_a_blank_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "BLOCK_LIMIT_BYTES", 10)
    with pytest.raises(MalformedStream, match="exceeds 10 bytes"):
        parse(b"data: 1234\ndata: 5678\ndata: 90ab\n")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
types = texts.filter(lambda text: not re.search("[\r\n\0]", text))


@given(
    st.lists(st.tuples(st.integers(0, 2**53 - 1), types, texts), max_size=5),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
def test_what_the_gateway_encodes_is_read_back_however_it_is_cut(
    events: list[tuple[int, str, str]], sizes: list[int]
) -> None:
    stream = encode_comment("heartbeat") + b"".join(
        encode_block(id=Position(ms, 0), type=type, data=data.encode()) for ms, type, data in events
    )
    parser, blocks, at, turn = EventStreamParser(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        blocks += parser.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert blocks == [
        Block(f"{ms}-0", type or "message", re.sub("\r\n|\r", "\n", data))
        for ms, type, data in events
    ]

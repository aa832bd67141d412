"""Publish requests: single events, and batches of which every bad line is named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.batch import PublishLimits, parse_batch, parse_event
from gateway.protocol.errors import InvalidBatch, InvalidField, LimitExceeded, TooLarge
from gateway.protocol.event import RESERVED_TYPES, NewEvent
from gateway.protocol.namespace import Namespace, Reducer

LIMITS = PublishLimits()
NAMESPACES = {
    "default": Namespace("default"),
    "stocks": Namespace("stocks"),
    "board": Namespace("board", Reducer.KEYED),
    "patch": Namespace("patch", Reducer.MERGE),
}


@pytest.mark.parametrize(
    ("content_type", "body", "is_json"),
    [
        ("application/json", b' {"a": 1.0}\n', True),
        ("application/json; charset=utf-8", b"1", True),
        ("Application/JSON", b'"text"', True),
        ("application/merge-patch+json", b"null", True),
        ("text/plain", b'{"a":1}', False),
        ("text/plain; charset=utf-8", b"[1]", False),
        # curl says so of every -d.
        ("application/x-www-form-urlencoded", b'{"a":1}', True),
        ("application/x-www-form-urlencoded", b" [1]", True),
        ("application/x-www-form-urlencoded", b"{not json", False),
        ("application/x-www-form-urlencoded", b"12", False),
        ("application/x-www-form-urlencoded", b"hello", False),
        ("application/octet-stream", b"{}", True),
        ("", b"\xc3\xa9", False),
        ("application/json", b"", False),  # deletes a key
        ("", b"", False),
    ],
)
def test_a_body_is_json_when_its_type_or_its_look_says_so(
    content_type: str, body: bytes, is_json: bool
) -> None:
    assert parse_event("a/b", body, content_type, LIMITS) == NewEvent("a/b", body, is_json)


def test_an_event_carries_its_names() -> None:
    event = parse_event("a", b"x", "", LIMITS, type="t", key="k", idempotency_key="i")
    assert event == NewEvent("a", b"x", False, "t", "k", "i")


@pytest.mark.parametrize("content_type", ["application/json", "application/x+json"])
@pytest.mark.parametrize("body", [b"{", b"hello", b" ", b"NaN"])
def test_what_claims_to_be_json_must_parse(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidField, match="data: must be JSON"):
        parse_event("a", body, content_type, LIMITS)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/json"])
def test_bytes_that_are_no_utf_8_are_refused_with_their_place(content_type: str) -> None:
    with pytest.raises(InvalidField, match="data: must be UTF-8: invalid start byte at byte 2"):
        parse_event("a", b"ab\xff", content_type, LIMITS)


def test_an_event_over_its_limit_is_refused_with_both_sizes() -> None:
    limits = replace(LIMITS, event_bytes=3)
    assert parse_event("a", b"abc", "", limits).data == b"abc"
    with pytest.raises(TooLarge, match="data: an event is at most 3 bytes, this one has 4"):
        parse_event("a", b"abcd", "", limits)


@pytest.mark.parametrize(
    ("names", "field"),
    [
        ({"type": "a\n"}, "type"),
        ({"key": "a\0"}, "key"),
        ({"idempotency_key": "a\r"}, "idempotency_key"),
        ({"type": "x" * 256}, "type"),
        ({"key": "x" * 256}, "key"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
    ],
)
def test_bad_names_are_refused(names: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_event("a", b"x", "", LIMITS, **names)
    assert caught.value.field == field
    longest = dict.fromkeys(names, "x" * 255)
    assert parse_event("a", b"x", "", LIMITS, **longest).data == b"x"


def test_a_bad_channel_is_refused() -> None:
    with pytest.raises(InvalidField, match="channel: must be segments"):
        parse_event("a//b", b"x", "", LIMITS)
    with pytest.raises(LimitExceeded, match="channel: must be at most 2 bytes"):
        parse_event("abc", b"x", "", replace(LIMITS, channel_bytes=2))


def batch(*lines: object) -> bytes:
    return b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )


def test_a_batch_keeps_the_order_and_the_number_of_each_line() -> None:
    body = batch(
        {"channel": "a", "data": {"n": 1}},
        b"",
        b" \t\r",
        {"channel": "b", "data": "text", "type": "t", "key": "k", "idempotency_key": "i"},
        {"channel": "a", "data": None},
        {"channel": "a", "data": ""},
        b"",
    )
    assert parse_batch(body, NAMESPACES, LIMITS) == (
        "default",
        [
            NewEvent("a", b'{"n":1}', True),
            NewEvent("b", b"text", False, "t", "k", "i"),
            NewEvent("a", b"null", True),
            NewEvent("a", b"", False),
        ],
        [1, 4, 5, 6],
    )


def test_lines_may_end_in_cr_lf() -> None:
    body = b'{"channel":"stocks/a","data":1}\r\n{"channel":"stocks/b","data":2}\r\n'
    namespace, events, lines = parse_batch(body, NAMESPACES, LIMITS)
    assert (namespace, [event.data for event in events], lines) == ("stocks", [b"1", b"2"], [1, 2])


def test_big_integers_stay_exact_in_a_batch() -> None:
    body = b'{"channel":"a","data":[12345678901234567890123]}'
    [event] = parse_batch(body, NAMESPACES, LIMITS)[1]
    assert event.data == b"[12345678901234567890123]"


@pytest.mark.parametrize(
    ("line", "field", "rule"),
    [
        (b"{", "line", "must be JSON"),
        (b"\xff", "line", "must be JSON"),
        (b"[1]", "line", "must be an object"),
        (b"null", "line", "must be an object"),
        ({"data": 1}, "channel", "is needed"),
        ({"channel": "a"}, "data", "is needed"),
        ({"channel": 1, "data": 1}, "channel", "must be a string"),
        ({"channel": "a", "data": 1, "type": None}, "type", "must be a string"),
        ({"channel": "a", "data": 1, "key": 7}, "key", "must be a string"),
        ({"channel": "a", "data": 1, "idempotency_key": []}, "idempotency_key", "must be a string"),
        (
            {"channel": "a", "data": 1, "event": "x"},
            "event",
            "is unknown; a line has channel, data",
        ),
        ({"channel": "a", "data": 1, "x" * 300: 1}, "x" * 100, "is unknown"),
        ({"channel": "a b", "data": 1}, "channel", "must be segments"),
        ({"channel": "a", "data": 1, "type": "\n"}, "type", "must not contain CR, LF or NUL"),
        ({"channel": "a", "data": 1, "key": "k" * 256}, "key", "must be at most 255 bytes"),
        ({"channel": "a", "data": "x" * 101}, "data", "an event is at most 100 bytes"),
        ({"channel": "stocks/a", "data": 1}, "channel", "is in namespace stocks, the batch in"),
    ],
)
def test_a_bad_line_is_named_with_field_and_rule(line: object, field: str, rule: str) -> None:
    good = {"channel": "a", "data": 1}
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(batch(good, b"", line, good), NAMESPACES, replace(LIMITS, event_bytes=100))
    [error] = caught.value.errors
    assert (error.line, error.field) == (3, field)
    assert error.rule.startswith(rule)


def test_every_bad_line_is_named() -> None:
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(batch(b"x", {"channel": "a", "data": 1}, {"data": 1}, b"y"), NAMESPACES, LIMITS)
    assert [(error.line, error.field) for error in caught.value.errors] == [
        (1, "line"),
        (3, "channel"),
        (4, "line"),
    ]


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ([{"data": 1, "key": "k"}, {"data": 1}, {"data": "", "key": "k"}, {"data": ""}], "key"),
        ([{"data": {}}, {"data": "text"}, {"data": None}, {"data": ""}], "data"),
    ],
)
def test_every_line_that_the_reducer_cannot_take_is_named(
    lines: list[dict[str, object]], field: str
) -> None:
    channel = "board/a" if field == "key" else "patch/a"
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(batch(*({"channel": channel, **line} for line in lines)), NAMESPACES, LIMITS)
    assert [(error.line, error.field) for error in caught.value.errors] == [(2, field), (4, field)]


def test_the_first_hundred_bad_lines_are_named() -> None:
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(b"x\n" * 1000, NAMESPACES, LIMITS)
    assert [error.line for error in caught.value.errors] == list(range(1, 101))


@pytest.mark.parametrize("body", [b"", b"\n", b" \n\r\n"])
def test_a_batch_without_lines_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidField, match="body: a batch needs at least one line"):
        parse_batch(body, NAMESPACES, LIMITS)


def test_the_events_and_bytes_of_a_batch_are_bounded() -> None:
    body = batch(*[{"channel": "a", "data": 1}] * 3)
    assert len(parse_batch(body, NAMESPACES, replace(LIMITS, batch_events=3))[1]) == 3
    with pytest.raises(TooLarge, match="body: a batch is at most 2 lines"):
        parse_batch(body, NAMESPACES, replace(LIMITS, batch_events=2))
    assert parse_batch(body, NAMESPACES, replace(LIMITS, batch_bytes=len(body)))
    with pytest.raises(TooLarge, match="body: a batch is at most"):
        parse_batch(body, NAMESPACES, replace(LIMITS, batch_bytes=len(body) - 1))


def test_a_big_integer_of_one_line_is_exact_and_the_others_are_as_they_were() -> None:
    big = 12345678901234567890123
    body = batch({"channel": "a", "data": 1.5}, {"channel": "a", "data": {"n": [big]}}, b"{")
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(body, NAMESPACES, LIMITS)
    assert [(error.line, error.field) for error in caught.value.errors] == [(3, "line")]
    _, events, _ = parse_batch(body[:-2], NAMESPACES, LIMITS)
    assert [event.data for event in events] == [b"1.5", b'{"n":[%d]}' % big]


def test_a_channel_that_was_fine_once_does_not_excuse_the_rest_of_a_line() -> None:
    good = {"channel": "a", "data": 1}
    bad = [{**good, "key": "\n"}, {"channel": "a"}, {**good, "channel": ["a"]}]
    with pytest.raises(InvalidBatch) as caught:
        parse_batch(batch(good, *bad), NAMESPACES, LIMITS)
    assert [(error.line, error.field) for error in caught.value.errors] == [
        (2, "key"), (3, "data"), (4, "channel"),
    ]  # fmt: skip


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tokens = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=20)
types = tokens.filter(lambda type: type not in RESERVED_TYPES)
values = st.none() | st.booleans() | st.integers() | texts | st.lists(texts | st.integers())


@given(st.lists(st.tuples(values, types, tokens), min_size=1, max_size=10), st.booleans())
def test_what_a_batch_says_is_what_is_published(
    rows: list[tuple[object, str, str]], ascii_only: bool
) -> None:
    body = "\n".join(
        json.dumps(
            {"channel": "a", "data": data, "type": type, "key": key}, ensure_ascii=ascii_only
        )
        for data, type, key in rows
    )
    _, events, lines = parse_batch(body.encode(), NAMESPACES, LIMITS)
    assert lines == list(range(1, len(rows) + 1))
    for event, (data, type, key) in zip(events, rows, strict=True):
        assert (event.type, event.key, event.json) == (type, key, not isinstance(data, str))
        assert (json.loads(event.data) if event.json else event.data.decode()) == data

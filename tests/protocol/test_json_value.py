"""JSON in and out: strict, compact, and exact for integers of any size."""

import contextlib
import json
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.json_value import (
    DEPTH_LIMIT,
    INTEGER_LIMIT_DIGITS,
    dump_json,
    parse_json,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)


def nest(levels: int, core: bytes = b"") -> bytes:
    return b"[" * levels + core + b"]" * levels


@given(json_values)
def test_every_value_survives_exactly(value: object) -> None:
    text = dump_json(value)
    assert parse_json(text) == value
    assert dump_json(parse_json(text)) == text
    assert json.loads(text) == value


@given(json_values)
def test_texts_of_another_writer_are_read_as_they_are_meant(value: object) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=2)
        assert parse_json(text.encode()) == value


@pytest.mark.parametrize(
    "number",
    [
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**18 - 1,
        10**18,
        -(10**300),
        10**400,  # beyond a double: orjson calls it infinite
        10**INTEGER_LIMIT_DIGITS - 1,
        -(10**INTEGER_LIMIT_DIGITS) + 1,
    ],
    ids=lambda number: f"{number.bit_length()}_bits",
)
def test_integers_of_any_size_stay_exact(number: int) -> None:
    text = str(number).encode()
    for data in (text, b'{"a":[%b]}' % text):
        value = parse_json(data)
        assert dump_json(value) == data
    assert parse_json(text) == number
    assert type(parse_json(text)) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1.5", 1.5),
        (b"-0.0", 0.0),
        (b"1E5", 100000.0),
        (b"0.1234567890123456789012345", 0.1234567890123456789012345),
        (b"1234567890123456789012345.5e-3", 1234567890123456789012.3455),
        (b"1e00000000000000000000001", 10.0),
        (b" \t\r\n1 \n", 1),
        (b'"\\u00e9\\ud83d\\ude00"', "é😀"),
        (b'"\\u12345678901234567890123456"', "\u12345678901234567890123456"),
        (b'"\\u0000"', "\0"),
        (b'"12345678901234567890123"', "12345678901234567890123"),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":1,"a":22345678901234567890}', {"a": 22345678901234567890}),
        (b"[]", []),
        (b"{}", {}),
        (b"null", None),
    ],
)
def test_numbers_strings_and_blanks_are_read(text: bytes, value: object) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"nul",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"[NaN]",
        b"1e400",
        b"-1e400",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"0x10",
        b"1 2",
        b"// c\n1",
        b'"a',
        b'"\n"',
        b'"\\x"',
        b'"\\ud800"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf1",
        '{"a":1}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("long", [b"", b"12345678901234567890123"])
def test_what_is_not_json_is_refused(text: bytes, long: bytes) -> None:
    # With a long integer beside it the standard library reads: it is no more lenient.
    with pytest.raises(InvalidField, match="data: must be JSON: ") as caught:
        parse_json(b"[%b,%b]" % (long, text) if long else text)
    assert caught.value.field == "data"


@pytest.mark.parametrize(
    "text",
    [
        b"0012345678901234567890123",
        b"12345678901234567890123.",
        b"12345678901234567890123e",
        b"1e12345678901234567890123",
        b"9" * 400 + b".5",
        b"9" * (INTEGER_LIMIT_DIGITS + 1),
        b"-" + b"9" * (INTEGER_LIMIT_DIGITS + 1),
        b'"12345678901234567890123',
        b'"\\ud80012345678901234567890123"',
    ],
    ids=lambda text: repr(text[:30]),
)
def test_long_runs_of_digits_open_no_back_door(text: bytes) -> None:
    with pytest.raises(InvalidField, match="must be JSON"):
        parse_json(text)


def test_an_integer_of_too_many_digits_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidField, match="integer of more than 4300 digits"):
        parse_json(b"[%b]" % (b"7" * 100_000))


def test_the_error_names_the_field_and_cuts_the_value() -> None:
    with pytest.raises(InvalidField) as caught:
        parse_json(b"\xff" + b"x" * 1000, field="body")
    assert caught.value.field == "body"
    assert caught.value.value == "\ufffd" + "x" * 99


@pytest.mark.parametrize("core", [b"", b"1", b"12345678901234567890123", b'"[[["'])
def test_nesting_ends_at_the_limit(core: bytes) -> None:
    assert dump_json(parse_json(nest(DEPTH_LIMIT, core))) == nest(DEPTH_LIMIT, core)
    with pytest.raises(InvalidField, match=f"must nest at most {DEPTH_LIMIT} levels"):
        parse_json(nest(DEPTH_LIMIT + 1, core))


def test_nesting_counts_arrays_and_objects_alike() -> None:
    levels = DEPTH_LIMIT // 2
    assert parse_json(b'{"a":[' * levels + b"]}" * levels)
    with pytest.raises(InvalidField, match="must nest"):
        parse_json(b'[{"a":[' + b'{"a":[' * levels + b"]}" * levels + b"]}]")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert parse_json(b"[%b[]]" % (b"[{}]," * 1000)) == [[{}]] * 1000 + [[]]
    assert parse_json(b'"%b"' % (b"[" * 1000)) == "[" * 1000


@pytest.mark.parametrize("core", [b"", b"12345678901234567890123"])
@pytest.mark.parametrize("levels", [1000, 1024, 2000, 100_000])
def test_no_depth_exhausts_the_stack(levels: int, core: bytes) -> None:
    with pytest.raises(InvalidField):
        parse_json(nest(levels, core))
    # Hidden behind an equal name, the deep value is no part of the result.
    hidden = b'{"a":%b,"a":12345678901234567890123}' % nest(levels, core)
    with pytest.raises(InvalidField):
        parse_json(hidden)


@pytest.mark.parametrize(
    "text",
    [
        b"[%b]" % b",".join([b"9" * INTEGER_LIMIT_DIGITS] * 60),
        b"9" * 262_144,
        b"[" * 262_144,
        b"[%b]" % b",".join([b"[]"] * 87_000),
        b'"%b"' % (b"0" * 262_000),
        b'"%b"' % (b"000000000000000000x" * 13_700),
    ],
    ids=["integers", "digits", "depth", "arrays", "zeros", "short_runs"],
)
@pytest.mark.timeout(20)
def test_no_text_of_256_kib_takes_long(text: bytes) -> None:
    """Each takes some milliseconds; what grows with the square of the size takes minutes."""
    with contextlib.suppress(InvalidField):
        parse_json(text)


def test_keys_keep_their_order_unless_sorted() -> None:
    value = {"b": 1, "a": {"d": 2**70, "c": []}, "é": 0, "Z": 0}
    assert dump_json(value) == (
        '{"b":1,"a":{"d":1180591620717411303424,"c":[]},"é":0,"Z":0}'.encode()
    )
    assert dump_json(value, sort_keys=True) == (
        '{"Z":0,"a":{"c":[],"d":1180591620717411303424},"b":1,"é":0}'.encode()
    )


def test_fragments_pass_as_they_are_beside_big_integers_too() -> None:
    fragment = orjson.Fragment(b'{ "kept" : 1.0 }')
    assert dump_json({"a": fragment}) == b'{"a":{ "kept" : 1.0 }}'
    assert dump_json([{"a": fragment}, (-(2**90), True)]) == (
        b'[{"a":{ "kept" : 1.0 }},[-1237940039285380274899124224,true]]'
    )
    assert dump_json(fragment) == b'{ "kept" : 1.0 }'


def test_a_number_that_json_lacks_becomes_null() -> None:
    assert dump_json([math.nan, math.inf, 2**70]) == b"[null,null,1180591620717411303424]"
    assert dump_json([math.nan]) == b"[null]"


@pytest.mark.parametrize(
    "value", [{1: 2}, b"bytes", {"a": {1, 2}}, "\ud800", object(), [2**70, b"x"], [10**5000]]
)
def test_what_has_no_json_is_refused(value: object) -> None:
    with pytest.raises(InvalidField, match="value: must fit JSON"):
        dump_json(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[object] = [2**70]
    value.append(value)
    with pytest.raises(InvalidField, match="must fit JSON"):
        dump_json(value)

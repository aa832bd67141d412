"""Positions and their text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.position import ORIGIN, Position

LARGEST = 2**53 - 1
parts = st.integers(0, LARGEST)


@given(parts, parts)
def test_a_position_survives_its_text(ms: int, seq: int) -> None:
    position = Position(ms, seq)
    assert str(position) == f"{ms}-{seq}"
    assert Position.parse(str(position)) == position


@given(parts, parts, parts, parts)
def test_milliseconds_order_before_sequences(ms: int, seq: int, ms2: int, seq2: int) -> None:
    assert (Position(ms, seq) < Position(ms2, seq2)) == (ms < ms2 or (ms == ms2 and seq < seq2))


@given(parts, parts)
def test_nothing_is_before_the_origin(ms: int, seq: int) -> None:
    assert Position(ms, seq) >= ORIGIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "01-2",
        "1-02",
        "+1-2",
        " 1-2",
        "1-2\n",
        "1-2 ",
        "1.0-2",
        "1-*",
        "$",
        "a-b",
        "\u0661-2",
        "12345678901234567-0",
    ],
)
def test_other_texts_are_refused_with_the_field(text: str) -> None:
    with pytest.raises(InvalidField, match="after: must be <milliseconds>-<sequence>") as caught:
        Position.parse(text, "after")
    assert (caught.value.field, caught.value.value) == ("after", text)


@pytest.mark.parametrize("text", [f"{LARGEST + 1}-0", f"0-{LARGEST + 1}", "9999999999999999-1"])
def test_parts_that_a_double_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(InvalidField, match=f"must not exceed {LARGEST}"):
        Position.parse(text)
    assert Position.parse(f"{LARGEST}-{LARGEST}") == Position(LARGEST, LARGEST)

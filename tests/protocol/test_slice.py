"""Slices: their numbers, their boundaries, and what they begin and end with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import InvalidField
from gateway.protocol.life import Cut, Life
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.slice import (
    boundary,
    encode_slice_end,
    encode_slice_start,
    lost_within,
    parse_slice_number,
    slice_cache_control,
    slice_of,
)

LARGEST = 2**53 - 1


@given(st.integers(0, LARGEST), st.integers(5, 3600))
def test_every_time_lies_in_the_slice_between_its_boundaries(ms: int, seconds: int) -> None:
    number = slice_of(ms, seconds)
    assert boundary(number, seconds).ms <= ms < boundary(number + 1, seconds).ms


def test_a_slice_says_when_to_ask_for_the_next_and_where_it_begins() -> None:
    assert encode_slice_start(500) == b"retry: 500\n\n"
    assert encode_slice_end(3, 30) == b'id: 120000-0\nevent: end\ndata: {"next":4}\n\n'


@pytest.mark.parametrize("text", ["0", "1", "58797060", str(LARGEST // 5000 - 1)])
def test_a_number_is_read(text: str) -> None:
    assert parse_slice_number(text, 5) == int(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", "01", " 1", "x", "²", "٣", "9" * 16, "9" * 5000, "1e3"]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_slice_number(text, 5)
    assert caught.value.field == "slice"


def test_a_slice_that_ends_past_all_positions_is_refused() -> None:
    largest = LARGEST // 5000 - 1
    assert boundary(largest + 1, 5).ms <= LARGEST
    with pytest.raises(InvalidField, match=f"at most {largest}"):
        parse_slice_number(str(largest + 1), 5)


@pytest.mark.parametrize(
    ("recovered", "resumed", "lost"),
    [(0, 9, False), (0, 10, False), (0, 11, True), (12, 14, True), (19, 30, True), (20, 30, False)],
)
def test_a_slice_has_lost_what_a_cut_holds_of_it(recovered: int, resumed: int, lost: bool) -> None:
    cut = Cut(Position(recovered, 0), Position(resumed, 0))
    life = Life("e", "1@0-0", ORIGIN, ORIGIN, ORIGIN, (cut,))
    assert lost_within(life, Position(10, 0), Position(20, 0)) is lost


def test_no_cache_may_play_a_slice_again_when_its_time_is_over() -> None:
    assert slice_cache_control(28) == (
        "public, max-age=28, stale-while-revalidate=0, stale-if-error=0, no-transform"
    )

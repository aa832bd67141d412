"""Cursors of long-polls: each answer makes the next URL a new one, and readers meet again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.cursor import EPOCH_MS, INTERVAL_MS, JITTER_MS, next_cursor, parse_cursor
from gateway.protocol.errors import InvalidField
from gateway.protocol.position import Position

NOW = EPOCH_MS + 1000 * INTERVAL_MS + 7000
START = 1000 * INTERVAL_MS
"""The beginning of the interval that NOW is in."""


def test_without_an_event_all_of_an_interval_get_one_cursor() -> None:
    for cursor in (None, 0, START - INTERVAL_MS, START - 1):
        assert next_cursor(cursor, NOW, 0.3) == START
        assert next_cursor(cursor, NOW + 12_999, 0.9) == START
        assert next_cursor(cursor, NOW + 13_000, 0.9) == START + INTERVAL_MS


def test_a_second_answer_in_an_interval_moves_on_by_chance() -> None:
    assert next_cursor(START, NOW, 0.0) == START + 1
    assert next_cursor(START, NOW, 0.999999) == START + JITTER_MS - 1
    assert next_cursor(START + 500, NOW, 0.0) == START + 501


def test_whoever_gets_the_same_event_goes_on_with_the_same_cursor() -> None:
    event = Position(NOW + 10, 3)
    assert {
        next_cursor(given, NOW + 50, 0.5, event) for given in (None, 5, START, START + 900)
    } == {NOW + 10 - EPOCH_MS}


def test_a_cursor_from_the_future_moves_on_all_the_same() -> None:
    assert next_cursor(START * 5, NOW, 0.5, Position(NOW, 0)) > START * 5


def test_times_before_the_epoch_give_no_negative_cursor() -> None:
    assert next_cursor(None, 1000, 0.5) == 0
    assert next_cursor(None, NOW, 0.5, Position(1, 0)) == 0


@given(
    st.none() | st.integers(0, 10**15 - 1),
    st.integers(0, 2**50),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.builds(Position, st.integers(0, 2**50), st.integers(0, 5)),
)
def test_it_always_moves_on(
    cursor: int | None, now_ms: int, jitter: float, moved_to: Position | None
) -> None:
    answer = next_cursor(cursor, now_ms, jitter, moved_to)
    assert answer >= 0
    assert cursor is None or answer > cursor


@given(st.integers(EPOCH_MS, EPOCH_MS + 10**12), st.lists(st.integers(1000, 30_000), min_size=1))
def test_waits_of_a_second_or_more_never_run_ahead_of_the_clock(
    now_ms: int, waits: list[int]
) -> None:
    cursor = None
    for wait_ms in waits:
        now_ms += wait_ms
        cursor = next_cursor(cursor, now_ms, 0.999999)
        assert cursor <= now_ms - EPOCH_MS


def test_a_cursor_is_what_an_answer_gave() -> None:
    assert parse_cursor("0") == 0
    assert parse_cursor("999999999999999") == 10**15 - 1
    for text in ("", "-1", "01", "1.0", "x", "٣", " 1", str(10**15), "9" * 5000):
        with pytest.raises(InvalidField) as caught:
            parse_cursor(text)
        assert caught.value.field == "cursor"

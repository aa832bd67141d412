"""Errors carry their data and speak in one line."""

import pytest

from gateway.protocol import errors
from gateway.protocol.errors import (
    GatewayError,
    IdempotencyConflict,
    InvalidBatch,
    InvalidField,
    LimitExceeded,
    OutcomeUnknown,
    PositionMismatch,
    StoreUnavailable,
    UnknownChannel,
)
from gateway.protocol.position import Position


def test_every_error_has_the_one_root() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(classes) > 5
    assert all(issubclass(error, GatewayError) for error in classes)


def test_a_bad_field_is_named_with_value_rule_and_line() -> None:
    error = InvalidField("key", "a\n", "must not contain LF", line=7)
    assert str(error) == "key: must not contain LF"
    assert (error.field, error.value, error.rule, error.line) == (
        "key",
        "a\n",
        "must not contain LF",
        7,
    )
    assert InvalidField("key", "", "rule").line is None


def test_a_limit_is_a_rule_of_its_field() -> None:
    assert issubclass(LimitExceeded, InvalidField)


def test_a_bad_batch_keeps_every_bad_line() -> None:
    lines = [InvalidField("data", None, "is missing", line) for line in (1, 4)]
    error = InvalidBatch(lines)
    assert error.errors == lines
    assert str(error) == "2 bad line(s)"


def test_an_unknown_channel_is_named() -> None:
    error = UnknownChannel("a/b")
    assert error.channel == "a/b"
    assert str(error) == "channel 'a/b' is unknown"


@pytest.mark.parametrize(("current", "text"), [(Position(5, 1), "5-1"), (None, "unknown")])
def test_a_mismatch_tells_both_positions(current: Position | None, text: str) -> None:
    error = PositionMismatch("a", "4-0", current)
    assert (error.channel, error.expected, error.current) == ("a", "4-0", current)
    assert str(error) == f"a: expected position 4-0, it is {text}"


def test_a_conflict_tells_the_key_and_the_line() -> None:
    error = IdempotencyConflict("k1", line=3)
    assert (error.key, error.line) == ("k1", 3)
    assert "'k1'" in str(error)


def test_an_unknown_outcome_is_a_store_that_did_not_answer() -> None:
    assert issubclass(OutcomeUnknown, StoreUnavailable)

"""Events and the tokens that streams carry beside their data."""

import pytest

from gateway.protocol.errors import InvalidField, LimitExceeded
from gateway.protocol.event import RESERVED_TYPES, check_token, check_type


@pytest.mark.parametrize("value", ["", "price", "\u00e9\U0001f600", "a b\t", "\u2028", "x" * 255])
def test_a_token_passes_unchanged(value: str) -> None:
    assert check_token(value, "type", 255) == value


@pytest.mark.parametrize("value", ["a\rb", "a\n", "\r\n", "\0", "a\0b"])
def test_line_ends_and_nul_are_refused(value: str) -> None:
    with pytest.raises(InvalidField, match="key: must not contain CR, LF or NUL") as caught:
        check_token(value, "key", 255)
    assert (caught.value.field, caught.value.value) == ("key", value)


def test_a_lone_surrogate_is_refused_in_a_form_that_can_be_shown() -> None:
    with pytest.raises(InvalidField, match="type: must be valid Unicode") as caught:
        check_token("a\ud800", "type", 255)
    assert caught.value.value == r"'a\ud800'"


def test_the_limit_counts_bytes_and_not_characters() -> None:
    assert check_token("\u00e9" * 127, "type", 255)
    with pytest.raises(LimitExceeded, match="type: must be at most 255 bytes"):
        check_token("\u00e9" * 128, "type", 255)


@pytest.mark.parametrize("reserved", sorted(RESERVED_TYPES))
def test_a_type_of_the_gateways_own_events_is_refused(reserved: str) -> None:
    with pytest.raises(InvalidField, match="reserved"):
        check_type(reserved, 255)


def test_any_other_type_is_taken() -> None:
    assert check_type("goal", 255) == "goal"

"""Sets of selectors and what they choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.channel import namespace_of
from gateway.protocol.errors import InvalidField, LimitExceeded
from gateway.protocol.selector import Selection, parse_selection

DECLARED = {"default", "stocks"}
channels = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4).map("/".join)
selectors = channels | channels.map(lambda name: f"{name}/*")


def test_an_exact_channel_is_single() -> None:
    selection = parse_selection(["stocks/ibm"], DECLARED)
    assert selection == Selection("stocks", ("stocks/ibm",), ())
    assert selection.single == "stocks/ibm"
    assert selection.matches("stocks/ibm")
    assert not selection.matches("stocks/ibm/x")


def test_a_wildcard_chooses_any_depth_below_but_not_its_prefix() -> None:
    selection = parse_selection(["stocks/*"], DECLARED)
    assert selection == Selection("stocks", (), ("stocks/",))
    assert selection.single is None
    assert selection.matches("stocks/ibm")
    assert selection.matches("stocks/nyse/ibm")
    assert not selection.matches("stocks")
    assert not selection.matches("stocksx/ibm")


def test_equal_sets_compare_equal_however_they_are_spelled() -> None:
    one = parse_selection(["b/x", "a/b/*", "a/*", "a/c", "b/x"], DECLARED)
    other = parse_selection(["a/*", "b/x"], DECLARED)
    assert one == other == Selection("default", ("b/x",), ("a/",))
    assert hash(one) == hash(other)
    assert one.single is None


def test_a_prefix_does_not_cover_the_channel_of_its_own_name() -> None:
    assert parse_selection(["a", "a/*"], DECLARED) == Selection("default", ("a",), ("a/",))


def test_several_exact_channels_are_not_single() -> None:
    assert parse_selection(["a", "b"], DECLARED).single is None


@pytest.mark.parametrize("selector", ["a/*/b", "a/*/*", "a/*b", "a/**", "a/*/"])
def test_a_wildcard_stands_only_at_the_end(selector: str) -> None:
    with pytest.raises(InvalidField, match="a wildcard stands only at the end"):
        parse_selection(["ok", selector], DECLARED)


def test_a_wildcard_over_everything_is_refused() -> None:
    with pytest.raises(InvalidField, match="a wildcard needs a prefix"):
        parse_selection(["*"], DECLARED)


@pytest.mark.parametrize("selector", ["", "/*", "a*", "a//*", "a/../*", "*/a", "a b"])
def test_a_bad_name_in_a_selector_is_refused(selector: str) -> None:
    with pytest.raises(InvalidField, match="channel: must be segments"):
        parse_selection([selector], DECLARED)


def test_a_selector_over_the_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="at most 4 bytes"):
        parse_selection(["abcde/*"], DECLARED, limit_bytes=4)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InvalidField, match="at least one channel is needed"):
        parse_selection([], DECLARED)


def test_two_namespaces_are_refused_and_named() -> None:
    with pytest.raises(InvalidField, match=r"a/\* is in default, stocks/ibm is in stocks"):
        parse_selection(["a/*", "stocks/ibm", "b"], DECLARED)


@given(st.lists(selectors, min_size=1, max_size=6), channels)
def test_a_selection_matches_exactly_what_one_of_its_selectors_does(
    texts: list[str], channel: str
) -> None:
    selection = parse_selection(texts, DECLARED)
    wanted = any(
        channel.startswith(text[:-1]) if text.endswith("/*") else channel == text for text in texts
    )
    assert selection.matches(channel) == wanted
    again = (*selection.channels, *(f"{prefix}*" for prefix in selection.prefixes))
    assert parse_selection(again, DECLARED) == selection
    assert selection.namespace == namespace_of(channel, DECLARED) == "default"


@given(st.lists(selectors, min_size=1, max_size=6))
def test_no_member_of_a_selection_is_covered_by_another(texts: list[str]) -> None:
    selection = parse_selection(texts, DECLARED)
    for prefix in selection.prefixes:
        others = (*selection.channels, *(set(selection.prefixes) - {prefix}))
        assert not any(other.startswith(prefix) for other in others)
    assert list(selection.channels) == sorted(set(selection.channels))

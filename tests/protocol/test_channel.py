"""Names of channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.channel import CHANNEL_LIMIT_BYTES, check_channel, namespace_of
from gateway.protocol.errors import InvalidField, LimitExceeded


@pytest.mark.parametrize(
    "name", ["a", "a/b", "A-Z_a.z~0", "...", "a/..b", "a" * 255, "a/" * 127 + "a", "~", "-"]
)
def test_segments_joined_by_slashes_are_a_name(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/./b",
        "a/..",
        "a b",
        "a\n",
        "a/b\n",
        "a*",
        "a/*",
        "a,b",
        "a?b",
        "a%2Fb",
        "a:b",
        "\u00e9",
        "\u0661",
        "a\0",
        "\ud800",
    ],
)
def test_anything_else_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidField, match=r"topic: must be segments of A-Z") as caught:
        check_channel(name, "topic")
    assert (caught.value.field, caught.value.value) == ("topic", name)


def test_a_name_over_the_limit_is_refused_with_the_limit() -> None:
    with pytest.raises(LimitExceeded, match="at most 255 bytes") as caught:
        check_channel("a" * (CHANNEL_LIMIT_BYTES + 1))
    assert caught.value.value == "a" * 256
    with pytest.raises(LimitExceeded, match="at most 3 bytes"):
        check_channel("a/bc", limit_bytes=3)
    assert check_channel("a/b", limit_bytes=3) == "a/b"


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(InvalidField) as caught:
        check_channel("*" * 8192)
    assert caught.value.value == "*" * 300


@given(st.text(max_size=20))
def test_a_name_never_needs_escaping(name: str) -> None:
    try:
        check_channel(name)
    except InvalidField:
        return
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-/")
    assert not {"", ".", ".."} & set(name.split("/"))


def test_the_first_segment_is_the_namespace_when_it_is_declared() -> None:
    assert namespace_of("stocks/nyse/ibm", {"stocks"}) == "stocks"
    assert namespace_of("stocks", {"stocks"}) == "stocks"
    assert namespace_of("stocksx/ibm", {"stocks"}) == "default"
    assert namespace_of("nyse/stocks", {"stocks"}) == "default"
    assert namespace_of("default/a", {"default"}) == "default"

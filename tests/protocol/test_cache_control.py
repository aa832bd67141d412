"""What caches are told, and that they are never told to keep more than can be resumed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.cache_control import (
    HISTORY_TAIL_MAX_AGE_SECONDS,
    KEY_LIMIT_BYTES,
    LIFE_MARGIN_SECONDS,
    NO_STORE,
    STREAM,
    UNKNOWN_CHANNEL,
    CacheLifeTooLong,
    CachePolicy,
    cache_tags,
    channel_key,
    check_policy,
    history_cache_control,
    history_cdn_cache_control,
    history_max_age_seconds,
    life_limit_seconds,
    life_seconds,
    snapshot_key,
    surrogate_keys,
)
from gateway.protocol.errors import GatewayError

POLICY = CachePolicy(
    browser_max_age_seconds=2,
    edge_max_age_seconds=3,
    stale_while_revalidate_seconds=5,
    stale_if_error_seconds=60,
)
NAME_CHARACTERS = "abcXYZ019._~-"
names = st.text(NAME_CHARACTERS + "/", min_size=1, max_size=255)


def test_browsers_and_edges_get_their_own_ages() -> None:
    assert POLICY.cache_control() == (
        "public, max-age=2, s-maxage=3, stale-while-revalidate=5, stale-if-error=60"
    )
    assert POLICY.cdn_cache_control() == "max-age=3, stale-while-revalidate=5, stale-if-error=60"


def test_a_shorter_life_takes_the_stale_times_first_then_the_edges_then_the_browsers() -> None:
    assert POLICY.within(None) is POLICY.within(65) is POLICY.within(1e9) is POLICY
    assert POLICY.within(64.9) == CachePolicy(2, 3, 5, 59)
    assert POLICY.within(8) == CachePolicy(2, 3, 3, 3)
    assert POLICY.within(5) == CachePolicy(2, 3, 0, 0)
    assert POLICY.within(4) == CachePolicy(2, 2, 0, 0)
    assert POLICY.within(2) == CachePolicy(2, 0, 0, 0)
    assert POLICY.within(1.5) == CachePolicy(1, 0, 0, 0)
    assert POLICY.within(0) == POLICY.within(-3) == CachePolicy(0, 0, 0, 0)


def test_a_life_below_a_second_is_not_to_be_stored() -> None:
    nothing = "stale-while-revalidate=0, stale-if-error=0"
    assert POLICY.cache_control(1) == f"public, max-age=1, s-maxage=0, {nothing}"
    assert POLICY.cdn_cache_control(1) == f"max-age=0, {nothing}"
    assert POLICY.cache_control(0.9) == POLICY.cdn_cache_control(0.9) == "no-store"


@given(
    st.builds(CachePolicy, *[st.integers(0, 1000)] * 4),
    st.none() | st.floats(0, 5000, allow_subnormal=False),
)
def test_no_life_is_longer_than_its_limit_or_than_before(
    policy: CachePolicy, span_seconds: float | None
) -> None:
    limit = life_limit_seconds(span_seconds)
    shortened = policy.within(limit)
    assert life_seconds(shortened) <= life_seconds(policy)
    if limit is None:
        assert span_seconds is None
        return
    assert span_seconds is not None
    assert span_seconds - LIFE_MARGIN_SECONDS <= limit <= span_seconds
    assert life_seconds(shortened) <= limit
    assert span_seconds == 0 or limit < span_seconds


def test_fixed_policies_say_what_they_are_for() -> None:
    assert NO_STORE == "no-store"
    assert STREAM == "no-cache, no-transform"
    assert UNKNOWN_CHANNEL == "public, max-age=1, stale-while-revalidate=0, stale-if-error=0"


@pytest.mark.parametrize(
    ("policy", "life"),
    [
        (CachePolicy(0, 0, 0, 0), 0),
        (CachePolicy(2, 3, 5, 60), 65),
        (CachePolicy(2, 3, 60, 5), 65),
        (CachePolicy(10, 1, 0, 0), 11),
    ],
)
def test_a_life_is_edge_and_browser_and_the_longer_stale_time(
    policy: CachePolicy, life: int
) -> None:
    assert life_seconds(policy) == life


def test_a_life_with_margin_must_end_before_the_ring_does() -> None:
    limit = life_seconds(POLICY) + LIFE_MARGIN_SECONDS
    check_policy(POLICY, limit + 1)
    check_policy(POLICY, limit + 0.5)
    with pytest.raises(CacheLifeTooLong):
        check_policy(POLICY, limit)


def test_a_life_that_is_too_long_is_explained_in_names_and_numbers() -> None:
    with pytest.raises(GatewayError) as caught:
        check_policy(POLICY, 30)
    assert str(caught.value) == (
        "edge_max_age_seconds (3) + browser_max_age_seconds (2) + the larger of"
        " stale_while_revalidate_seconds (5) and stale_if_error_seconds (60)"
        " + a margin of 10 = 75 must be below ring_age_seconds (30)"
    )
    assert isinstance(caught.value, CacheLifeTooLong)
    assert (caught.value.policy, caught.value.ring_age_seconds) == (POLICY, 30)


def test_a_settled_page_lives_as_long_as_its_first_event() -> None:
    assert history_max_age_seconds(
        settled=True, first_event_age_seconds=600.2, ring_age_seconds=3600
    ) == (3600 - 601 - LIFE_MARGIN_SECONDS)


def test_a_page_that_may_change_lives_for_a_moment() -> None:
    age = history_max_age_seconds(settled=False, first_event_age_seconds=0, ring_age_seconds=3600)
    assert age == HISTORY_TAIL_MAX_AGE_SECONDS == 1


@pytest.mark.parametrize("age_seconds", [3590, 3599.9, 3600, 1e9])
def test_a_page_whose_events_are_about_to_leave_is_not_kept(age_seconds: float) -> None:
    assert (
        history_max_age_seconds(
            settled=True, first_event_age_seconds=age_seconds, ring_age_seconds=3600
        )
        == 0
    )


def test_an_event_from_a_clock_ahead_lives_no_longer_than_the_ring() -> None:
    assert history_max_age_seconds(
        settled=True, first_event_age_seconds=-500, ring_age_seconds=3600
    ) == (3600 - LIFE_MARGIN_SECONDS)


@given(st.booleans(), st.floats(0, 1e7), st.integers(LIFE_MARGIN_SECONDS + 2, 10**7))
def test_no_page_outlives_the_ring(settled: bool, age_seconds: float, ring_seconds: int) -> None:
    kept = history_max_age_seconds(
        settled=settled, first_event_age_seconds=age_seconds, ring_age_seconds=ring_seconds
    )
    assert 0 <= kept < ring_seconds
    assert not settled or kept == 0 or kept + age_seconds < ring_seconds


def test_a_page_of_history_has_no_stale_life() -> None:
    nothing = "stale-while-revalidate=0, stale-if-error=0"
    assert history_cache_control(300) == f"public, max-age=300, {nothing}"
    assert history_cdn_cache_control(300) == f"max-age=300, {nothing}"


def test_an_answer_carries_the_keys_of_its_namespace_and_channel() -> None:
    assert surrogate_keys("default", "host/cpu") == "ns.default ch.host/cpu"
    assert cache_tags("default", "host/cpu") == "ns.default,ch.host/cpu"
    assert channel_key("host/cpu") == "ch.host/cpu"


def test_a_snapshot_has_a_key_that_slices_and_pages_do_not_have() -> None:
    own = snapshot_key("host/cpu")
    assert surrogate_keys("default", "host/cpu", snapshot=True).split(" ")[2:] == [own]
    assert cache_tags("default", "host/cpu", snapshot=True).split(",")[2:] == [own]
    assert own not in surrogate_keys("default", "host/cpu").split(" ")


def test_a_key_at_the_limit_is_plain_and_beyond_it_hashed() -> None:
    longest = "a" * (KEY_LIMIT_BYTES - len("ch."))
    assert surrogate_keys("a", longest) == f"ns.a ch.{longest}"
    hashed = surrogate_keys("a", longest + "a").split(" ")[1]
    assert hashed.startswith("ch#")
    assert len(hashed) == len("ch#") + 32
    assert surrogate_keys("a", longest + "a") == surrogate_keys("a", longest + "a")
    assert surrogate_keys("a", longest + "a") != surrogate_keys("a", longest + "b")
    assert surrogate_keys("n" * 200, "n").startswith("ns#")


@given(names, names)
def test_keys_fit_every_cdn_and_tell_channels_apart(one: str, other: str) -> None:
    keys = surrogate_keys("default", one).split(" ")
    assert keys == cache_tags("default", one).split(",")
    assert len(keys) == 2
    assert all(len(key) <= KEY_LIMIT_BYTES for key in keys)
    assert set("".join(keys)) <= set(
        NAME_CHARACTERS + "/#" + "abcdefghijklmnopqrstuvwxyz0123456789"
    )
    assert (one == other) == (surrogate_keys("default", one) == surrogate_keys("default", other))

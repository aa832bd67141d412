"""The breaker: later each time, a minute at most, and at once when all is well again."""

from gateway.purge.breaker import Breaker


def test_a_failure_is_tried_again_later_each_time_and_once_a_minute_at_last() -> None:
    breaker, now, pauses = Breaker(), 100.0, []
    for _ in range(12):
        breaker.failed(now, 1.0)
        pauses.append(breaker.ready_at - now)
        now = breaker.ready_at
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == 60.0


def test_a_target_that_is_down_for_an_hour_is_tried_some_hundred_times() -> None:
    # As often as it can be, with the shortest pause each time.
    breaker, now, tries = Breaker(), 0.0, 0
    while now < 3600.0:
        breaker.failed(now, 0.0)
        now = breaker.ready_at
        tries += 1
    assert 100 < tries < 140


def test_after_five_failures_it_is_open_until_one_call_works() -> None:
    breaker = Breaker()
    seen = []
    for _ in range(5):
        breaker.failed(0.0, 0.5)
        seen.append(breaker.open)
    assert seen == [False, False, False, False, True]
    breaker.succeeded()
    assert (breaker.open, breaker.ready_at) == (False, 0.0)


def test_a_wait_that_was_asked_for_is_kept_to_but_not_for_ever() -> None:
    breaker = Breaker()
    breaker.failed(10.0, 0.0, retry_after_seconds=7.0)
    assert breaker.ready_at == 17.0
    breaker.failed(10.0, 0.0, retry_after_seconds=86400.0)
    assert breaker.ready_at == 70.0

"""When to try a target again that failed: later each time, and with little while it is down."""

_PAUSE_SECONDS = (0.25, 60.0)
_FAILURES = 5


class Breaker:
    """A circuit breaker over one target. Times are monotonic seconds.

    After a failure the next call waits twice as long as the one before. After five in a row it
    is `open`: what is tried then is a probe, and should be small.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.ready_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the target has failed so often that it counts as down."""
        return self.failures >= _FAILURES

    def succeeded(self) -> None:
        """The target took a call: all is well."""
        self.failures = 0
        self.ready_at = 0.0

    def failed(self, now: float, chance: float, retry_after_seconds: float = 0.0) -> None:
        """The target did not take a call. `chance`, from 0 up to 1, spreads what was lost together.

        It is let alone for as long as it asked, for a minute at most.
        """
        shortest, longest = _PAUSE_SECONDS
        pause = min(longest, shortest * 2.0**self.failures) * (0.5 + 0.5 * chance)
        self.failures += 1
        self.ready_at = now + max(pause, min(retry_after_seconds, longest))

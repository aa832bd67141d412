"""Few events to a thousand subscribers: how long one takes when nothing is in its way."""

from collections.abc import Iterator

from benchmarks.bench import (
    CPU_COLUMNS,
    LATENCY_COLUMNS,
    Bench,
    Contender,
    Sample,
    Scenario,
    open_session,
)

SUBSCRIBERS = 1000
EVENTS_PER_SECOND = 10


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample."""
    with open_session(bench, contender) as session:
        session.open(SUBSCRIBERS)
        session.warm_up()
        measured = session.publish(seconds=2 * bench.seconds, rate=EVENTS_PER_SECOND)
        yield measured.sample(contender, "")


LATENCY = Scenario(
    name="latency",
    title=f"{EVENTS_PER_SECOND} events/s of 200 bytes to {SUBSCRIBERS:,} subscribers",
    measure=measure,
    columns=(LATENCY_COLUMNS[1], LATENCY_COLUMNS[0], LATENCY_COLUMNS[2], *CPU_COLUMNS),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    reference="roof",
)

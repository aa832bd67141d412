"""Many events a second, published whether or not the server keeps up."""

from collections.abc import Iterator

from benchmarks.bench import (
    CPU_COLUMNS,
    LATENCY_COLUMNS,
    Bench,
    Column,
    Contender,
    Sample,
    Scenario,
    open_session,
)

SUBSCRIBERS = 1000
EVENTS_PER_SECOND = 1000
# A server that cannot keep up slows the publisher down from here on, half of what the ring keeps:
# the figure then is what it carries, not what it loses.
WINDOW_EVENTS = 500


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample."""
    with open_session(bench, contender) as session:
        session.open(SUBSCRIBERS)
        session.warm_up()
        measured = session.publish_joined(
            seconds=2 * bench.seconds, rate=EVENTS_PER_SECOND, window=WINDOW_EVENTS
        )
        carried = measured.carried(EVENTS_PER_SECOND, 2 * bench.seconds)
        yield measured.sample(contender, "", carried=carried)


STEADY = Scenario(
    name="steady",
    title=f"{EVENTS_PER_SECOND:,} events/s of 200 bytes to {SUBSCRIBERS:,} subscribers",
    measure=measure,
    columns=(
        Column("deliveries_per_second", "deliveries/s"),
        Column("carried", "carried %", 0, 100),
        *CPU_COLUMNS,
        *LATENCY_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    reference="roof-joining",
)

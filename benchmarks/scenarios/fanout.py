"""One event at a time: published, delivered to all, and only then the next one."""

from collections.abc import Iterator

from benchmarks.bench import CPU_COLUMNS, Bench, Column, Contender, Sample, Scenario, open_session

SUBSCRIBERS = (1000, 5000, 10_000)


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each number of subscribers; more join as it goes on."""
    with open_session(bench, contender) as session:
        opened = 0
        for subscribers in SUBSCRIBERS:
            session.open(subscribers - opened)
            opened = subscribers
            session.warm_up(10)
            measured = session.publish(seconds=bench.seconds, one_at_a_time=True)
            yield measured.sample(contender, f"{subscribers:,} subscribers")


FANOUT = Scenario(
    name="fanout",
    title="one event of 200 bytes at a time: published, delivered to all, then the next",
    measure=measure,
    columns=(
        Column("deliveries_per_second", "deliveries/s"),
        Column("p50_ms", "p50 ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("cpu_us_per_delivery", "server us each", 2),
        *CPU_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    reference="roof",
)

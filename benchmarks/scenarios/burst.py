"""Events as fast as the server takes them: what joining them into fewer writes is worth."""

from collections.abc import Iterator

from benchmarks.bench import CPU_COLUMNS, Bench, Column, Contender, Sample, Scenario, session

SUBSCRIBERS = 1000
# Events that may be on their way to the average subscriber, so that nobody falls out of a ring.
WINDOW_EVENTS = 5000
PEER_WINDOW_EVENTS = 500  # Nchan keeps 1,000.
SETTINGS = {"GATEWAY_NAMESPACES__DEFAULT__RING_LIMIT_EVENTS": "20000"}


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample."""
    with session(bench, contender, SETTINGS) as running:
        running.open(SUBSCRIBERS)
        running.warm_up()
        window = WINDOW_EVENTS if running.running.batch_path else PEER_WINDOW_EVENTS
        measured = running.publish_joined(seconds=bench.seconds, window=window)
        yield measured.sample(contender, "")


BURST = Scenario(
    name="burst",
    title=f"events of 200 bytes as fast as they are taken, {SUBSCRIBERS:,} subscribers",
    measure=measure,
    columns=(
        Column("deliveries_per_second", "deliveries/s"),
        Column("published_per_second", "events/s"),
        Column("cpu_us_per_delivery", "server us each", 2),
        *CPU_COLUMNS,
        Column("p99_ms", "p99 ms", 0),
    ),
    peers=("nchan", "roof", "better-sse", "aiohttp-sse", "sse-starlette"),
    reference="roof-joining",
)

"""Events as fast as the server takes them: what joining them into fewer writes is worth."""

from collections.abc import Iterator

from benchmarks.bench import CPU_COLUMNS, Bench, Column, Contender, Sample, Scenario, open_session
from benchmarks.peers.nchan import KEPT_EVENTS

SUBSCRIBERS = 1000
# Events that may be on their way to the average subscriber, the same for all: a quarter of what
# this gateway and Nchan are told to keep, so that nobody falls out of a ring.
WINDOW_EVENTS = 5000
SETTINGS = {"GATEWAY_NAMESPACES__DEFAULT__RING_LIMIT_EVENTS": str(KEPT_EVENTS)}


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample."""
    with open_session(bench, contender, SETTINGS) as session:
        session.open(SUBSCRIBERS)
        session.warm_up()
        measured = session.publish_joined(seconds=bench.seconds, window=WINDOW_EVENTS)
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

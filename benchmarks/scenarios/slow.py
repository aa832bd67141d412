"""Some subscribers read slowly: what the others notice of it, and what it costs in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bench import (
    CPU_COLUMNS,
    LATENCY_COLUMNS,
    Bench,
    Column,
    Contender,
    Sample,
    Scenario,
    session,
)
from benchmarks.machine import resident_bytes

SUBSCRIBERS = 1000
SLOW = 100
SLOW_BYTES_PER_SECOND = 1024
RECEIVE_BUFFER_BYTES = 4096
# Loopback sockets take some 2.5 MB before they are full: more than that first, in large events.
FILL_EVENTS, FILL_BYTES = 60, 64_000


@dataclass(frozen=True)
class Rate:
    """What is published while it is measured."""

    title: str
    events_per_second: int
    size: int
    fill: bool


RATES = (
    Rate("10/s of 200 B", 10, 200, fill=False),
    Rate("50/s of 1 KB, buffers full", 50, 1024, fill=True),
)


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each rate, without slow subscribers and with them."""
    for rate in RATES:
        for slow in (0, SLOW):
            yield measure_one(bench, contender, rate, slow)


def measure_one(bench: Bench, contender: Contender, rate: Rate, slow: int) -> Sample:
    """Return the sample of one rate, of which `slow` subscribers read slowly."""
    with session(bench, contender) as running:
        running.open(SUBSCRIBERS - slow)
        if slow:
            running.open(slow, slow=True, receive_buffer=RECEIVE_BUFFER_BYTES)
        running.warm_up()
        before = resident_bytes(running.running.pid)
        if rate.fill:
            running.load.command("events", size=FILL_BYTES)
            running.warm_up(FILL_EVENTS)
        running.load.command("events", size=rate.size)
        measured = running.publish(seconds=4 * bench.seconds, rate=rate.events_per_second)
        after = resident_bytes(running.running.pid)
        report = measured.report
        return measured.sample(
            contender,
            f"{rate.title}, {slow or 'none'} slow",
            rss_before=before / 1e6,
            rss_after=after / 1e6,
            slow_deliveries=report.slow_deliveries,
            slow_gaps=report.slow_gaps,
            slow_closed=report.slow_closed,
        )


SLOW_READERS = Scenario(
    name="slow",
    title=(
        f"{SUBSCRIBERS:,} subscribers, of which {SLOW} read {SLOW_BYTES_PER_SECOND:,} bytes/s; "
        "latency of the others"
    ),
    measure=measure,
    columns=(
        LATENCY_COLUMNS[1],
        LATENCY_COLUMNS[0],
        Column("rss_before", "RSS MB before", 1),
        Column("rss_after", "after", 1),
        Column("slow_gaps", "slow: gaps"),
        Column("slow_closed", "closed"),
        *CPU_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    runs=5,
)

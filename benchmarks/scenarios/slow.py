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
    open_session,
)
from benchmarks.machine import resident_bytes
from benchmarks.scenarios.conflation import measure_conflation

SUBSCRIBERS = 1000
SLOW = 100
SLOW_BYTES_PER_SECOND = 1024
RECEIVE_BUFFER_BYTES = 4096
# Whoever takes nothing for this long is closed; whoever reads slowly must not be, in a run that
# lasts longer.
SETTINGS = {"GATEWAY_STREAMS__WRITE_TIMEOUT_SECONDS": "8"}
LEAST_SECONDS = 16.0
CONFLATED_SECONDS = 30.0  # Some resets each: a reader needs 15 s for one.
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
    for slow in (0, SLOW) if contender.is_gateway else ():
        sample = measure_conflation(
            bench,
            contender,
            SETTINGS,
            subscribers=SUBSCRIBERS,
            slow=slow,
            bytes_per_second=SLOW_BYTES_PER_SECOND,
            receive_buffer_bytes=RECEIVE_BUFFER_BYTES,
            seconds=max(CONFLATED_SECONDS, 4 * bench.seconds),
        )
        yield judged(sample)


def measure_one(bench: Bench, contender: Contender, rate: Rate, slow: int) -> Sample:
    """Return the sample of one rate, of which `slow` subscribers read slowly."""
    with open_session(bench, contender, SETTINGS) as session:
        session.open(SUBSCRIBERS - slow)
        if slow:
            session.open(slow, slow=True, receive_buffer=RECEIVE_BUFFER_BYTES)
        session.warm_up()
        before = resident_bytes(session.server.pid)
        if rate.fill:
            session.load.command("events", size=FILL_BYTES)
            session.warm_up(FILL_EVENTS)
        session.load.command("events", size=rate.size)
        seconds = max(LEAST_SECONDS, 4 * bench.seconds)
        measured = session.publish(seconds=seconds, rate=rate.events_per_second)
        after = resident_bytes(session.server.pid)
        report = measured.report
        sample = measured.sample(
            contender,
            f"{rate.title}, {slow or 'none'} slow",
            rss_before=before / 1e6,
            rss_after=after / 1e6,
            slow_deliveries=report.slow_deliveries,
            slow_gaps=report.slow_gaps,
            slow_closed=report.slow_closed,
        )
        return judged(sample)


def judged(sample: Sample) -> Sample:
    """Return a sample with a problem more where slow subscribers were closed."""
    if closed := sample.figures["slow_closed"]:
        sample.problems.append(f"{closed:,.0f} slow subscribers closed")
    return sample


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
        Column("resets", "resets"),
        Column("checked", "states checked"),
        *CPU_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    runs=5,
)

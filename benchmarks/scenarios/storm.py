"""Everybody comes back at once and asks for what was missed, as after a deploy."""

import re
import urllib.request
from collections.abc import Iterator

from benchmarks.bench import (
    CHANNEL,
    CPU_COLUMNS,
    Bench,
    Column,
    Contender,
    Costs,
    Sample,
    Scenario,
    Session,
    session,
)
from benchmarks.load import load_client
from benchmarks.peers.base import Running
from benchmarks.peers.gateway import valkey

SUBSCRIBERS = 10_000
MISSED_EVENTS = 100
UNDER_WAY = 2000
RING_READS = re.compile(r"^sse_gateway_ring_reads_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample; this gateway is a new process that has read nothing yet."""
    if not contender.is_gateway:
        with session(bench, contender) as running:
            fill(running)
            yield come_back(running, contender)
        return
    gateway = contender.gateway({})
    with valkey(bench.load_core) as store, load_client(bench.load_core) as load:
        with gateway.worker(bench.core, store) as first:
            load.serve_from(first, CHANNEL, block=True)
            filling = Session(first, load, bench.core)
            fill(filling)
        with gateway.worker(bench.core, store) as second:
            load.serve_from(second, CHANNEL, block=True)
            before = ring_reads(second)
            sample = come_back(
                Session(second, load, bench.core, filling.take_problems()), contender
            )
            if before is not None:
                sample.figures["ring_reads"] = (ring_reads(second) or 0) - before
            yield sample


def fill(running: Session) -> None:
    """Publish enough for everybody to have missed, with one stream that sees the ids."""
    running.open(1, record=True)
    running.problems += running.publish_joined(events=3 * MISSED_EVENTS).problems
    running.load.command("close")


def come_back(running: Session, contender: Contender) -> Sample:
    """Open all streams, each with the id of the same event, until all have caught up."""
    with Costs(running.running, running.core) as costs:
        report = running.open(SUBSCRIBERS, after=MISSED_EVENTS, window=UNDER_WAY)
    figures = {
        "total_seconds": report.active_seconds,
        "first_byte_p50_ms": report.first_byte_p50_ms,
        "first_byte_p99_ms": report.first_byte_p99_ms,
        "deliveries_per_second": report.deliveries_per_second,
        "load_cpu": report.load_cpu_share,
        **costs.figures(),
    }
    return Sample(contender.name, "", figures, running.take_problems())


def ring_reads(running: Running) -> float | None:
    """Return how many rings the gateway has read from Redis, None when it does not say."""
    url = f"http://{running.host}:{running.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found = RING_READS.findall(answer.read().decode())
    return sum(map(float, found)) if found else None


STORM = Scenario(
    name="storm",
    title=f"{SUBSCRIBERS:,} subscribers come back at once, {MISSED_EVENTS} events to replay each",
    measure=measure,
    columns=(
        Column("total_seconds", "all caught up s", 2),
        Column("first_byte_p50_ms", "first byte p50 ms", 1),
        Column("first_byte_p99_ms", "p99 ms", 1),
        Column("deliveries_per_second", "deliveries/s"),
        Column("ring_reads", "ring reads"),
        *CPU_COLUMNS,
    ),
    peers=("nchan",),
)

"""Everybody comes back, as many at once as the queue holds, and asks for what was missed."""

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
    open_session,
)
from benchmarks.load import load_client
from benchmarks.machine import listen_overflows
from benchmarks.metrics import read_metric
from benchmarks.peers.gateway import valkey

SUBSCRIBERS = 10_000
MISSED_EVENTS = 100
# A listening socket holds 4,096 connections that are not accepted yet (net.core.somaxconn), and a
# connect beyond is tried again by the kernel a second later: with all 10,000 at once it would be
# that second which is measured.
UNDER_WAY = 4096


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield one sample; this gateway is a new process that has read nothing yet."""
    if not contender.is_gateway:
        with open_session(bench, contender) as session:
            fill(session)
            yield come_back(session, contender)
        return
    gateway = contender.gateway({})
    with valkey(bench.load_core) as store, load_client(bench.load_core) as load:
        with gateway.worker(bench.core, store) as first:
            load.serve_from(first, CHANNEL, block=True)
            filling = Session(first, load, bench.core)
            fill(filling)
        with gateway.worker(bench.core, store) as second:
            load.serve_from(second, CHANNEL, block=True)
            before = read_metric(second, "ring_reads_total")
            sample = come_back(
                Session(second, load, bench.core, filling.take_problems()), contender
            )
            sample.figures["ring_reads"] = read_metric(second, "ring_reads_total") - before
            yield sample


def fill(session: Session) -> None:
    """Publish enough for everybody to have missed, with one stream that sees the ids."""
    session.open(1, record=True)
    session.problems += session.publish_joined(events=3 * MISSED_EVENTS).problems
    session.load.command("close")


def come_back(session: Session, contender: Contender) -> Sample:
    """Open all streams, each with the id of the same event, until all have caught up."""
    overflows = listen_overflows()
    with Costs(session.server, session.core) as costs:
        report = session.open(SUBSCRIBERS, after=MISSED_EVENTS, window=UNDER_WAY)
    figures = {
        "total_seconds": report.active_seconds,
        "first_byte_p50_ms": report.first_byte_p50_ms,
        "first_byte_p99_ms": report.first_byte_p99_ms,
        "deliveries_per_second": report.deliveries_per_second,
        "load_cpu": report.load_cpu_share,
        **costs.figures(),
    }
    problems = session.take_problems()
    if late := listen_overflows() - overflows:
        problems.append(f"{late:,} connects found a full queue")
    return Sample(contender.name, "", figures, problems)


STORM = Scenario(
    name="storm",
    title=(
        f"{SUBSCRIBERS:,} subscribers come back, {UNDER_WAY:,} at once, "
        f"{MISSED_EVENTS} events to replay each"
    ),
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

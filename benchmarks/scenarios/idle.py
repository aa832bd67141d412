"""What a subscriber costs in memory while nothing happens, and how latency grows with many."""

from collections.abc import Iterator

from benchmarks.bench import (
    Bench,
    Column,
    Contender,
    Figures,
    Sample,
    Scenario,
    Session,
    open_session,
)
from benchmarks.machine import proportional_bytes

SUBSCRIBERS = (1000, 5000, 10_000, 15_000)
WARM_UP_STREAMS = 100
EVENTS_PER_SECOND = 10
SETTLE_SECONDS = 1.0


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each number of subscribers; more join as it goes on."""
    with open_session(bench, contender) as session:
        session.open(WARM_UP_STREAMS)
        session.load.command("close")
        empty = _settled_bytes(session)
        opened = 0
        first_p99 = 0.0
        for subscribers in SUBSCRIBERS:
            session.open(subscribers - opened)
            opened = subscribers
            grown = _settled_bytes(session) - empty
            figures: Figures = {"bytes_each": grown / subscribers, "megabytes": grown / 1e6}
            problems: list[str] = []
            if subscribers in (SUBSCRIBERS[0], SUBSCRIBERS[-1]):
                session.warm_up(10)
                measured = session.publish(seconds=2 * bench.seconds, rate=EVENTS_PER_SECOND)
                figures |= measured.figures()
                problems = measured.problems
                first_p99 = first_p99 or measured.report.latency_p99_ms
                if subscribers != SUBSCRIBERS[0]:
                    times = subscribers / SUBSCRIBERS[0]
                    figures["growth"] = measured.report.latency_p99_ms / first_p99 / times
            problems = problems + session.take_problems()
            yield Sample(contender.name, f"{subscribers:,} subscribers", figures, problems)


def _settled_bytes(session: Session) -> int:
    """Return the server's memory when it has had time to let go of what it does not need."""
    session.load.command("wait", seconds=SETTLE_SECONDS)
    return proportional_bytes(session.server.pid)


IDLE = Scenario(
    name="idle",
    title=(
        "memory (PSS) of an idle subscriber above the empty worker; "
        f"latency at {EVENTS_PER_SECOND} events/s"
    ),
    measure=measure,
    columns=(
        Column("bytes_each", "bytes each"),
        Column("megabytes", "MB in all", 1),
        Column("p50_ms", "p50 ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("growth", "p99 growth/number", 2),
        Column("load_cpu", "load %", 0, 100),
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
)

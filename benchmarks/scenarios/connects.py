"""How fast new streams are taken, with nothing to replay."""

from collections.abc import Iterator

from benchmarks.bench import (
    CPU_COLUMNS,
    Bench,
    Column,
    Contender,
    Costs,
    Sample,
    Scenario,
    open_session,
)

STREAMS = 5000
UNDER_WAY = (64, 256)


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each number of requests under way; all streams are closed in between."""
    with open_session(bench, contender) as session:
        session.open(100)
        session.load.command("close")
        for under_way in UNDER_WAY:
            session.load.command("wait", seconds=0.5)
            with Costs(session.server, bench.core) as costs:
                report = session.open(STREAMS, window=under_way)
            figures = {
                "opened_per_second": report.opened_per_second,
                "ready_p50_ms": report.ready_p50_ms,
                "ready_p99_ms": report.ready_p99_ms,
                "load_cpu": report.load_cpu_share,
                **costs.figures(),
            }
            case = f"{under_way} under way"
            yield Sample(contender.name, case, figures, session.take_problems())
            session.load.command("close")


CONNECTS = Scenario(
    name="connects",
    title=f"{STREAMS:,} new streams until their first block (their head, where none follows)",
    measure=measure,
    columns=(
        Column("opened_per_second", "connects/s"),
        Column("ready_p50_ms", "p50 ms", 2),
        Column("ready_p99_ms", "p99 ms", 2),
        *CPU_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
    reference="roof",
)

"""How fast events are taken in over HTTP and acknowledged, with nobody subscribed."""

from collections.abc import Iterator

from benchmarks.bench import CPU_COLUMNS, Bench, Column, Contender, Sample, Scenario, Value, loading
from benchmarks.peers.gateway import valkey

BATCH_EVENTS = 1000
BATCH_CALLERS = 2
CALLERS = 32
CHANNELS = 50


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each way of publishing and each place of the Valkey."""
    for place, core in (("the gateway's core", bench.core), ("the load's core", bench.load_core)):
        with (
            valkey(core) as store,
            contender.gateway({}).worker(bench.core, store) as worker,
            loading(bench, worker) as session,
        ):
            session.warm_up()
            batches: dict[str, Value] = {"batch": BATCH_EVENTS, "channels": CHANNELS}
            for title, connections, values in (
                (f"batches of {BATCH_EVENTS:,}", BATCH_CALLERS, batches),
                (f"singly, {CALLERS} callers", CALLERS, {}),
            ):
                measured = session.publish(seconds=bench.seconds, connections=connections, **values)
                yield measured.sample(
                    contender,
                    f"{title}, Valkey on {place}",
                    answer_p99_ms=measured.report.answer_p99_ms,
                )


PUBLISH = Scenario(
    name="publish",
    title="events/s of 200 bytes acknowledged, each when Redis has it",
    measure=measure,
    columns=(
        Column("published_per_second", "events/s"),
        Column("answer_p99_ms", "answer p99 ms", 1),
        *CPU_COLUMNS,
    ),
)

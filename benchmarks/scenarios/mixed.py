"""Many small channels against one: whether their number costs latency."""

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


@dataclass(frozen=True)
class Mix:
    """Channels, subscribers of each, and events over all of them; always 10,000 deliveries/s."""

    channels: int
    subscribers: int
    events_per_second: int

    @property
    def title(self) -> str:
        return f"{self.channels:,} x {self.subscribers:,}, {self.events_per_second:,} events/s"


MANY = Mix(1000, 5, 2000)
ONE = (Mix(1, 5, 2000), Mix(1, 1000, 10), Mix(1, 5000, 2))


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for the many channels, and one for each shape of a single one."""
    many = measure_one(bench, contender, MANY)
    yield many
    for mix in ONE:
        sample = measure_one(bench, contender, mix)
        sample.figures["many"] = many.figures["p99_ms"] / sample.figures["p99_ms"]
        yield sample


def measure_one(bench: Bench, contender: Contender, mix: Mix) -> Sample:
    """Return the sample of one shape."""
    with open_session(bench, contender) as session:
        session.open(mix.channels * mix.subscribers, channels=mix.channels)
        session.warm_up(channels=mix.channels)
        measured = session.publish_joined(
            seconds=2 * bench.seconds, rate=mix.events_per_second, channels=mix.channels
        )
        return measured.sample(contender, mix.title)


MIXED = Scenario(
    name="mixed",
    title="channels x subscribers of each, 10,000 deliveries/s",
    measure=measure,
    columns=(
        LATENCY_COLUMNS[1],
        LATENCY_COLUMNS[0],
        Column("many", "p99 of many/of this", 2),
        Column("deliveries_per_second", "deliveries/s"),
        *CPU_COLUMNS,
    ),
    peers=("nchan", "better-sse", "aiohttp-sse", "sse-starlette"),
)

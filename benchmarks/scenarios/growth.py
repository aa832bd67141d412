"""How cost grows with channels, subscribers, rate and size: four points each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

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

WINDOW_EVENTS = 500
COST = Column("cpu_us_per_delivery", "server us each", 2)


@dataclass(frozen=True)
class Shape:
    """What is published to whom: subscribers and events are those of all channels together."""

    channels: int = 1
    subscribers: int = 1000
    events_per_second: int = 10
    size: int = 200


MIDDLE = Shape()
POINTS: dict[str, list[Shape]] = {
    # 10 subscribers to each channel, so that events and deliveries stay the same.
    "channels": [Shape(count, 10 * count, 1000) for count in (1, 10, 100, 1000)],
    "subscribers": [replace(MIDDLE, subscribers=count) for count in (500, 1000, 2000, 4000)],
    "events/s": [replace(MIDDLE, events_per_second=rate) for rate in (1, 10, 100, 1000)],
    "bytes": [replace(MIDDLE, size=size) for size in (100, 1000, 10_000, 50_000)],
}


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each point."""
    for name, shapes in POINTS.items():
        for shape in shapes:
            value = {
                "channels": shape.channels,
                "subscribers": shape.subscribers,
                "events/s": shape.events_per_second,
                "bytes": shape.size,
            }[name]
            yield measure_one(bench, contender, shape, f"{name}: {value:,}")


def measure_one(bench: Bench, contender: Contender, shape: Shape, case: str) -> Sample:
    """Return the sample of one point."""
    with open_session(bench, contender) as session:
        session.load.command("events", size=shape.size)
        session.open(shape.subscribers, channels=shape.channels)
        session.warm_up(channels=shape.channels)
        measured = session.publish_joined(
            seconds=2 * bench.seconds,
            rate=shape.events_per_second,
            channels=shape.channels,
            window=WINDOW_EVENTS,
        )
        carried = measured.carried(shape.events_per_second, 2 * bench.seconds)
        return measured.sample(contender, case, carried=carried)


GROWTH = Scenario(
    name="growth",
    title=(
        f"cost from {MIDDLE.subscribers:,} subscribers, {MIDDLE.events_per_second} events/s, "
        f"{MIDDLE.size} bytes; by channels: 10 subscribers each, 1,000 events/s over all"
    ),
    measure=measure,
    columns=(
        COST,
        Column("carried", "carried %", 0, 100),
        *LATENCY_COLUMNS[:2],
        *CPU_COLUMNS,
    ),
    peers=("nchan",),
    lines=(COST, LATENCY_COLUMNS[1]),
)

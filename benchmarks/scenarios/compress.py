"""Streams with a content coding: bytes on the wire and the server's work, and whether they decode.

The load client only counts the bytes; one reader here decodes them and compares every event.
"""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import (
    CHANNEL,
    CPU_COLUMNS,
    Bench,
    Column,
    Contender,
    Costs,
    Sample,
    Scenario,
    session,
)
from benchmarks.decoding import DecodingReader
from benchmarks.load import NUMBER

STREAMS = 1000
EVENTS_PER_SECOND = 100
CODINGS = ("identity", "gzip", "zstd")
SETTINGS = {"GATEWAY_NAMESPACES__DEFAULT__STREAM_CODINGS": '["zstd","gzip"]'}
SETTLE_SECONDS = 1.0
PREFIX_BYTES = 40  # Number and time, which the load client puts before.
FRAME_BYTES = 271
AROUND_DATA_BYTES = len("id: 1795566071519-0\ndata: \n\n")
TEAMS = ("Arsenal", "Brighton", "Chelsea", "Everton", "Fulham", "Liverpool", "Newcastle", "Wolves")
KINDS = ("goal", "corner", "free kick", "yellow card", "substitution", "offside")
NOTE = "the referee waves play on after a long look; both sides ask for more than they get"


def measure(bench: Bench, contender: Contender) -> Iterator[Sample]:
    """Yield a sample for each coding."""
    plain = 0.0
    for coding in CODINGS:
        sample = measure_one(bench, contender, coding)
        plain = plain or sample.figures.get("bytes_each", 0.0)
        if plain and sample.figures:
            sample.figures["share"] = sample.figures["bytes_each"] / plain
        yield sample


def measure_one(bench: Bench, contender: Contender, coding: str) -> Sample:
    """Return the sample of one coding."""
    events, channel = score_events(1000), CHANNEL.replace(NUMBER, "0")
    with tempfile.TemporaryDirectory() as folder, session(bench, contender, SETTINGS) as running:
        path = Path(folder) / "events"
        path.write_text("\n".join(events) + "\n")
        running.load.command("events", file=str(path))
        running.open(STREAMS, f"Accept-Encoding: {coding}", raw=True)
        with DecodingReader(running.running, channel, coding, events) as reader:
            if reader.coding != coding:
                return Sample(contender.name, coding, {}, note="not offered")
            with Costs(running.running, bench.core) as costs:
                measured = running.publish_joined(seconds=2 * bench.seconds, rate=EVENTS_PER_SECOND)
                after = running.load.command("wait", seconds=SETTLE_SECONDS)
            problems = measured.problems + after.problems()
            problems += reader.problems(measured.report.published)
        deliveries = measured.report.published * STREAMS
        figures = {
            "bytes_each": (measured.report.bytes + after.bytes) / deliveries,
            "cpu_us_each": costs.server_seconds / deliveries * 1e6,
            "cpu_us_per_event": costs.server_seconds / measured.report.published * 1e6,
            "load_cpu": measured.report.load_cpu_share,
            **measured.costs.figures(),
        }
        return Sample(contender.name, coding, figures, problems)


def score_events(count: int) -> list[str]:
    """Return what follows number and time in events about football, all of the same length."""
    dice = random.Random(1)
    return [_score_event(dice) for _ in range(count)]


def _score_event(dice: random.Random) -> str:
    home, away = dice.sample(TEAMS, 2)
    text = (
        f'"match":{dice.randrange(4000, 4040)},'
        f'"home":{{"team":"{home}","score":{dice.randrange(4)}}},'
        f'"away":{{"team":"{away}","score":{dice.randrange(4)}}},"minute":{dice.randrange(1, 91)},'
        f'"kind":"{dice.choice(KINDS)}","player":{dice.randrange(1000, 9999)},"note":"'
    )
    left = FRAME_BYTES - AROUND_DATA_BYTES - PREFIX_BYTES - len(text) - len('"}')
    return text + NOTE[:left].ljust(left, ".") + '"}'


COMPRESS = Scenario(
    name="compress",
    title=(
        f"{STREAMS:,} streams by content coding, {EVENTS_PER_SECOND} score events/s "
        f"of {FRAME_BYTES} bytes as SSE"
    ),
    measure=measure,
    columns=(
        Column("bytes_each", "bytes/delivery", 1),
        Column("share", "of plain", 2),
        Column("cpu_us_each", "server us/delivery", 2),
        Column("cpu_us_per_event", "us/event"),
        *CPU_COLUMNS,
    ),
)

"""Streams with a content coding: bytes on the wire and the server's work, and whether they decode.

The load client only counts the bytes of most streams, and what it got must be what the gateway
says it has written; the others are decoded here, every event compared.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
    Session,
    open_session,
)
from benchmarks.decoding import DecodingReader
from benchmarks.load import NUMBER
from benchmarks.metrics import read_metric

STREAMS = 1000
DECODED = 32  # Of them.
EVENTS_PER_SECOND = 100
CODINGS = ("identity", "gzip", "zstd")
SETTINGS = {"GATEWAY_NAMESPACES__DEFAULT__STREAM_CODINGS": '["zstd","gzip"]'}
SETTLE_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
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
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(bench, contender, SETTINGS) as session,
        ExitStack() as stack,
    ):
        path = Path(folder) / "events"
        path.write_text("\n".join(events) + "\n")
        session.load.command("events", file=str(path))
        session.open(STREAMS - DECODED, f"Accept-Encoding: {coding}", raw=True)
        readers = [
            stack.enter_context(
                DecodingReader(session.server, channel, coding, events, bench.load_core)
            )
            for _ in range(DECODED)
        ]
        if readers[0].coding != coding:
            return Sample(contender.name, coding, {}, note="not offered")
        # Their first blocks arrive, and are not counted.
        session.load.command("wait", seconds=SETTLE_SECONDS)
        account = Account(session, readers)
        with Costs(session.server, bench.core) as costs:
            measured = session.publish_joined(seconds=2 * bench.seconds, rate=EVENTS_PER_SECOND)
            account.load_bytes += measured.report.bytes
            problems = measured.problems + account.settle()
        published = measured.report.published
        for reader in readers:
            problems += reader.problems(published)
        deliveries = published * STREAMS
        figures = {
            "bytes_each": account.received() / deliveries,
            "cpu_us_each": costs.server_seconds / deliveries * 1e6,
            "cpu_us_per_event": costs.server_seconds / published * 1e6,
            "load_cpu": measured.report.load_cpu_share,
            "decoded": DECODED,
            **measured.costs.figures(),
        }
        return Sample(contender.name, coding, figures, problems)


class Account:
    """What all streams together received since it was made, and what the gateway says it wrote."""

    def __init__(self, session: Session, readers: Sequence[DecodingReader]) -> None:
        self.load_bytes = 0
        self._session = session
        self._readers = readers
        self._before = self._decoded_bytes()
        self._written_before = read_metric(session.server, "delivered_bytes_total")

    def _decoded_bytes(self) -> int:
        return sum(reader.bytes for reader in self._readers)

    def received(self) -> int:
        return self.load_bytes + self._decoded_bytes() - self._before

    def settle(self) -> list[str]:
        """Wait until everything written is received; returns what was wrong."""
        if any(reader.chunked for reader in self._readers):
            return ["chunked: its bytes cannot be compared"]
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            after = self._session.load.command("wait", seconds=SETTLE_SECONDS)
            self.load_bytes += after.bytes
            if problems := after.problems():
                return problems
            written = read_metric(self._session.server, "delivered_bytes_total")
            lacking = written - self._written_before - self.received()
            if not lacking:
                return []
            if time.monotonic() > until:
                return [f"{lacking:,.0f} bytes written and not received"]


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
        Column("decoded", "streams decoded"),
        *CPU_COLUMNS,
    ),
)

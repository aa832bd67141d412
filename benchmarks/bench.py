"""What all scenarios share: contenders, samples, and a server with its load; no scenario itself."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from benchmarks.load import NUMBER, Load, Report, load_client
from benchmarks.machine import core_busy_seconds, cpu_seconds
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer, Server
from benchmarks.peers.gateway import GatewayPeer

CHANNEL = f"bench/{NUMBER}"
FIRST_BLOCK_SECONDS = 0.3
BATCH_EVENTS = 1000
PIPELINE = 64

Figures = dict[str, float]
Value = str | float | bool


@dataclass(frozen=True)
class Sample:
    """The figures of one run of one server in one case."""

    server: str
    case: str
    figures: Figures
    problems: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Column:
    """One figure of a table: its key, its title, its digits after the point."""

    key: str
    title: str
    digits: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Contender:
    """A server that takes part; `settings` are only of use to this gateway."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_gateway(self) -> bool:
        return self.name.split(":")[0] == "gateway"

    def gateway(self, settings: Mapping[str, str]) -> GatewayPeer:
        """Return this gateway with a scenario's settings below its own."""
        return GatewayPeer({**settings, **self.settings}, name=self.name)

    def peer(self, settings: Mapping[str, str]) -> Peer:
        return self.gateway(settings) if self.is_gateway else PEERS[self.name]()


@dataclass(frozen=True)
class Bench:
    """How everything is measured."""

    runs: int | None = None
    """Rounds; None for as many as the scenario wants."""
    seconds: float = 3.0
    core: int = 0
    load_core: int = 1


@dataclass(frozen=True)
class Scenario:
    """One thing to measure, of one contender at a time."""

    name: str
    title: str
    measure: Callable[[Bench, Contender], Iterator[Sample]]
    columns: tuple[Column, ...]
    """The first is the one that ratios are made of."""
    peers: tuple[str, ...] = ()
    """Those it makes sense for, without this gateway."""
    reference: str = ""
    """The peer that `--peers` adds by itself: what the kernel allows."""
    runs: int = 3
    lines: tuple[Column, ...] = ()
    """Drawn over the number that its cases, `NAME: NUMBER`, go up to; without, bars."""


@dataclass
class Session:
    """A server that runs, and the load on it."""

    server: Server
    load: Load
    core: int
    problems: list[str] = field(default_factory=list)
    """Of opening and warming up; the next measurement tells them."""

    def open(self, streams: int, *headers: str, **values: Value) -> Report:
        """Open streams and wait until they are."""
        report = self.load.command("open", *headers, streams=streams, **values)
        self.problems += report.problems()
        if report.opened != streams:
            self.problems.append(f"{report.opened:,} of {streams:,} streams opened")
        return report

    def take_problems(self) -> list[str]:
        """Return what went wrong since it was last asked for."""
        taken, self.problems = self.problems, []
        return taken

    def publish(self, **values: Value) -> "Measured":
        """Publish until all has arrived, and see what it cost the server."""
        with Costs(self.server, self.core) as costs:
            report = self.load.command("publish", **values)
        return Measured(report, costs, self.take_problems() + report.problems())

    def publish_joined(self, **values: Value) -> "Measured":
        """Publish as fast as the server can take it, all in order.

        In batches where it takes them, else one by one, with many on their way.
        """
        if self.server.batch_path:
            return self.publish(batch=BATCH_EVENTS, depth=2, **values)
        return self.publish(batch=1, depth=PIPELINE, **values)

    def warm_up(self, events: int = 30, channels: int = 1) -> None:
        """Let the server have seen all channels, uncounted."""
        self.problems += self.publish(events=events, one_at_a_time=True).problems
        if channels > 1:
            self.problems += self.publish_joined(events=3 * channels, channels=channels).problems


class Costs:
    """What a server uses of its core while the block runs, and what is left of it for others."""

    def __init__(self, server: Server, core: int) -> None:
        self._server = server
        self._core = core
        self._before = self._read()
        self.seconds = self.server_seconds = self.redis_seconds = self.core_seconds = 0.0

    def _read(self) -> tuple[float, float, float, float]:
        server = self._server
        return (
            time.monotonic(),
            cpu_seconds(server.pid),
            cpu_seconds(server.redis_pid),
            core_busy_seconds(self._core),
        )

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        used = [after - before for after, before in zip(self._read(), self._before, strict=True)]
        self.seconds, self.server_seconds, self.redis_seconds, self.core_seconds = used

    def figures(self) -> Figures:
        """Return shares of the time; `others` is what else ran on the server's core."""
        server = self.server_seconds / self.seconds
        return {
            "server_cpu": server,
            "redis_cpu": self.redis_seconds / self.seconds,
            "others_cpu": max(0.0, self.core_seconds / self.seconds - server),
        }


@dataclass(frozen=True)
class Measured:
    """A report, and what the server used meanwhile."""

    report: Report
    costs: Costs
    problems: list[str]

    def figures(self) -> Figures:
        """Return what most tables show."""
        report = self.report
        deliveries = max(1, report.deliveries)
        return {
            "deliveries_per_second": report.deliveries_per_second,
            "published_per_second": report.published_per_second,
            "p50_ms": report.latency_p50_ms,
            "p99_ms": report.latency_p99_ms,
            "max_ms": report.latency_max_ms,
            "load_cpu": report.load_cpu_share,
            "cpu_us_per_delivery": self.costs.server_seconds / deliveries * 1e6,
            "deliveries": report.deliveries,
            **self.costs.figures(),
        }

    def carried(self, events_per_second: float, seconds: float) -> float:
        """Return the share of the wanted events that the server let be published."""
        return self.report.published / (events_per_second * seconds)

    def sample(self, contender: Contender, case: str, **more: float) -> Sample:
        """Return it as a sample of one case."""
        figures = {**self.figures(), **more}
        return Sample(contender.name, case, figures, self.problems)


LATENCY_COLUMNS = (
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("max_ms", "max ms", 1),
)
CPU_COLUMNS = (
    Column("server_cpu", "server %", 0, 100),
    Column("redis_cpu", "redis %", 0, 100),
    Column("load_cpu", "load %", 0, 100),
    Column("others_cpu", "others %", 0, 100),
)


@contextmanager
def open_session(
    bench: Bench, contender: Contender, settings: Mapping[str, str] | None = None
) -> Iterator[Session]:
    """Run a contender and a load client for it, each on its core."""
    peer = contender.peer(settings or {})
    with (
        peer.start(bench.core, bench.load_core) as server,
        loading(bench, server) as started,
    ):
        yield started


@contextmanager
def loading(bench: Bench, server: Server) -> Iterator[Session]:
    """Run a load client for a server that runs."""
    with load_client(bench.load_core) as load:
        load.serve_from(server, CHANNEL, block=begins_with_block(server))
        yield Session(server, load, bench.core)


def begins_with_block(server: Server) -> bool:
    """Say whether a stream begins with a block at once; only then can one wait for it."""
    target = server.stream_path(CHANNEL.replace(NUMBER, "0"))
    request = f"GET {target} HTTP/1.1\r\nHost: {server.host}\r\nAccept: text/event-stream\r\n\r\n"
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(request.encode())
        seen = b""
        until = time.monotonic() + 10
        while b"\r\n\r\n" not in seen and time.monotonic() < until:
            seen += connection.recv(65536)
        connection.settimeout(FIRST_BLOCK_SECONDS)
        try:
            while b"\n\n" not in seen and (more := connection.recv(65536)):
                seen += more
        except TimeoutError:
            pass
    return b"\n\n" in seen


def run_scenario(
    bench: Bench, scenario: Scenario, contenders: list[Contender], say: Callable[[str], None]
) -> Iterator[Sample]:
    """Yield the samples of all rounds, the contenders taking turns within each."""
    for number in range(bench.runs or scenario.runs):
        for contender in contenders:
            say(f"{scenario.name}: round {number + 1}, {contender.name}")
            try:
                yield from scenario.measure(bench, contender)
            except (RuntimeError, OSError) as error:
                yield Sample(contender.name, "", {}, [f"it failed: {error}"])

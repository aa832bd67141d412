"""The load client: compiles `load_client`, runs it on a core and gives it commands."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.compiling import compile_c
from benchmarks.peers.base import Server
from benchmarks.peers.processes import pinned
from gateway.open_files import raise_limit

SOURCES = Path(__file__).with_name("load_client")
# What survives every way of quoting a path; stands for the channel's number.
NUMBER = "N0N"


class LoadError(RuntimeError):
    """The load client ended, or said what it should not."""


@dataclass(frozen=True)
class Report:
    """What the load client counted during one command; its `report()` makes them."""

    active_seconds: float
    """From the start to the last delivery, answer or opening."""
    deliveries: int
    deliveries_per_second: float
    missing: int
    duplicates: int
    disorder: int
    damaged: int
    gaps: int
    closed: int
    refused: int
    unavailable: int
    opened: int
    opened_per_second: float
    published: int
    failed: int
    published_per_second: float
    bytes: int
    slow_deliveries: int
    slow_gaps: int
    slow_closed: int
    latency_p50_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    ready_p50_ms: float
    ready_p99_ms: float
    answer_p99_ms: float
    load_cpu_share: float
    problem: str

    def problems(self) -> list[str]:
        """Return what was not complete, not in order or not accepted; empty when all was well."""
        names = (
            "missing", "duplicates", "disorder", "damaged", "gaps", "closed", "refused",
            "unavailable", "failed",
        )  # fmt: skip
        found = [f"{getattr(self, name):,} {name}" for name in names if getattr(self, name)]
        if found and self.problem:
            found.append(self.problem)
        return found


class Load:
    """A load client that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def command(self, name: str, *headers: str, **values: str | float | bool) -> Report:
        """Give one command and return what was counted until it was done."""
        words = [f"{key}={_spell(value)}" for key, value in values.items()]
        words += [f"header={header}" for header in headers]
        _pipe(self._process.stdin).write("\t".join([name, *words]) + "\n")
        answer = _pipe(self._process.stdout).readline()
        if not answer:
            raise LoadError(f"the load client ended in {name!r} ({self._process.wait()})")
        return Report(**json.loads(answer))

    def serve_from(
        self, server: Server, channel: str, *, block: bool, **values: str | float | bool
    ) -> Report:
        """Say where the server is; `channel` has NUMBER where the channel's number belongs."""
        return self.command(
            "server",
            *(f"{name}: {value}" for name, value in server.publish_headers.items()),
            host=server.host,
            port=server.port,
            stream=_template(server.stream_path(channel)),
            publish=_template(server.publish_path(channel)),
            batch=server.batch_path,
            channel=_template(channel),
            block=block,
            **values,
        )


@contextmanager
def load_client(core: int) -> Iterator[Load]:
    """Run a load client on one core until the block ends."""
    program = compile_load()
    raise_limit()
    process = subprocess.Popen(
        [*pinned(core), str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield Load(process)
    finally:
        _pipe(process.stdin).close()
        _pipe(process.stdout).close()
        process.kill()
        process.wait()


def compile_load() -> Path:
    """Return the compiled client.

    Raises NoCompilerError.
    """
    return compile_c(SOURCES)


def _template(path: str) -> str:
    return path.replace(NUMBER, "@")


def _spell(value: str | float | bool) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise LoadError("the load client has no pipe")
    return pipe

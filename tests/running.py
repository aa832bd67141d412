"""Real parts for tests: a Valkey that can be stopped, copied and emptied, and gateways on it."""

import asyncio
import os
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from redis.asyncio import Redis

from gateway.app import Gateway, build_gateway
from gateway.serving import listening
from gateway.settings import Settings
from gateway.store.server_process import find_binary

ENDLESS_SECONDS = 1_000_000
ENDLESS: dict[str, Any] = {"slice_seconds": ENDLESS_SECONDS, "ring_age_seconds": 10**7}
"""A namespace whose slices outlast the tests: one ends every twelve days."""


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Return the condition's first true value; fails when there is none in time."""
    async with asyncio.timeout(seconds):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value


class Valkey:
    """A real server on a unix socket (and a TCP port when asked), append-only file on."""

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        self.directory = directory
        self.port = port
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def socket(self) -> Path:
        return self.directory / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            str(find_binary()), "--port", str(self.port), "--unixsocket", str(self.socket),
            "--dir", str(self.directory), "--appendonly", "yes", "--save", "",
            "--enable-debug-command", "yes", *self._options,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await self.wait_until_ready()

    async def wait_until_ready(self) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    async with self.client() as client:
                        await client.ping()
                    return
                except Exception:
                    await asyncio.sleep(0.01)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(number)
            await process.wait()

    async def restart(self) -> None:
        """Stop it cleanly and start it on the same data."""
        await self.stop()
        await self.start()

    async def copy_data(self, target: Path) -> None:
        """Copy the data directory as it is now, everything that was acknowledged in it."""
        async with self.client() as client:
            await client.config_set("appendfsync", "always")
            await client.ping()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.directory, target, ignore=shutil.ignore_patterns("*.sock", "*.log"))

    async def restart_from(self, copy: Path) -> None:
        """Stop it and start it on an older copy of its data."""
        await self.stop(signal.SIGKILL)
        shutil.rmtree(self.directory)
        shutil.copytree(copy, self.directory)
        await self.start()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        client = Redis(unix_socket_path=str(self.socket), protocol=2)
        try:
            yield client
        finally:
            await client.aclose()

    async def commands(self) -> int:
        """Return how many commands the server has processed, INFO itself counted."""
        async with self.client() as client:
            return int((await client.info("stats"))["total_commands_processed"])


@asynccontextmanager
async def valkey(directory: Path, *options: str, port: int = 0) -> AsyncIterator[Valkey]:
    """Run a server for as long as the block."""
    server = Valkey(directory, *options, port=port)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Worker:
    """One gateway in this process, with its parts in reach."""

    def __init__(self, gateway: Gateway, url: str, running: asyncio.Task[None]) -> None:
        self.gateway = gateway
        self.url = url
        self._running = running

    def check(self) -> None:
        """Fail when the gateway has ended, with what ended it."""
        if self._running.done():
            self._running.result()
            raise AssertionError("the gateway has ended")


@asynccontextmanager
async def worker(
    redis_url: str, settings: dict[str, Any] | None = None, *, port: int = 0
) -> AsyncIterator[Worker]:
    """Run a gateway on a Redis until the block ends, as `serve` does but for signals."""
    options: dict[str, Any] = {"store": {"block_ms": 200}, "port": port, **(settings or {})}
    gateway = build_gateway(Settings(**options), redis_url)
    await gateway.store.check()
    running = asyncio.create_task(gateway.run())
    try:
        async with listening(gateway) as url:
            started = Worker(gateway, url, running)
            await until(lambda: all(tail.connected for tail in gateway.tails.values()))
            yield started
            started.check()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await gateway.store.aclose()


_ports = random.sample(range(20000, 30000), 10000)


def free_port() -> int:
    """Return a TCP port of loopback that is free, another one each time.

    No outgoing connection is given it, nor a server that takes any port.
    """
    while True:
        port = _ports.pop()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Block:
    """One dispatched SSE event; `data` is None for a block that only carried an id."""

    __slots__ = ("data", "id", "type")

    def __init__(self, id: str, type: str, data: str | None) -> None:
        self.id = id
        self.type = type
        self.data = data

    def __repr__(self) -> str:
        return f"Block({self.id!r}, {self.type!r}, {self.data!r})"


class Stream:
    """A plain reader of one stream, by the rules of WHATWG HTML 9.2.6."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""
        self._lines: list[str] = []

    async def next(self, seconds: float = 20.0) -> Block | None:
        """Return the next block with fields, or None at the end of the stream."""
        async with asyncio.timeout(seconds):
            while True:
                raw = await self.response.content.readline()
                if not raw:
                    return None
                line = raw.decode().rstrip("\n")
                if line:
                    self._lines.append(line)
                elif self._lines:
                    block = self._dispatch()
                    if block is not None:
                        return block

    def _dispatch(self) -> Block | None:
        data: list[str] = []
        type_ = ""
        seen = False
        for line in self._lines:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                self.last_id, seen = value, True
            elif name == "event":
                type_, seen = value, True
            elif name == "data":
                data.append(value)
                seen = True
        self._lines = []
        return Block(self.last_id, type_, "\n".join(data) if data else None) if seen else None


@asynccontextmanager
async def follow(
    session: aiohttp.ClientSession, url: str, last_event_id: str | None = None
) -> AsyncIterator[Stream]:
    """Open a stream, by GET with `Accept: text/event-stream`."""
    headers = {"Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    timeout = aiohttp.ClientTimeout(total=None)
    async with session.get(url, headers=headers, timeout=timeout) as response:
        assert response.status == 200, await response.text()
        yield Stream(response)


def kill(pid: int) -> None:
    """End a process that the test started, at once."""
    os.kill(pid, signal.SIGKILL)

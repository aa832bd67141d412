"""No file descriptor is leaked or closed twice, in whatever state a connection is when it ends."""

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.running import Valkey, Worker, until, worker
from tests.web.client import Client

ROOT = Path(__file__).parents[2]
SIZE = 2500
"""Connections at a time: fewer than what may wait to be accepted."""

SETTINGS: dict[str, Any] = {
    # Some of each round are told to come back later.
    "streams": {"subscribers_limit": 1200, "send_buffer_bytes": 16384, "heartbeat_seconds": 0.5},
    "namespaces": {"default": {"stream_codings": ["gzip"]}},
}


def descriptors(pid: int) -> int:
    """Return how many files a process has open, connections to its store left out."""
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # That of the directory itself.
        count += not (target.startswith("socket:[") and target[8:-1] in local)
    return count


class Crowd:
    """The program of `crowd.py`, step by step."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def step(self) -> None:
        """Open, kill or bury all connections; return when it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(60):
            assert await self._process.stdout.readline() == b"done\n"


@asynccontextmanager
async def crowd(url: str, size: int, seed: int) -> AsyncIterator[Crowd]:
    address = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.web.crowd",
        str(address.hostname), str(address.port), str(size), str(seed),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        yield Crowd(process)
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Canaries:
    """Files opened now and then: whoever closes a number twice closes one of them."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self._kind = os.stat(os.devnull).st_rdev

    def add(self, count: int) -> None:
        self._files += [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]

    def release(self) -> None:
        """Close them; raises OSError where one is closed already."""
        for number in self._files:
            assert os.fstat(number).st_rdev == self._kind
            os.close(number)
        self._files.clear()


async def come_down_to(count: int, pid: int) -> None:
    """Wait until a process has no more files open than it had."""
    try:
        await until(lambda: descriptors(pid) == count)
    except TimeoutError:
        raise AssertionError(f"{descriptors(pid)} files are open, not {count}") from None


async def fill(client: Client) -> None:
    """Publish what replays take a while for."""
    lines = [{"channel": "past", "data": f"{n} ".ljust(16_000, "x")} for n in range(60)]
    await client.publish_lines(lines)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("transport", "rounds"), [("socket", 12), ("response", 4)])
async def test_of_thousands_of_connections_in_every_state_nothing_is_left(
    redis: Valkey,
    session: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    transport: str,
    rounds: int,
) -> None:
    settings = {**SETTINGS, "streams": {**SETTINGS["streams"], "transport": transport}}
    loop, failures, canaries = asyncio.get_running_loop(), list[dict[str, Any]](), Canaries()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    refused = ended = lagging = 0
    async with worker(redis.url, settings) as running, session:
        client, hub = Client(session, running), running.gateway.hub
        async with crowd(running.url, SIZE, seed=7) as people:
            # With the first stream comes the object that watches all of them.
            before = descriptors(os.getpid()) + (transport == "socket")
            await fill(client)
            for number in range(rounds):
                canaries.add(20)
                await people.step()
                refused += hub.subscribers == settings["streams"]["subscribers_limit"]
                await publish_large(client)
                lagging += hub.count_lagging()
                if number % 3 == 1:
                    ended += hub.subscribers
                    hub.drain()
                    assert hub.subscribers == 0
                await people.step()
                canaries.add(20)
                await people.step()
                await all_gone(running)
                canaries.release()
                await come_down_to(before, os.getpid())
    assert refused > rounds / 2
    assert ended > SIZE / 5
    assert lagging > SIZE / 10
    assert failures == []
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    loop.set_exception_handler(None)


async def publish_large(client: Client) -> None:
    """Fill the buffers of whoever reads nothing."""
    await client.publish_lines([{"channel": "a", "data": "x" * 16_000}] * 4)
    await client.settle()


async def all_gone(running: Worker) -> None:
    gateway = running.gateway
    await until(lambda: gateway.hub.subscribers == 0)
    await until(lambda: len(gateway.sockets or ()) == 0)
    assert gateway.hub.count_lagging() == 0


@pytest.mark.timeout(240)
async def test_a_gateway_of_its_own_leaves_nothing_open_either(
    redis: Valkey, session: aiohttp.ClientSession
) -> None:
    """As it is run: on its own loop, in its own process."""
    options = {
        "GATEWAY_REDIS": redis.url,
        "GATEWAY_PORT": "0",
        "GATEWAY_STREAMS__SUBSCRIBERS_LIMIT": "1200",
        "GATEWAY_STREAMS__SEND_BUFFER_BYTES": "16384",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")} | options
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", cwd=ROOT, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        url = await _address(process)
        before = descriptors(process.pid) + 1
        async with crowd(url, SIZE, seed=8) as people:
            for _ in range(4):
                await people.step()
                assert await _subscribers(session, url) > 0
                await people.step()
                await people.step()
                async with asyncio.timeout(20):
                    while await _subscribers(session, url):
                        await asyncio.sleep(0.01)
                await come_down_to(before, process.pid)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while line := await process.stdout.readline():
            found = re.search(rb"http://\S+", line)
            if found:
                return found[0].decode()
    raise AssertionError("it never told its address")


async def _subscribers(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/metrics") as response:
        found = re.search(r"^\w*subscribers (\S+)$", await response.text(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))

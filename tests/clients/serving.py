"""A gateway process that can be killed and started again, and a publisher that does not mind."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp

from tests.running import free_port

ROOT = Path(__file__).parents[2]
RETRY_MS = 100
PAUSE_SECONDS = 0.01
SEEN_BETWEEN = 10
"""Events that a client must have seen before the next kill."""


class Serving:
    """`sse-gateway serve` with its embedded store, always at the same address and directory.

    `settings` are environment variables, as GATEWAY_STREAMS__RETRY_MS.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._settings = {"GATEWAY_STREAMS__RETRY_MS": str(RETRY_MS), **(settings or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when it serves."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        environment |= {"PYTHONPATH": str(ROOT), **self._settings}
        with (self._directory / "gateway.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", "serve",
                "--port", str(self.port), "--data-dir", str(self._directory / "data"),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=environment, cwd=self._directory,
            )  # fmt: skip
        output = self._process.stdout
        assert output is not None
        async with asyncio.timeout(30):
            while not re.search(rb"serves", line := await output.readline()):
                assert line, (self._directory / "gateway.log").read_text()
        self._reading = asyncio.create_task(_drain(output))

    async def kill(self) -> None:
        """End the gateway as a crash does; its store lives on."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Stop it in order, with its store, and return the exit code."""
        if self._process is None:
            await self.start()  # It is gone, but its store is not.
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        code = await process.wait()
        if self._reading is not None:
            await self._reading
        return code


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Serving]:
    """Run a gateway process until the block ends."""
    gateway = Serving(directory)
    try:
        await gateway.start()
        yield gateway
    finally:
        code = await gateway.stop()
    assert code == 0


class Writer:
    """Publishes numbered events to one channel without end; sends again what was not answered."""

    def __init__(self, session: aiohttp.ClientSession, url: str, channel: str) -> None:
        self.stored: list[tuple[str, str]] = []
        self._failures = 0
        self._session = session
        self._url = f"{url}/publish/{channel}"
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let the event that is under way be stored, and publish no more."""
        self._stop.set()
        assert self._task is not None
        await self._task

    async def count(self) -> int:
        """Return how many events are stored."""
        return len(self.stored)

    async def failed(self) -> int:
        """Return how often an event was not answered for."""
        return self._failures

    async def _run(self) -> None:
        while not self._stop.is_set():
            data = f"event {len(self.stored)}"
            self.stored.append((await self._publish(data), data))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _publish(self, data: str) -> str:
        async with asyncio.timeout(30):
            while True:
                try:
                    async with self._session.post(
                        self._url, data=data, headers={"Idempotency-Key": data}
                    ) as response:
                        body = await response.json(content_type=None)
                        if response.status == 200:
                            return str(body["id"])
                        assert response.status == 503, body
                except aiohttp.ClientError:
                    pass
                self._failures += 1
                await asyncio.sleep(PAUSE_SECONDS)


async def live_through_crashes(
    gateway: Serving, writer: Writer, seen: Callable[[], Awaitable[int]]
) -> None:
    """Kill the gateway twice while events are published and read; return when all were seen.

    `seen` tells how many events the reader has, of those that the writer stored.
    """
    for _ in range(2):
        await reach(seen, await seen() + SEEN_BETWEEN)
        await gateway.kill()
        await reach(writer.failed, await writer.failed() + 2)
        await gateway.start()
    await reach(seen, await seen() + SEEN_BETWEEN)
    await writer.stop()
    await reach(seen, len(writer.stored))


async def reach(figure: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Wait until a figure is as large as wanted."""
    async with asyncio.timeout(30):
        while await figure() < wanted:
            await asyncio.sleep(0.02)

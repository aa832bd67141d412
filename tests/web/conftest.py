"""Fixtures of the tests of the HTTP interface."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from tests.running import Valkey, worker
from tests.web.client import Client

Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that neither asks for compression nor undoes it, on fresh connections."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "Content-Type"),
    ) as client:
        yield client


@pytest.fixture
def transport() -> str:
    """What streams are written to; modules that must hold for each override it."""
    return "auto"


@pytest.fixture
async def start(
    redis: Valkey, session: aiohttp.ClientSession, transport: str
) -> AsyncIterator[Start]:
    """Starts a gateway with the settings given, on the test's own Valkey or another Redis."""
    async with AsyncExitStack() as stack:

        async def start(
            settings: dict[str, Any] | None = None, redis_url: str | None = None
        ) -> Client:
            streams = {"transport": transport, **(settings or {}).get("streams", {})}
            running = worker(redis_url or redis.url, {**(settings or {}), "streams": streams})
            return Client(session, await stack.enter_async_context(running))

        yield start


@pytest.fixture
async def client(start: Start) -> Client:
    """A client of a gateway with default settings."""
    return await start()

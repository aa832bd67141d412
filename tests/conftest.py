"""Fixtures that all tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.running import Valkey, Worker, valkey, worker


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A real Valkey of the test's own, empty."""
    async with valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def gateway(redis: Valkey) -> AsyncIterator[Worker]:
    """A gateway with default settings on that server."""
    async with worker(redis.url) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit of connections."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        yield client

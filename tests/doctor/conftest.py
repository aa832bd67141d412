"""Fixtures of the doctor's tests."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.doctor.looking import SETTINGS, publish
from tests.running import Worker, valkey, worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def origin(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """One gateway for all: each edge before it is new, and so is what the doctor publishes to."""
    directory = tmp_path_factory.mktemp("origin")
    async with valkey(directory) as redis, worker(redis.url, SETTINGS) as running:
        for number in range(5):
            await publish(running.url, "a/b", b"%d" % number)
        yield running

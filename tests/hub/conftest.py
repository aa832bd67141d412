"""Fixtures of the hub's tests."""

from collections.abc import AsyncIterator

import pytest

from gateway.store.redis import RedisStore
from tests.running import Valkey
from tests.store.opening import open_store


@pytest.fixture
async def store(redis: Valkey) -> AsyncIterator[RedisStore]:
    """A checked store with default settings on the test's own Valkey."""
    async with open_store(redis.url) as opened:
        await opened.check()
        yield opened

"""Fixtures of the tests of purges: a server that records what it is sent."""

from collections.abc import AsyncIterator

import pytest

from tests.purge.recorder import Recorder, recorder


@pytest.fixture
async def hook() -> AsyncIterator[Recorder]:
    async with recorder() as running:
        yield running

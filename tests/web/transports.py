"""Has a module's tests run on each of the two transports: import the fixture there."""

import pytest


@pytest.fixture(params=["socket", "response"])
def transport(request: pytest.FixtureRequest) -> str:
    """What streams are written to: a socket taken over from aiohttp, or its own transport."""
    return str(request.param)

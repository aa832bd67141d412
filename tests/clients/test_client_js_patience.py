"""`/client.js` where it takes seconds until all is well, each for a reason of its own.

All the scenarios are played at the same time: see tests/clients/together.py.
"""

import pytest

from tests.clients.pages import ONE_LOOP, browser
from tests.clients.scenarios import crashes, proxies, refusals, slices
from tests.clients.together import Playing, Scenario, playing

__all__ = ["browser", "playing"]

pytestmark = ONE_LOOP

SCENARIOS = [
    *slices.SCENARIOS,
    *crashes.SCENARIOS,
    *proxies.SCENARIOS,
    *refusals.SCENARIOS,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_with_patience(playing: Playing, scenario: Scenario) -> None:
    await playing[scenario]

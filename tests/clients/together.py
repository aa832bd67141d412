"""Scenarios that mostly wait: those of a module are played at the same time.

The module has a test for each, with the parameter `scenario`, which awaits it. Each has a stage of
its own; they share the module's browser.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.clients.pages import SETTINGS, open_page
from tests.running import Valkey, Worker, valkey, worker


@dataclass(frozen=True)
class Stage:
    """What one scenario has to itself; `closing` ends what it opens."""

    directory: Path
    redis: Valkey
    gateway: Worker
    session: aiohttp.ClientSession
    closing: AsyncExitStack
    _browser: Browser
    _opening: asyncio.Semaphore

    async def page(self, url: str = "") -> Page:
        """Open a page that knows how to read, of the gateway's own site if no other."""
        # A few at a time: all at once, each would be as late as the last.
        async with self._opening:
            context = await self._browser.new_context()
            self.closing.push_async_callback(context.close)
            return await open_page(await context.new_page(), url or self.gateway.url)


Scenario = Callable[[Stage], Awaitable[None]]
Playing = dict[Scenario, asyncio.Task[None]]


@asynccontextmanager
async def staged(
    directory: Path, browser: Browser, opening: asyncio.Semaphore
) -> AsyncIterator[Stage]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        valkey(directory / "valkey") as redis,
        worker(redis.url, SETTINGS) as gateway,
        aiohttp.ClientSession(connector=connector) as session,
        AsyncExitStack() as closing,
    ):
        yield Stage(directory, redis, gateway, session, closing, browser, opening)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def playing(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Playing]:
    """Begins the scenarios of those of the module's tests that are to run."""

    opening = asyncio.Semaphore(2)

    async def play(scenario: Scenario) -> None:
        async with staged(tmp_path_factory.mktemp("stage"), browser, opening) as stage:
            await scenario(stage)

    wanted: list[Any] = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    tasks = {scenario: asyncio.create_task(play(scenario)) for scenario in wanted}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)

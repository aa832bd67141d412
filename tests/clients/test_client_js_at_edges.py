"""`/client.js` through the edges that ship, while the gateway behind them dies and comes back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser

from tests.clients.pages import (
    ONE_LOOP,
    SETTINGS,
    browser,
    connected,
    eventually,
    open_page,
    publish,
    reached,
    read,
    redis,
    session,
)
from tests.edge.running import nginx, varnish
from tests.running import Valkey, free_port, worker

__all__ = ["browser", "redis", "session"]

pytestmark = ONE_LOOP

READERS = ["one", "two", "three"]
CHANNEL = "plain/edge"


@asynccontextmanager
async def edge(kind: str, directory: Path, port: int) -> AsyncIterator[str]:
    """Run an edge before the port; yields its URL. NGINX speaks HTTP/2 over TLS."""
    origin = f"127.0.0.1:{port}"
    if kind == "varnish":
        async with varnish(directory, origin) as running:
            yield running.url
    else:
        async with nginx(directory, origin, settings=SETTINGS) as running:
            yield running.tls_url


async def answers(session: aiohttp.ClientSession, url: str) -> None:
    """Return when the edge has noticed that there is a gateway now."""
    async with asyncio.timeout(20):
        while True:
            async with session.get(url, ssl=False) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "transport"),
    [("nginx", "events"), ("nginx", "slices"), ("nginx", "poll"), ("varnish", "slices")],
)
async def test_readers_see_nothing_but_a_pause_though_the_gateway_dies(
    redis: Valkey,
    tmp_path: Path,
    session: aiohttp.ClientSession,
    browser: Browser,
    kind: str,
    transport: str,
) -> None:
    port = free_port()
    origin, ids = f"http://127.0.0.1:{port}", []
    context = await browser.new_context(ignore_https_errors=True)
    async with edge(kind, tmp_path / kind, port) as url:
        async with worker(redis.url, SETTINGS, port=port) as running:
            await answers(session, f"{url}/client.js")
            page = await open_page(await context.new_page(), url)
            for name in READERS:
                await read(page, url, CHANNEL, name, transports=[transport])
                await connected(page, name, transport)
            ids += [await publish(session, origin, CHANNEL, number) for number in range(10)]
            for name in READERS:
                await reached(page, name, ids[-1])
            if kind == "varnish":
                # However many readers: a slice costs the gateway one request.
                slices = running.gateway.slices.counters
                assert running.gateway.requests["/slices"] <= slices.begun + slices.ended
        for name in READERS:
            await eventually(page, name, lambda found: not found["status"]["connected"])
        async with worker(redis.url, SETTINGS, port=port):
            ids += [await publish(session, origin, CHANNEL, number) for number in range(10, 20)]
            for name in READERS:
                found = await reached(page, name, ids[-1])
                assert (found["ids"], found["gaps"]) == (ids, [])
                assert found["data"] == list(range(20))
            await page.close()
    assert len(ids) == 20

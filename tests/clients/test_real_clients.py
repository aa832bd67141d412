"""Clients that others wrote, through crashes of the gateway: nothing missing, nothing twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import httpx_sse
import pytest

from tests.clients.serving import ROOT, Serving, Writer, live_through_crashes, reach, serving

Seen = list[tuple[str, str]]
JS = ROOT / "tests" / "js"
AGAIN_SECONDS = 0.05
"""The pause of those clients that do not come back by themselves."""


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run a program until the block ends; yields its output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.stdout.read()
        await process.wait()


async def follow_with_curl(url: str, position: str, seen: Seen) -> None:
    """Run `curl -N` again and again, each time with the id of the last whole event."""
    while True:
        header = f"Last-Event-ID: {position}"
        async with program("curl", "-sfN", "-H", header, url) as output:
            block: dict[str, str] = {}
            while (line := (await output.readline()).decode()).endswith("\n"):
                name, _, value = line.rstrip("\n").partition(": ")
                if name:
                    block[name] = value
                    continue
                if "data" in block and block.get("event") != "unavailable":
                    seen.append((block["id"], block["data"]))
                position = block.get("id", position)
                block = {}
        await asyncio.sleep(AGAIN_SECONDS)


async def follow_with_httpx_sse(url: str, position: str, seen: Seen) -> None:
    """Read with httpx-sse, and come back with the last id when the connection broke."""
    async with httpx.AsyncClient(timeout=httpx.Timeout(5, read=None)) as client:
        while True:
            headers = {"Last-Event-ID": position}
            try:
                async with httpx_sse.aconnect_sse(client, "GET", url, headers=headers) as source:
                    async for event in source.aiter_sse():
                        position = event.id
                        if event.data and event.event != "unavailable":
                            seen.append((event.id, event.data))
            except httpx.TransportError:
                await asyncio.sleep(AGAIN_SECONDS)


async def follow_with_npm_eventsource(url: str, position: str, seen: Seen) -> None:
    """Let npm's `eventsource` follow; it comes back by itself."""
    start = f"{url}?last_event_id={position}"
    async with program("node", str(JS / "follow.mjs"), start) as output:
        while line := await output.readline():
            id, data = json.loads(line)
            seen.append((id, data))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    "client", [follow_with_curl, follow_with_httpx_sse, follow_with_npm_eventsource]
)
async def test_a_client_has_every_event_once_though_the_gateway_is_killed(
    gateway: Serving,
    session: aiohttp.ClientSession,
    client: Callable[[str, str, Seen], Awaitable[None]],
) -> None:
    seen: Seen = []
    async with Writer(session, gateway.url, "live/a") as writer:
        # It begins after events that were there before.
        await reach(writer.count, 5)
        start, _ = writer.stored[0]
        following = asyncio.ensure_future(client(f"{gateway.url}/events/live/a", start, seen))

        async def count() -> int:
            assert not following.done(), following.result()
            return 1 + len(seen)

        await live_through_crashes(gateway, writer, count)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert seen == writer.stored[1:]

"""What tests of slices behind edges share: gateways, publishing, moments, and one whole body."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from gateway.protocol.position import Position
from tests.edge.running import Edge, origin_of, varnish
from tests.running import Valkey, Worker, worker

SECONDS = 5
SETTINGS: dict[str, Any] = {
    "namespaces": {"default": {"slice_seconds": SECONDS, "stream_codings": ["zstd", "gzip"]}}
}


def open_session() -> aiohttp.ClientSession:
    """Return a client without limits that takes and undoes codings, as readers do."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    )


async def now_ms(origin: Worker) -> int:
    life, ms = await origin.gateway.store.seal("default", Position(0, 0))
    return max(life.clock.ms, ms)


async def at_a_beginning(origin: Worker, after: int = -1, seconds: int = SECONDS) -> int:
    """Wait until a slice has just begun, and the epoch is older than it; return its number."""
    life = await origin.gateway.store.greet("default")
    first = life.floor.ms // (seconds * 1000)
    async with asyncio.timeout(30):
        while True:
            number, ms = divmod(await now_ms(origin), seconds * 1000)
            if number > max(first, after) and ms < 1000:
                return number
            await asyncio.sleep(0.02)


async def path_of(origin: Worker, number: int, channel: str) -> str:
    """Return the path of a slice."""
    namespace, slash, _ = channel.partition("/")
    epoch = (await origin.gateway.store.greet(namespace if slash else "default")).epoch
    return f"/slices/{epoch}/{number}/{channel}"


async def read(
    session: aiohttp.ClientSession, url: str, body: bytearray | None = None
) -> tuple[bytes, bool]:
    """Return a body, and whether it came to its end; `body` grows as it comes."""
    body = bytearray() if body is None else body
    async with session.get(url) as response:
        assert response.status == 200, (dict(response.headers), await response.text())
        try:
            async for chunk in response.content.iter_any():
                body += chunk
        except aiohttp.ClientPayloadError:
            return bytes(body), False
    return bytes(body), True


async def until_reached(session: aiohttp.ClientSession, edge: Edge) -> None:
    """Wait until an edge reaches its gateway, which may have started after it."""
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"{edge.url}/openapi.json") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.02)


class TwoWorkers(NamedTuple):
    """Two gateways on one store, and a Varnish that asks them by turns."""

    workers: tuple[Worker, Worker]
    edge: Edge


@asynccontextmanager
async def two_workers(redis: Valkey, directory: Path) -> AsyncIterator[TwoWorkers]:
    """Run them until the block ends; their heartbeats are frequent."""
    settings = {**SETTINGS, "streams": {"heartbeat_seconds": 0.2}}
    async with worker(redis.url, settings) as one, worker(redis.url, settings) as other:

        def by_turns(text: str) -> str:
            [gateway] = re.findall(r"^backend gateway \{.*?^\}\n", text, re.M | re.S)
            ports = [origin_of(each.url).partition(":")[2] for each in (one, other)]
            second = gateway.replace("gateway", "second", 1).replace(*ports)
            assert second.count(ports[1]) == 1
            turns = """sub vcl_init {
                new turns = directors.round_robin();
                turns.add_backend(gateway);
                turns.add_backend(second);
            }
            sub vcl_recv {
                set req.backend_hint = turns.backend();
            }
            """
            text = text.replace("import std;", "import std;\nimport directors;")
            return text.replace(gateway, gateway + second + turns)

        async with varnish(directory, origin_of(one.url), edit=by_turns) as edge:
            yield TwoWorkers((one, other), edge)

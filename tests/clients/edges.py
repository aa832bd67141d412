"""Edges that do harm, for readers to get along with: an NGINX that buffers, a cache that lies."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.running import free_port, until

CONFIGURATION = Path(__file__).parent / "client_pages" / "buffering.conf"


@asynccontextmanager
async def buffering_nginx(directory: Path, origin: str) -> AsyncIterator[str]:
    """Run a real NGINX that holds streams back, before the server at a URL; yields its own."""
    directory.mkdir()
    port = free_port()
    text = CONFIGURATION.read_text().replace("LISTEN", str(port))
    (directory / "nginx.conf").write_text(text.replace("ORIGIN", origin.removeprefix("http://")))
    binary = shutil.which("nginx") or "/usr/sbin/nginx"
    process = await asyncio.create_subprocess_exec(
        binary, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await until(lambda: process.returncode is not None or (directory / "nginx.pid").exists())
        assert process.returncode is None
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


class LyingCache:
    """Answers with what it heard first of a path, whatever the query asks, while it `lies`.

    Everything it says has an `Age`. With `heeds_query` it passes on what has a query.
    """

    def __init__(self, origin: str, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.lies = False
        self.heeds_query = True
        self.asked: Counter[str] = Counter()
        self._origin = origin
        self._session = session
        self._kept: dict[str, bytes] = {}

    async def answer(self, request: web.Request) -> web.Response:
        self.asked[request.path.split("/")[1]] += 1
        lying = self.lies and not (self.heeds_query and request.query_string)
        body = self._kept.get(request.path) if lying else None
        headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Age"}
        if body is not None:
            headers["Age"] = "500"
            return web.Response(body=body, content_type="application/json", headers=headers)
        async with self._session.get(f"{self._origin}{request.rel_url}") as response:
            body = await response.read()
            if response.status == 200:
                self._kept.setdefault(request.path, body)
            kind = response.content_type
            return web.Response(
                body=body, status=response.status, content_type=kind, headers=headers
            )


@asynccontextmanager
async def lying_cache(origin: str, session: aiohttp.ClientSession) -> AsyncIterator[LyingCache]:
    """Run a cache before the server at a URL."""
    cache = LyingCache(origin, session)
    application = web.Application()
    application.router.add_get("/{path:.*}", cache.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    cache.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield cache
    finally:
        await runner.cleanup()

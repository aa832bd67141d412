"""The module `/client.js` itself: its size, its types, and how it is served."""

import asyncio
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import aiohttp
import brotli
import zstandard

from tests.clients.faults import Way
from tests.clients.pages import ONE_LOOP, Opener, browser, gateway, opener, redis, way
from tests.running import Worker

__all__ = ["browser", "gateway", "opener", "redis", "way"]

pytestmark = ONE_LOOP

JS = Path(__file__).parents[1] / "js"
MODULE = Path(__file__).parents[2] / "gateway" / "web" / "static" / "client.js"


async def run(*command: str) -> bytes:
    """Return what a program of tests/js prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=JS, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output


async def test_it_is_small() -> None:
    minified = await run("node_modules/.bin/esbuild", "--minify", "--format=esm", str(MODULE))
    assert len(brotli.compress(minified, quality=11)) < 8 * 1024
    assert "import" not in re.findall(r"^(?:import|export)\b", MODULE.read_text(), re.MULTILINE)


async def test_its_types_hold_and_are_those_that_its_users_see() -> None:
    await run(
        "node_modules/.bin/tsc", "--noEmit", "--strict", "--allowJs", "--checkJs",
        "--target", "es2023", "--lib", "es2023,dom,dom.iterable",
        "--module", "esnext", "--moduleResolution", "bundler",
        str(MODULE), str(Path(__file__).parent / "client_pages" / "typed.ts"),
    )  # fmt: skip


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.decompress,
    "zstd": zstandard.decompress,
    "gzip": gzip.decompress,
    "identity": lambda body: body,
}


async def test_it_is_served_to_pages_of_any_site_in_each_coding(
    gateway: Worker, way: Way, opener: Opener
) -> None:
    url, tags = f"{gateway.url}/client.js", set()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for coding, decode in DECODERS.items():
            async with session.get(url, headers={"Accept-Encoding": coding}) as response:
                assert decode(await response.read()) == MODULE.read_bytes()
                assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
                assert response.headers.get("Content-Encoding", "identity") == coding
                assert response.headers["Vary"] == "Accept-Encoding"
                tags.add(tag := response.headers["ETag"])
            async with session.get(url, headers={"If-None-Match": f'"x", W/{tag}'}) as response:
                assert (response.status, await response.read()) == (304, b"")
                assert response.headers["ETag"] == tag
    assert len(tags) == len(DECODERS)
    page = await opener(way.url)
    names = "async (url) => Object.keys(await import(url))"
    assert await page.evaluate(names, url) == ["comparePositions", "follow"]

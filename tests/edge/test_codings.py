"""Every coding offered is read by real clients through real edges: whole, and event by event."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import brotli
import httpx
import pytest
import zstandard

from tests.clients import test_browser
from tests.edge.running import nginx, origin_of, varnish
from tests.running import ENDLESS, ENDLESS_SECONDS, Valkey, Worker, until, worker

page = test_browser.page

SETTINGS: dict[str, Any] = {
    "namespaces": {"default": {**ENDLESS, "stream_codings": ["zstd", "gzip"]}}
}
EVENTS = 5
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    "gzip": gzip.decompress,
    "identity": bytes,
}


class Edges(NamedTuple):
    """An origin, and what stands before it."""

    origin: Worker
    urls: dict[str, str]


@pytest.fixture
async def edges(redis: Valkey, tmp_path: Path) -> AsyncIterator[Edges]:
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(worker(redis.url, SETTINGS))
        address = origin_of(origin.url)
        n = await stack.enter_async_context(nginx(tmp_path / "nginx", address))
        v = await stack.enter_async_context(varnish(tmp_path / "varnish", address))
        yield Edges(origin, {"nginx": n.url, "varnish": v.url, "nginx-tls": n.tls_url})


async def publish(session: aiohttp.ClientSession, origin: Worker, number: int) -> str:
    data = json.dumps({"number": number, "text": "one more of many that are alike"})
    async with session.post(
        f"{origin.url}/publish/a", data=data, headers={"Content-Type": "application/json"}
    ) as answer:
        return str((await answer.json(content_type=None))["id"])


async def slice_path(origin: Worker) -> str:
    """Return the path of the slice that runs now; the first of an epoch has no other."""
    life = await origin.gateway.store.greet("default")
    return f"/slices/{life.epoch}/{life.clock.ms // 1000 // ENDLESS_SECONDS}/a"


async def arrives(
    session: aiohttp.ClientSession, origin: Worker, readers: list[Callable[[], str]]
) -> None:
    """Publish one event after the other, each when all readers have the one before."""
    for number in range(EVENTS):
        line = f"id: {await publish(session, origin, number)}\n"
        while not all(line in text() for text in readers):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["snapshot", "full page of history"])
async def test_documents_come_in_every_coding(
    edges: Edges, session: aiohttp.ClientSession, kind: str
) -> None:
    first, *_ = [await publish(session, edges.origin, number) for number in range(EVENTS)]
    path = "/snapshots/a" if kind == "snapshot" else f"/history/a?after={first}&limit={EVENTS - 1}"
    bodies = set()
    for url in edges.urls.values():
        for coding, unpack in WHOLE.items():
            for _ in range(2):
                headers = {"Accept-Encoding": coding}
                async with session.get(url + path, headers=headers) as answer:
                    assert answer.headers.get("Content-Encoding", "identity") == coding
                    assert answer.headers["Vary"] == "Accept-Encoding"
                    bodies.add(unpack(await answer.read()))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as usual:
            bodies.add(await (await usual.get(url + path)).read())
        async with httpx.AsyncClient(verify=False) as other:
            bodies.add((await other.get(url + path)).content)
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sk", "--compressed", url + path, stdout=asyncio.subprocess.PIPE
        )
        bodies.add((await curl.communicate())[0])
    assert len(bodies) == 1


class Decoded:
    """Reads a stream in one coding with Python's decoders, as it comes."""

    def __init__(self, session: aiohttp.ClientSession, url: str, coding: str) -> None:
        self.text = ""
        self._task = asyncio.create_task(self._read(session, url, coding))

    async def _read(self, session: aiohttp.ClientSession, url: str, coding: str) -> None:
        unpack: Callable[[bytes], bytes] = bytes
        if coding == "gzip":
            unpack = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
        elif coding == "zstd":
            unpack = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress
        async with session.get(url, headers={"Accept-Encoding": coding}) as response:
            assert response.headers.get("Content-Encoding", "identity") == coding
            async for chunk in response.content.iter_any():
                self.text += unpack(chunk).decode()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_python_reads_live_streams_event_by_event(
    edges: Edges, session: aiohttp.ClientSession
) -> None:
    paths = ("/events/a", await slice_path(edges.origin))
    readers = [
        Decoded(session, url + path, coding)
        for url in edges.urls.values()
        for path in paths
        for coding in ("zstd", "gzip", "identity")
    ]
    await until(lambda: all("retry:" in one.text for one in readers))
    async with asyncio.timeout(30):
        await arrives(session, edges.origin, [lambda one=one: one.text for one in readers])  # type: ignore[misc]
    for one in readers:
        await one.stop()


async def test_httpx_and_curl_read_live_streams_event_by_event(
    edges: Edges, session: aiohttp.ClientSession
) -> None:
    texts: list[list[str]] = []
    tasks: list[asyncio.Task[None]] = []

    async def read_httpx(url: str, text: list[str]) -> None:
        async with (
            httpx.AsyncClient(verify=False, timeout=None) as client,
            client.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as response,
        ):
            assert response.headers["Content-Encoding"] == "gzip"
            async for part in response.aiter_text():
                text += [part]

    async def read_curl(url: str, text: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            "curl", "-skN", "--compressed", url, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            while part := await process.stdout.read(65536):
                text.append(part.decode())
        finally:
            process.kill()
            await process.wait()

    read: Callable[[str, list[str]], Awaitable[None]]
    for url in edges.urls.values():
        for path in ("/events/a", await slice_path(edges.origin)):
            for read in (read_httpx, read_curl):
                text: list[str] = []
                texts.append(text)
                tasks.append(asyncio.ensure_future(read(url + path, text)))
    await until(lambda: all("retry:" in "".join(text) for text in texts))
    async with asyncio.timeout(30):
        await arrives(session, edges.origin, [lambda text=text: "".join(text) for text in texts])  # type: ignore[misc]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_chromium_reads_live_streams_event_by_event(
    edges: Edges, session: aiohttp.ClientSession, page: Any
) -> None:
    await publish(session, edges.origin, 0)
    context = await page.context.browser.new_context(ignore_https_errors=True)
    for url in edges.urls.values():
        tab = await context.new_page()
        codings: dict[str, str] = {}
        tab.on(
            "response",
            lambda response, codings=codings: codings.update(
                {response.url: response.headers.get("content-encoding", "identity")}
            ),
        )
        await tab.goto(f"{url}/snapshots/a")
        paths = ["/events/a", await slice_path(edges.origin)]
        await tab.evaluate(
            """paths => {
                window.seen = paths.map(path => {
                    const seen = [];
                    const source = new EventSource(path);
                    source.onopen = () => { seen.open = true; };
                    source.onmessage = event => seen.push(event.lastEventId);
                    return seen;
                });
            }""",
            paths,
        )
        await tab.wait_for_function("seen.every(one => one.open)")
        for number in range(EVENTS):
            id = await publish(session, edges.origin, number)
            await tab.wait_for_function("id => seen.every(one => one.at(-1) === id)", arg=id)
        for path in paths:
            assert codings[url + path] in ("gzip", "zstd"), (path, codings)
        await tab.close()
    await context.close()

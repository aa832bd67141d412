"""`no-transform` is kept: streams come through the edges as they were sent, byte for byte."""

import asyncio
import re
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import zstandard

from tests.edge.running import nginx, origin_of, varnish
from tests.edge.test_codings import EVENTS, publish, slice_path
from tests.running import ENDLESS, Valkey, until, worker

EVERYTHING = {"Accept-Encoding": "gzip, deflate, br, zstd"}
_MAX_AGE = re.compile(r"max-age=(\d+)")
KEPT = ("Cache-Control", "Content-Encoding", "Content-Type", "ETag", "Vary")


class Raw:
    """Reads a stream's bytes as they come off the wire."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.headers: dict[str, str | None] = {}
        self.body = b""
        self._task = asyncio.create_task(self._read(session, url))

    async def _read(self, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url, headers=EVERYTHING) as answer:
            self.headers = {name: answer.headers.get(name) for name in KEPT}
            async for part in answer.content.iter_any():
                self.body += part

    def max_age(self) -> int:
        """Return how long caches may keep it, in seconds; 0 when they may not."""
        found = _MAX_AGE.search(str(self.headers["Cache-Control"]))
        return int(found[1]) if found else 0

    def lasting_headers(self) -> dict[str, str]:
        """Return all headers but for the time that is left."""
        return {name: _MAX_AGE.sub("", str(value)) for name, value in self.headers.items()}

    def text(self) -> bytes:
        unpack: Callable[[bytes], bytes] = bytes
        match self.headers.get("Content-Encoding"):
            case "gzip":
                unpack = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
            case "zstd":
                decoder = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
                unpack = decoder.decompress
        return unpack(self.body)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("codings", [[], ["gzip"], ["zstd"]], ids=["plain", "gzip", "zstd"])
async def test_streams_come_through_the_edges_as_they_were_sent(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, codings: list[str]
) -> None:
    own = {**ENDLESS, "stream_codings": codings}
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(
            worker(redis.url, {"namespaces": {"default": own}})
        )
        address = origin_of(origin.url)
        n = await stack.enter_async_context(nginx(tmp_path / "nginx", address))
        v = await stack.enter_async_context(varnish(tmp_path / "varnish", address))
        first = await publish(session, origin, 0)
        urls = (origin.url, n.url, n.tls_url, v.url)
        slice = await slice_path(origin)
        for path in (f"/events/a?last_event_id={first}", slice):
            began = time.monotonic()
            readers = [Raw(session, url + path) for url in urls]
            for number in range(EVENTS):
                await all_have(readers, f"id: {await publish(session, origin, number)}\n".encode())
            sent, *come = readers
            assert "no-transform" in str(sent.headers["Cache-Control"])
            assert sent.headers["Content-Encoding"] == (codings[0] if codings else None)
            seconds = time.monotonic() - began
            for one in come:
                # A running slice says what is left of it, to each in turn.
                assert 0 <= one.max_age() - sent.max_age() + seconds + 1 <= 2 * seconds + 2
                assert one.lasting_headers() == sent.lasting_headers()
                assert one.text() == sent.text()
                # A live stream is compressed from where its reader began; a slice is one for all.
                if path == slice or not codings:
                    assert one.body == sent.body
            for one in readers:
                await one.stop()


async def all_have(readers: Sequence[Raw], line: bytes) -> None:
    """Wait until each has this line, and so everything before it."""
    await until(lambda: all(line in one.text() for one in readers))
    # What belongs to it may still be on its way.
    await until(lambda: len({one.text() for one in readers}) == 1)
    await until(lambda: all(one.text().endswith(b"\n\n") for one in readers))

"""Bytes on the wire of streams through edges, plain and compressed; nothing is timed here."""

import asyncio
import random
import re
import time
import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard

from benchmarks.edge_readers import wait_for
from benchmarks.edge_rig import Plan, Rig, rig
from benchmarks.edge_tables import Found

CODINGS = ("identity", "gzip", "zstd")
# One slice for the whole run.
SETTINGS = {
    "GATEWAY_NAMESPACES__DEFAULT__SLICE_SECONDS": "1000000",
    "GATEWAY_NAMESPACES__DEFAULT__RING_AGE_SECONDS": "10000000",
    "GATEWAY_NAMESPACES__DEFAULT__STREAM_CODINGS": '["zstd","gzip"]',
}
NUMBER = re.compile(rb'"seq":(\d+)')


class Decoder(Protocol):
    """What undoes a coding piece by piece."""

    def decompress(self, data: bytes, /) -> bytes: ...


class _Plain:
    def decompress(self, data: bytes, /) -> bytes:
        return data


DECODERS: dict[str, Callable[[], Decoder]] = {
    "identity": _Plain,
    "gzip": lambda: zlib.decompressobj(31),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(read_across_frames=True),
}


class WireReader:
    """Reads one stream; `wire` counts what came after the head, chunk framing included."""

    def __init__(self, address: str, path: str, coding: str) -> None:
        self.coding = coding
        self.wire = 0
        self.text = b""
        self.is_ready = False
        self._address, self._path = address.rpartition("//")[2], path

    async def read(self) -> None:
        """Read until cancelled."""
        host, _, port = self._address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {self._path} HTTP/1.1\r\nHost: edge\r\nAccept: text/event-stream\r\n"
            f"Accept-Encoding: {self.coding}\r\n\r\n".encode()
        )
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b" 200" not in head[:13] or b"transfer-encoding: chunked" not in head:
                raise RuntimeError(f"{self._path}: {head[:200]!r}")
            if (
                self.coding != "identity"
                and f"content-encoding: {self.coding}".encode() not in head
            ):
                raise RuntimeError(f"{self._path} is not in {self.coding}")
            self.is_ready = True
            decoder = DECODERS[self.coding]()
            while line := await reader.readline():
                size = int(line, 16)
                piece = await reader.readexactly(size + 2)
                self.wire += len(line) + len(piece)
                self.text += decoder.decompress(piece[:-2])
        finally:
            writer.close()

    def numbers(self) -> list[int]:
        return [int(number) for number in NUMBER.findall(self.text)]


def score(number: int, chance: random.Random) -> bytes:
    """Return an event like those of a board of scores."""
    return (
        b'{"match":"%d","seq":%d,"minute":%d,"home":{"name":"Rovers","goals":%d},'
        b'"away":{"name":"United","goals":%d},"status":"live","odds":[%.2f,%.2f,%.2f]}'
        % (4000 + chance.randrange(12), number, number // 12 % 90, chance.randrange(4),
           chance.randrange(4), *(1 + 6 * chance.random() for _ in range(3)))
    )  # fmt: skip


async def bytes_on_the_wire(plan: Plan) -> Found:
    """Bytes of an event in each coding: live streams through NGINX, slices through Varnish."""
    count = plan.pick(500, 100)
    found = Found(
        "Bytes on the wire per event",
        ("", "plain", "gzip", "zstd", "gzip / plain", "zstd / plain"),
    )
    async with rig(plan, SETTINGS) as edge:
        chance = random.Random(1)
        events = [score(number, chance) for number in range(count)]
        ways = (
            ("live stream through NGINX", edge.nginx, "/events/scores"),
            ("slice through Varnish", edge.varnish, await edge.running_slice("scores")),
        )
        readers = {
            name: [WireReader(address, path, coding) for coding in CODINGS]
            for name, address, path in ways
        }
        await _publish_to(edge, [one for some in readers.values() for one in some], events)
        for name, some in readers.items():
            plain, gzip, zstd = (one.wire / count for one in some)
            found.rows.append((name, plain, gzip, zstd, gzip / plain, zstd / plain))
            found.problems += [
                f"{name}, {one.coding}: not every event once, in order"
                for one in some
                if one.numbers() != list(range(count))
            ]
    size = sum(map(len, events)) / count
    found.notes.append(
        f"{count:,} events of {size:.0f} bytes, one at a time, each flushed by itself; "
        "frames, chunk sizes and heartbeats counted, TCP and TLS not."
    )
    return found


async def _publish_to(edge: Rig, readers: list[WireReader], events: list[bytes]) -> None:
    """Publish one at a time to readers that are open; return when all have all, or after 10 s."""
    tasks = [asyncio.create_task(one.read()) for one in readers]
    try:
        end = time.monotonic() + 10
        while not all(one.is_ready for one in readers) and time.monotonic() < end:
            await asyncio.sleep(0.01)
            for task in tasks:
                if task.done():
                    task.result()
        for event in events:
            await edge.publish("scores", event)
            # So that each leaves alone, not joined with the next (streams.join_ms).
            await asyncio.sleep(0.01)
        await wait_for(lambda: all(len(one.numbers()) >= len(events) for one in readers), 10)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""A server that records what it is sent, and answers as it is told."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web


class Received(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Recorder:
    """`answer` may be changed at any time; it is given each request."""

    url: str = ""
    answer: Callable[[Received], Answer] = lambda received: (200, {}, b"")
    received: list[Received] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        one = Received(request.method, request.path, dict(request.headers), await request.read())
        self.received.append(one)
        status, headers, body = self.answer(one)
        return web.Response(status=status, headers=headers, body=body)


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    """Run one on loopback for as long as the block."""
    recording = Recorder()
    runner = web.ServerRunner(web.Server(recording.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    recording.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield recording
    finally:
        await runner.cleanup()

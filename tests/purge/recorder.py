"""A server that records what it is sent, and answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from aiohttp import web


class Received(NamedTuple):
    """One request, and the loop's time when it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Recorder:
    """`answer` may be changed at any time; it is given each request.

    While it is not `answering` it takes requests and says nothing.
    """

    url: str = ""
    answer: Callable[[Received], Answer] = lambda received: (200, {}, b"")
    received: list[Received] = field(default_factory=list)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: int = 0
    most_under_way: int = 0

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body, now = await request.read(), asyncio.get_running_loop().time()
        one = Received(request.method, request.path, dict(request.headers), body, now)
        self.received.append(one)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.answering.wait()
        finally:
            self.under_way -= 1
        status, headers, body = self.answer(one)
        return web.Response(status=status, headers=headers, body=body)


@asynccontextmanager
async def recorder() -> AsyncIterator[Recorder]:
    """Run one on loopback for as long as the block."""
    recording = Recorder()
    recording.answering.set()
    # Whoever gives up waiting is not under way any more.
    runner = web.ServerRunner(web.Server(recording.handle, handler_cancellation=True))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    recording.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield recording
    finally:
        recording.answering.set()
        await runner.cleanup()

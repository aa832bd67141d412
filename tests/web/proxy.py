"""A TCP proxy before Redis that can hold back the replies to one command."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.tcp import serving, until_one_ends


class RedisProxy:
    """Passes bytes on; while a command is held, replies to it stay here until `release`."""

    def __init__(self, target: Path) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self._target = target
        self._held = b""
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()

    def hold(self, command: bytes) -> None:
        """Keep back what answers requests that contain `command`, from now on."""
        self.requests.clear()
        self._held = command
        self._open.clear()

    def release(self) -> None:
        """Let everything through, what was kept back first."""
        self._open.set()

    def cut(self) -> None:
        """Close every connection there is, replies that were kept back unsent."""
        for writer in self._writers:
            writer.transport.abort()

    def seen(self, command: bytes) -> int:
        """Return how many requests contained `command` since the last `hold`."""
        return sum(command in request for request in self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._target))
        last = b""

        async def up() -> None:
            nonlocal last
            while data := await reader.read(1 << 20):
                last = data
                self.requests.append(data)
                up_writer.write(data)
                await up_writer.drain()

        async def down() -> None:
            while data := await up_reader.read(1 << 20):
                if self._held and self._held in last:
                    await self._open.wait()
                writer.write(data)
                await writer.drain()

        self._writers.add(writer)
        try:
            await until_one_ends(up(), down())
        finally:
            self._writers.discard(writer)
            up_writer.close()


@asynccontextmanager
async def redis_proxy(target: Path) -> AsyncIterator[RedisProxy]:
    """Run a proxy before the server at a unix socket for as long as the block."""
    proxy = RedisProxy(target)
    async with serving(proxy.serve) as port:
        proxy.url = f"redis://127.0.0.1:{port}"
        yield proxy

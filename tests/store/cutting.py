"""A TCP proxy before Redis that cuts a connection once a command ran, or alters replies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.tcp import serving, until_one_ends


class CuttingProxy:
    """Passes bytes on; `cut_after` makes it swallow one reply and close the connection."""

    def __init__(self, target: Path) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self._target = target
        self._cut_after = b""
        self._replaced: tuple[bytes, bytes] | None = None

    def replace(self, old: bytes, new: bytes) -> None:
        """Pass on replies with `new`, of the same length, instead of `old`."""
        assert len(old) == len(new)
        self._replaced = (old, new)

    def cut_after(self, command: bytes) -> None:
        """Cut the next connection that sends `command`, once the server has answered it."""
        self.requests.clear()
        self._cut_after = command

    def sent(self, command: bytes) -> int:
        """Return how many requests held `command` since `cut_after`."""
        return sum(command in request for request in self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(str(self._target))
        cutting = False

        async def up() -> None:
            nonlocal cutting
            while data := await reader.read(1 << 20):
                self.requests.append(data)
                if self._cut_after and self._cut_after in data:
                    cutting, self._cut_after = True, b""
                up_writer.write(data)
                await up_writer.drain()

        async def down() -> None:
            while (data := await up_reader.read(1 << 20)) and not cutting:
                writer.write(data.replace(*self._replaced) if self._replaced else data)
                await writer.drain()

        try:
            await until_one_ends(up(), down())
        finally:
            up_writer.close()


@asynccontextmanager
async def cutting_proxy(target: Path) -> AsyncIterator[CuttingProxy]:
    """Run a proxy before the server at a unix socket for as long as the block."""
    proxy = CuttingProxy(target)
    async with serving(proxy.serve) as port:
        proxy.url = f"redis://127.0.0.1:{port}"
        yield proxy

"""A TCP proxy that delays what the server answers, or cuts a connection at a chosen moment."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.tcp import serving, until_one_ends


class Proxy:
    """Passes bytes on. `delay_seconds` holds back every answer by that much.

    `cut_after(marker)` arms it once: of the connection on which the marker is sent to the server
    the next answer is swallowed, and the connection ends. The server has done its work by then.
    `cut_at(marker)` does not wait for the answer. While it `refuses`, no connection is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.cuts = 0
        self.delay_seconds = 0.0
        self.refuses = False
        self._target = host, port
        self._marker = b""
        self._at_once = False
        self._writers: set[asyncio.StreamWriter] = set()

    def cut_after(self, marker: bytes) -> None:
        """Swallow the answer to what holds `marker`."""
        self._marker, self._at_once = marker, False

    def cut_at(self, marker: bytes) -> None:
        """Pass what holds `marker` on, and end the connection to the client at once."""
        self._marker, self._at_once = marker, True

    def cut(self) -> None:
        """End every connection there is."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self.refuses:
            writer.transport.abort()
            return
        connection = _Connection(self)
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        self._writers.add(writer)
        try:
            await until_one_ends(
                connection.send(reader, upstream_writer),
                connection.answer(upstream_reader, writer),
            )
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            if connection.doomed:
                # The server gets an orderly end: it keeps what it was sent.
                upstream_writer.close()
            else:
                upstream_writer.transport.abort()

    def doom(self, data: bytes) -> bool:
        """Tell whether these bytes are those that were waited for."""
        if not self._marker or self._marker not in data:
            return False
        self._marker = b""
        self.cuts += 1
        return True

    @property
    def at_once(self) -> bool:
        """Whether the connection ends without an answer being waited for."""
        return self._at_once


class _Connection:
    def __init__(self, proxy: Proxy) -> None:
        self.doomed = False
        self._proxy = proxy

    async def send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.doomed = self.doomed or self._proxy.doom(data)
            writer.write(data)
            await writer.drain()
            if self.doomed and self._proxy.at_once:
                return

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.doomed:
                return
            if self._proxy.delay_seconds:
                await asyncio.sleep(self._proxy.delay_seconds)
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxy(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Run a proxy of a server's port until the block ends."""
    running = Proxy(host, port)
    async with serving(running.serve) as running.port:
        yield running

"""The kept transport of a stream: aiohttp's response, written to without awaiting.

It serves where a socket cannot be taken over: with TLS, and on systems without epoll.
Frames come ready from the hub, made once for all subscribers. Per subscriber there is what HTTP
asks of each connection: aiohttp frames every write as a chunk (or, for HTTP/1.0, sends it bare)
and the socket's buffer takes a copy of what the kernel does not. Nothing here encodes an event.
"""

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp_sse import EventSourceResponse

from gateway.hub.writing import count_unacknowledged
from gateway.protocol.cache_control import STREAM
from gateway.protocol.coding import IDENTITY


class EventStream(EventSourceResponse):
    """A response of ready frames. The hub's heartbeat is for all, so it has no ping task.

    `offered` says that another request might get another content coding.
    """

    def __init__(self, coding: str = IDENTITY, *, offered: bool = False) -> None:
        super().__init__()
        self.headers["Cache-Control"] = STREAM
        if coding != IDENTITY:
            self.headers["Content-Encoding"] = coding
        if offered:
            self.headers["Vary"] = "Accept-Encoding"

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the head (with the first frame); starts nothing."""
        return await web.StreamResponse.prepare(self, request)


class ResponseConnection:
    """A hub's connection over a prepared EventStream; `opening` is written before all else.

    The handler that opened it runs `serve`, which waits for room whenever a write found none.
    """

    fd = -1  # Passes must call `write`.

    def __init__(
        self,
        writer: StreamWriter,
        transport: asyncio.WriteTransport,
        buffer_limit_bytes: int,
        opening: bytes = b"",
        send_buffer_bytes: int = 0,
    ) -> None:
        self._opening = opening
        self._writer = writer
        self._transport = transport
        self._limit = buffer_limit_bytes
        self._wake = asyncio.Event()
        self._closing = False
        self._waiting = False
        transport.set_write_buffer_limits(high=buffer_limit_bytes)
        if send_buffer_bytes and (sock := transport.get_extra_info("socket")):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)

    def write(self, chunk: bytes) -> bool:
        """Take the whole chunk; return whether more is taken at once."""
        if self._closing or self._transport.is_closing():
            return False
        if self._opening:
            chunk, self._opening = self._opening + chunk, b""
        try:
            # Without `drain` nothing in it waits: one step hands over the bytes and ends.
            self._writer.write(chunk, drain=False).send(None)
        except StopIteration:
            pass
        except ConnectionError:
            return False
        if self._transport.get_write_buffer_size() > self._limit:
            self._wake.set()
            return False
        return not self._transport.is_closing()  # It may have found its reader gone.

    def keep(self, chunk: bytes, outcome: int) -> None:
        """Never called: it has no socket that others write to."""
        raise NotImplementedError

    def count_unsent(self) -> int:
        """Return how many bytes the reader has not got yet, here and in the kernel."""
        sock = self._transport.get_extra_info("socket")
        in_kernel = count_unacknowledged(sock.fileno()) if sock is not None else 0
        return self._transport.get_write_buffer_size() + in_kernel

    def close(self) -> None:
        """Let `serve` return, but drop what it waits for room for."""
        self._closing = True
        self._wake.set()
        if self._waiting:
            # Off the hub nobody else would end a reader that takes nothing.
            self._transport.abort()

    def abort(self) -> None:
        """Drop the connection and what it did not send."""
        self.close()
        self._transport.abort()

    async def serve(self, writable: Callable[[], None]) -> None:
        """Call `writable` whenever the connection takes more again; return when it is closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._closing:
                return
            self._waiting = True
            await self._writer.drain()
            self._waiting = False
            if not self._closing:
                writable()

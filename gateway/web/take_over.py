"""Taking a stream's socket over from aiohttp, so that request, task and transport can go."""

import time
from asyncio.trsock import TransportSocket
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web

from gateway.web.kept_transport import EventStream


class HandedOver(web.StreamResponse):
    """What aiohttp is given instead of an answer: it writes nothing and closes its own side.

    A handler returns it at once after `Sockets.take` has duplicated the request's socket.
    """

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write no head."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write no end."""


def socket_of(request: web.Request) -> TransportSocket | None:
    """Return the request's socket when nothing but plain bytes goes through it, else None.

    Not one with TLS, one where an answer before this is still being sent, or one whose request
    has a body: there is more to them than the socket.
    """
    transport = request.transport
    if (
        transport is None
        or transport.is_closing()
        or transport.get_extra_info("sslcontext") is not None
        or transport.get_write_buffer_size() > 0
        or request.body_exists
    ):
        return None
    sock: TransportSocket | None = transport.get_extra_info("socket")
    return sock


class Heads:
    """Heads of streams, as bytes. All streams of one content coding have the same, but its date."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, bool], bytes] = {}

    async def get(self, request: web.Request, coding: str, *, offered: bool) -> bytes:
        """Return the head that aiohttp would send, for a body that ends with its connection."""
        fields = self._fields.get((coding, offered))
        if fields is None:
            response = EventStream(coding, offered=offered)
            for application in request.match_info.apps:
                await application.on_response_prepare.send(request, response)
            # Neither a length nor chunks: RFC 9112 6.3.
            response.headers["Connection"] = "close"
            lines = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
            fields = f"HTTP/1.1 200 OK\r\n{lines}".encode()
            self._fields[coding, offered] = fields
        return fields + _date_line(int(time.time()))


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n\r\n".encode()

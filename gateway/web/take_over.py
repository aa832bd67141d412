"""Taking a stream's socket over from aiohttp, so that request, task and transport can go."""

import asyncio
import time
from email.utils import formatdate
from functools import lru_cache

from aiohttp import web

from gateway.hub.sockets import SocketConnection, Sockets


class HandedOver(web.StreamResponse):
    """What aiohttp is given instead of an answer: it writes nothing and closes its own side."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write no head."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Write no end."""


def can_take_over(request: web.Request) -> bool:
    """Tell whether nothing but plain bytes goes through the request's connection.

    Not one with TLS, one where an answer before this is still being sent, or one whose request
    has a body: there is more to them than the socket.
    """
    transport = request.transport
    return (
        isinstance(transport, asyncio.WriteTransport)
        and not transport.is_closing()
        and transport.get_extra_info("socket") is not None
        and transport.get_extra_info("sslcontext") is None
        and transport.get_write_buffer_size() == 0
        and not request.body_exists
    )


async def take_over(
    request: web.Request, response: web.StreamResponse, sockets: Sockets, opening: bytes
) -> SocketConnection:
    """Return a connection that writes the response's head and `opening` before all else.

    The response itself is not to be prepared; the handler returns HandedOver at once.
    Raises OSError when no file descriptor is left.
    """
    assert request.transport is not None
    for application in request.match_info.apps:
        await application.on_response_prepare.send(request, response)
    head = _encode_head(response)
    return sockets.take(request.transport.get_extra_info("socket"), head + opening)


def _encode_head(response: web.StreamResponse) -> bytes:
    # Neither a length nor chunks: the body ends with the connection. RFC 9112 6.3.
    response.headers["Connection"] = "close"
    fields = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    date = _http_date(int(time.time()))
    return f"HTTP/1.1 {response.status} {response.reason}\r\n{fields}Date: {date}\r\n\r\n".encode()


@lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)

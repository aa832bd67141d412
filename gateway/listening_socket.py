"""The sockets the gateway listens on, and how their connections notice a reader that vanished.

A reader that vanishes says nothing: a phone out of reach, a cut cable, a host that lost power.
Only the kernel can tell, by packets that nobody acknowledges. Accepted connections inherit these
options from the listening socket, so they cost nothing per connection. No HTTP here.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PROBES = 3


@dataclass(frozen=True, slots=True)
class SocketOption:
    """Arguments of setsockopt(2)."""

    level: int
    name: int
    value: int


def vanishing_options(vanished_seconds: float, heartbeat_seconds: float) -> list[SocketOption]:
    """Return the options by which a vanished reader is noticed within `vanished_seconds`.

    The first packet that it does not acknowledge leaves after `heartbeat_seconds` at the latest:
    a heartbeat, or a probe where there are none. TCP_USER_TIMEOUT (RFC 5482) allows it the rest.
    Where the system has no such option, probes that nobody answers end an idle connection at
    that time, and the system's own limit of retransmissions one with unsent data.
    """
    quiet_seconds = min(heartbeat_seconds, vanished_seconds / 2)
    answer_seconds = vanished_seconds - quiet_seconds
    # Linux has TCP_KEEPIDLE; macOS calls the same TCP_KEEPALIVE. Both count whole seconds.
    idle = "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"
    values = {
        idle: max(1, int(quiet_seconds)),
        "TCP_KEEPINTVL": max(1, int(answer_seconds / _PROBES)),
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": int(answer_seconds * 1000),
    }
    options = [SocketOption(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in values.items():
        number = getattr(socket, name, None)
        if number is not None:
            options.append(SocketOption(socket.IPPROTO_TCP, number, value))
    return options


async def listen(
    protocol_factory: Callable[[], Any],
    host: str,
    port: int,
    options: list[SocketOption],
    *,
    backlog: int,
) -> asyncio.Server:
    """Listen on every address of `host`; connections have `options` from the start.

    Raises OSError when an address cannot be had.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        protocol_factory, host, port, backlog=backlog, start_serving=False
    )
    try:
        for listening in server.sockets:
            for option in options:
                listening.setsockopt(option.level, option.name, option.value)
        # Only now: a connection accepted before would go without them.
        await server.start_serving()
    except BaseException:
        server.close()
        raise
    return server

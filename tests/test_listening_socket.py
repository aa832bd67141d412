"""The listening socket: accepted connections have what notices a vanished reader."""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web

from gateway.listening_socket import SocketOption, listen, vanishing_options

linux = pytest.mark.skipif(sys.platform != "linux", reason="the options of Linux")


def by_name(options: list[SocketOption]) -> dict[int, int]:
    assert options[0] == SocketOption(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert all(option.level == socket.IPPROTO_TCP for option in options[1:])
    return {option.name: option.value for option in options[1:]}


@linux
@pytest.mark.parametrize(
    ("vanished", "heartbeat", "idle", "interval", "user_timeout_ms"),
    [
        (60.0, 15.0, 15, 15, 45_000),
        (60.0, 300.0, 30, 10, 30_000),
        (2.0, 0.5, 1, 1, 1500),
        (1.0, 15.0, 1, 1, 500),
        (3600.0, 1e9, 1800, 600, 1_800_000),
    ],
)
def test_the_heartbeat_and_the_wait_for_its_answer_make_the_time(
    vanished: float, heartbeat: float, idle: int, interval: int, user_timeout_ms: int
) -> None:
    assert by_name(vanishing_options(vanished, heartbeat)) == {
        socket.TCP_KEEPIDLE: idle,
        socket.TCP_KEEPINTVL: interval,
        socket.TCP_KEEPCNT: 3,
        socket.TCP_USER_TIMEOUT: user_timeout_ms,
    }


def test_a_system_has_the_options_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT"):
        monkeypatch.delattr(socket, name, raising=False)
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", 16, raising=False)
    assert by_name(vanishing_options(60.0, 15.0)) == {
        16: 15,
        socket.TCP_KEEPINTVL: 15,
        socket.TCP_KEEPCNT: 3,
    }


async def read_options(host: str, options: list[SocketOption]) -> list[list[SocketOption]]:
    """Return the options of one accepted connection for each address of `host`."""
    seen: list[list[SocketOption]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        accepted = request.transport.get_extra_info("socket")
        seen.append(
            [SocketOption(o.level, o.name, accepted.getsockopt(o.level, o.name)) for o in options]
        )
        return web.Response()

    with closing(await listen(web.Server(handle), host, 0, options, backlog=8)) as server:
        async with aiohttp.ClientSession() as client:
            for address, port, *_ in [each.getsockname() for each in server.sockets]:
                shown = f"[{address}]" if ":" in address else address
                async with client.get(f"http://{shown}:{port}/") as answer:
                    assert answer.status == 200
    return seen


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_accepted_connections_inherit_the_options(
    run: Callable[[Coroutine[Any, Any, list[list[SocketOption]]]], list[list[SocketOption]]],
    host: str,
) -> None:
    options = vanishing_options(120.0, 15.0)
    seen = run(read_options(host, options))
    assert seen
    assert all(each == options for each in seen)


async def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await listen(asyncio.Protocol, "127.0.0.1", port, [], backlog=8)


async def test_an_option_that_the_system_refuses_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    refused = SocketOption(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1_000_000)
    with pytest.raises(OSError, match="Invalid argument"):
        await listen(asyncio.Protocol, "127.0.0.1", port, [refused], backlog=8)
    with socket.create_server(("127.0.0.1", port)):
        pass

"""Serving: a gateway on its address until it is told to stop; wires no parts."""

import asyncio
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
from aiohttp import web

from gateway import open_files
from gateway.app import Gateway, build_gateway
from gateway.demo import publish_gateway_figures, publish_host_figures
from gateway.hub.writing import COMPILED
from gateway.listening_socket import listen, vanishing_options
from gateway.protocol.channel import namespace_of
from gateway.protocol.errors import GatewayError, StoreUnavailable
from gateway.protocol.event import NewEvent
from gateway.settings import Settings
from gateway.store.connection import without_password
from gateway.web.routes import build_application

_log = logging.getLogger(__name__)
_DRAIN_SECONDS = 5.0
# Rings and requests make few cycles and many objects: after every 700 of them, as by default, the
# collector's walks took a quarter of the time of a publish.
_COLLECT_AFTER = 50_000
_BACKLOG = 4096


class PortTaken(GatewayError):
    """The address to listen on cannot be had."""


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    """Serve HTTP while the block runs; yields the address. Streams are drained at its end."""
    settings = gateway.settings
    application = build_application(
        gateway.handlers, base_path=settings.base_path, requests=gateway.requests
    )
    # A reader that leaves cancels its handler, which takes it off the hub at once.
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        # The listening socket's options hold for its connections, keep-alive among them.
        tcp_keepalive=False,
        shutdown_timeout=_DRAIN_SECONDS,
    )
    await runner.setup()
    assert runner.server is not None
    options = vanishing_options(
        settings.streams.vanished_seconds, settings.streams.heartbeat_seconds
    )
    try:
        try:
            server = await listen(
                runner.server, settings.host, settings.port, options, backlog=_BACKLOG
            )
        except OSError as error:
            raise PortTaken(f"{settings.host}:{settings.port}: {error.strerror}") from error
        try:
            host, port = server.sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{port}{settings.base_path}"
        finally:
            server.close()
    finally:
        gateway.drain()
        await runner.cleanup()
        if gateway.sockets is not None:
            gateway.sockets.close_all()


async def _demo(gateway: Gateway) -> None:
    async def publish(channel: str, data: bytes) -> object:
        namespace = namespace_of(channel, gateway.settings.namespaces)
        return await gateway.publisher.publish(namespace, [NewEvent(channel, data, json=True)])

    process = psutil.Process()

    def read() -> dict[str, float]:
        return {
            "subscribers": float(gateway.hub.subscribers),
            "deliveries_total": float(gateway.hub.counters.deliveries),
            "events_total": float(sum(tail.events for tail in gateway.tails.values())),
            "delivered_bytes_total": float(gateway.hub.counters.delivered_bytes),
            "gaps_total": float(gateway.hub.counters.gaps),
            "memory_bytes": float(process.memory_info().rss),
        }

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish_host_figures(publish))
        tasks.create_task(publish_gateway_figures(publish, read))


async def serve(
    settings: Settings, *, demo: bool = False, ready: Callable[[str], None] | None = None
) -> None:
    """Run the gateway until SIGINT or SIGTERM; `ready` gets its address once it listens.

    Raises GatewayError when it cannot start or its embedded server dies.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _log.debug("chunks are written by the loop in %s", "C" if COMPILED else "Python")
    # Before the embedded server starts: it inherits the limit, and needs it for its clients.
    open_files.raise_limit()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        stack.callback(_restore_signals, loop)
        url, exited = settings.redis, None
        if settings.redis == "embedded":
            # Imported here: a system without fcntl still serves with a Redis of its own.
            from gateway.store.embedded import EmbeddedServer

            server = await stack.enter_async_context(EmbeddedServer(settings.data_dir))
            url, exited = server.url, server.exited
        gateway = build_gateway(settings, url)
        stack.push_async_callback(gateway.store.aclose)
        await _check_store(gateway)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(gateway.run())]
                if exited is not None:
                    running.append(tasks.create_task(exited()))
                async with listening(gateway) as address:
                    if demo:
                        running.append(tasks.create_task(_demo(gateway)))
                    if ready is not None:
                        ready(address)
                    await stop.wait()
                for task in running:
                    task.cancel()
        except* GatewayError as group:
            raise _first(group) from group


async def _check_store(gateway: Gateway) -> None:
    try:
        await gateway.store.check()
    except StoreUnavailable as error:
        setting = gateway.settings.redis
        if setting == "embedded":
            raise
        raise StoreUnavailable(f"redis = {without_password(setting)}: {error}") from error


def _first(group: BaseExceptionGroup[GatewayError]) -> GatewayError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GatewayError)
    return error


def _restore_signals(loop: asyncio.AbstractEventLoop) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)

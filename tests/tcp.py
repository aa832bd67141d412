"""TCP servers of tests, which leave no connection behind, and what passes bytes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> AsyncIterator[int]:
    """Serve each connection by `handle` at a port of its own; yields the port.

    A connection is closed when its `handle` returns. At the end of the block those that are left,
    and those that are just coming, are cut off.
    """
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not server.is_serving():
            writer.transport.abort()
            return
        task = asyncio.create_task(handle(reader, writer))
        tasks[task] = writer
        # Also of one that was cancelled before it began.
        task.add_done_callback(lambda _: writer.close())

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in tasks.values():
            cut_off(writer.transport)
        await asyncio.sleep(0)  # The transports' own last step.


def cut_off(transport: asyncio.WriteTransport) -> None:
    """End a connection at once; asyncio itself fails for one that closed after its last flush."""
    if transport.get_extra_info("socket").fileno() >= 0:
        transport.abort()


async def until_one_ends(*pumps: Awaitable[T]) -> list[T]:
    """Run all until one of them ends, and cancel the others; return what those gave that ended."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in ended if task.exception() is None]

"""Ways to a server that cut connections or hold them back; they change none of the bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit


class Way:
    """Passes bytes on. `budget()` is how many of an answer's bytes a connection gets, None for all.

    While it `refuses` no connection is taken, only noted when; `cut` ends those there are.
    """

    def __init__(self, port: int) -> None:
        self.url = ""
        self.cuts = 0
        self.refusals: list[float] = []
        self.refuses = False
        self.budget: Callable[[], int | None] = lambda: None
        self._port = port
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def connections(self) -> int:
        return len(self._connections)

    def cut(self) -> None:
        """End every connection, in the middle of whatever it was about."""
        for writer in self._connections.values():
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(lambda ended: self._connections.pop(ended, None))
        try:
            if self.refuses:
                self.refusals.append(monotonic())
            else:
                await self._pass_on_both_ways(reader, writer)
        finally:
            writer.transport.abort()

    async def _pass_on_both_ways(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return
        pumps = [
            asyncio.create_task(_pass_on(reader, requests, None)),
            asyncio.create_task(_pass_on(answers, writer, self.budget())),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self.cuts += any(pump.done() and pump.result() for pump in pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            requests.transport.abort()

    async def aclose(self) -> None:
        """End every connection and wait for it."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
) -> bool:
    """Pass bytes on to their end; returns whether the budget ended it."""
    try:
        while data := await reader.read(65536 if budget is None else min(65536, budget)):
            writer.write(data)
            await writer.drain()
            if budget is not None:
                budget -= len(data)
                if budget <= 0:
                    return True
    except ConnectionError:
        pass
    return False


@asynccontextmanager
async def way_to(url: str) -> AsyncIterator[Way]:
    """Run a way to the server at a URL until the block ends."""
    way = Way(urlsplit(url).port or 0)
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    way.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield way
    finally:
        server.close()
        await way.aclose()
        await server.wait_closed()


class Narrow:
    """A way to a server that passes on what it answers only while it is `open`."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.open = asyncio.Event()
        self.open.set()
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection's bytes on, both ways, until either side ends it."""
        try:
            await self._pass_on_both_ways(reader, writer)
        finally:
            writer.transport.abort()

    async def _pass_on_both_ways(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._target, limit=4096)

        async def answer() -> None:
            while data := await answers.read(4096):
                await self.open.wait()
                writer.write(data)
                await writer.drain()

        async def ask() -> None:
            while data := await reader.read(4096):
                requests.write(data)
                await requests.drain()

        pumps = [asyncio.create_task(answer()), asyncio.create_task(ask())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            requests.transport.abort()


@asynccontextmanager
async def narrow(url: str) -> AsyncIterator[Narrow]:
    way = Narrow(urlsplit(url).port or 0)
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    async with server:
        yield way

"""Ways to a server that cut connections or hold them back; they change none of the bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit

from tests.tcp import serving, until_one_ends


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
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def connections(self) -> int:
        return len(self._writers)

    def cut(self) -> None:
        """End every connection, in the middle of whatever it was about."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.refuses:
                self.refusals.append(monotonic())
            else:
                await self._pass_on_both_ways(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass_on_both_ways(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return
        try:
            ended = await until_one_ends(
                _pass_on(reader, requests, None), _pass_on(answers, writer, self.budget())
            )
            self.cuts += any(ended)
        finally:
            requests.transport.abort()


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
    async with serving(way.serve) as port:
        way.url = f"http://127.0.0.1:{port}"
        yield way


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

        try:
            await until_one_ends(answer(), ask())
        finally:
            requests.transport.abort()


@asynccontextmanager
async def narrow(url: str) -> AsyncIterator[Narrow]:
    way = Narrow(urlsplit(url).port or 0)
    async with serving(way.serve) as way.port:
        yield way

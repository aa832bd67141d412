"""Readers that do what an EventSource does, many at a time, and keep the ids of what they got."""

import asyncio

import aiohttp

from gateway.protocol.stream_reader import EventStreamParser


class Follower:
    """Follows one URL for ever; `ids` are those of the events in the order they came.

    `parts` has them answer by answer. `ends` counts the ends of slices, `cuts` the bodies that
    were cut off.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.parts: list[list[str]] = []
        self.types: list[str] = []
        self.ends = 0
        self.cuts = 0
        self.last_id = ""
        self._session = session
        self._url = url
        self._retry_seconds = 0.5

    @property
    def ids(self) -> list[str]:
        return [id for part in self.parts for id in part]

    async def run(self, slices: int) -> None:
        """Follow until so many slices came to their end."""
        while self.ends < slices:
            await self._once()
            await asyncio.sleep(self._retry_seconds)

    async def _once(self) -> None:
        parser = EventStreamParser(self.last_id)
        self.parts.append([])
        headers = {"Accept": "text/event-stream"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        try:
            async with self._session.get(self._url, headers=headers, ssl=False) as response:
                assert response.status == 200, await response.text()
                assert response.content_type == "text/event-stream"
                async for chunk in response.content.iter_any():
                    for block in parser.feed(chunk):
                        if block.retry_ms is not None:
                            self._retry_seconds = block.retry_ms / 1000
                        if block.data is None:
                            continue
                        self.last_id = block.id
                        if block.type == "end":
                            self.ends += 1
                        elif block.type == "message":
                            self.parts[-1].append(block.id)
                        self.types.append(block.type)
        except aiohttp.ClientError:
            self.cuts += 1

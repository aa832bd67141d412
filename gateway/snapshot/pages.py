"""Pages of history as bytes, each rendered and compressed once; reads no ring."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from gateway.protocol.event import Event
from gateway.protocol.position import Position
from gateway.protocol.sse import json_data
from gateway.snapshot.variants import Rendering


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a position, `next` the last of them; `gap` when some before them are gone.

    `cursor` stands in the page when the caller waited for it.
    """

    events: Sequence[Event]
    next: Position
    gap: bool
    cursor: int | None = None


class Pages:
    """Rendered pages, the least recently used dropped beyond `limit_bytes`.

    What stands between two events of a channel never changes, so a page's ends name its content.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.renders = 0
        self.variants = 0
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[object, Rendering] = OrderedDict()
        self._sizes: dict[object, int] = {}
        self._size_bytes = 0

    def get(self, channel: str, epoch: str, page: Page) -> Rendering:
        """Return the page's bytes; an empty one is too small to be kept."""
        if not page.events:
            return self._render(epoch, page)
        key = _key(channel, epoch, page)
        rendering = self._kept.get(key)
        if rendering is None:
            rendering = self._kept[key] = self._render(epoch, page)
            self._count(key, rendering)
        else:
            self._kept.move_to_end(key)
        return rendering

    async def variant(
        self, channel: str, page: Page, rendering: Rendering, coding: str, inline_limit_bytes: int
    ) -> bytes:
        """Return the page's body in one content coding."""
        body = await rendering.variant(coding, inline_limit_bytes, self._made)
        key = _key(channel, rendering.epoch, page)
        if self._kept.get(key) is rendering:
            self._count(key, rendering)
        return body

    def _made(self) -> None:
        self.variants += 1

    def _render(self, epoch: str, page: Page) -> Rendering:
        self.renders += 1
        document: dict[str, object] = {
            "events": [_document(event) for event in page.events],
            "next": str(page.next),
            "gap": page.gap,
        }
        if page.cursor is not None:
            document["cursor"] = str(page.cursor)
        return Rendering(orjson.dumps(document), epoch, page.next)

    def _count(self, key: object, rendering: Rendering) -> None:
        size = rendering.size_bytes
        self._size_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        while self._size_bytes > self._limit_bytes and len(self._kept) > 1:
            oldest, _ = self._kept.popitem(last=False)
            self._size_bytes -= self._sizes.pop(oldest)


def _key(channel: str, epoch: str, page: Page) -> object:
    first = page.events[0].id if page.events else page.next
    return channel, epoch, first, page.next, page.gap, page.cursor


def _document(event: Event) -> dict[str, object]:
    document: dict[str, object] = {"id": str(event.id), "channel": event.channel}
    if event.type:
        document["type"] = event.type
    if event.key:
        document["key"] = event.key
    document["data"] = json_data(event)
    return document

"""Many readers in one page, each with a way of its own to the gateway."""

from contextlib import AsyncExitStack
from typing import Any

from playwright.async_api import Page

from tests.clients.faults import Way, way_to
from tests.clients.pages import connected, read

CHANNEL = "plain/crowd"
Crowd = dict[str, Way]


async def follow_each_its_own_way(
    page: Page, url: str, closing: AsyncExitStack, transport: str, count: int, **options: Any
) -> Crowd:
    """Let a page have many readers; to a browser each way is another host."""
    names = [f"{transport} {number}" for number in range(count)]
    crowd = {name: await closing.enter_async_context(way_to(url)) for name in names}
    for name, way in crowd.items():
        await read(page, way.url, CHANNEL, name, transports=[transport], **options)
    for name in crowd:
        await connected(page, name, transport)
    return crowd

"""A state that is read from the store while its channel ends: never true at a wrong position."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from gateway.protocol.position import Position
from tests.clients.model import ABSENT, History, order
from tests.running import Valkey, Worker, until, worker
from tests.web.proxy import RedisProxy, redis_proxy

NAMESPACES = {"namespaces": {"docs": {"reducer": "merge"}}}
READ_STATE = b"\r\nstate\r\n"


@dataclass
class Pair:
    """Two gateways: events go through the first, snapshots come from the second, unused so far."""

    session: aiohttp.ClientSession
    first: Worker
    second: Worker
    to_second: RedisProxy
    history: History

    async def publish(self, data: dict[str, Any]) -> str:
        """Publish a patch."""
        url = f"{self.first.url}/publish/docs/a"
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=json.dumps(data), headers=headers) as response:
            id = str((await response.json())["id"])
        self.history.add(id, "", data)
        return id

    async def delete(self) -> str:
        """Delete the channel."""
        async with self.session.delete(f"{self.first.url}/channels/docs/a") as response:
            id = str((await response.json())["id"])
        self.history.delete(id)
        return id

    async def snapshot(self) -> tuple[str, Any]:
        """Return position and state as the second gateway tells them."""
        async with self.session.get(f"{self.second.url}/snapshots/docs/a") as response:
            document = await response.json(content_type=None)
        assert response.status in (200, 404), document
        return document["id"], document.get("state", ABSENT)

    async def tailed(self, position: str) -> None:
        """Wait until the second gateway has heard of a position."""
        mirror = self.second.gateway.tails["docs"].mirror
        await until(lambda: mirror.tailed >= Position(*order(position)))


@pytest.fixture
async def pair(redis: Valkey, session: aiohttp.ClientSession) -> AsyncIterator[Pair]:
    async with (
        redis_proxy(redis.socket) as proxy,
        worker(redis.url, NAMESPACES) as first,
        worker(proxy.url, NAMESPACES) as second,
    ):
        pair = Pair(session, first, second, proxy, History("merge"))
        await pair.tailed(await pair.publish({"a": 1}))
        yield pair


async def test_a_channel_that_ends_and_begins_again_meanwhile_is_not_unknown(pair: Pair) -> None:
    pair.to_second.hold(READ_STATE)
    asked = asyncio.create_task(pair.snapshot())
    await until(lambda: pair.to_second.seen(READ_STATE))
    await pair.delete()
    last = await pair.publish({"b": 2})
    await pair.tailed(last)
    pair.to_second.release()
    assert await asked == (last, {"b": 2})


async def test_the_end_of_a_channel_is_not_told_before_it_was_tailed(pair: Pair) -> None:
    pair.to_second.hold(b"XREAD")
    await pair.publish({"b": 2})
    end = await pair.delete()
    asked = asyncio.create_task(pair.snapshot())
    await until(lambda: pair.to_second.seen(READ_STATE))
    pair.to_second.release()
    position, state = await asked
    assert state == pair.history.state_at(position)
    assert order(position) >= order(end)

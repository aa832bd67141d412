"""Crowds that long-poll one channel through a cache: one request to the gateway for all of them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp
import orjson
import pytest

from gateway.protocol.event import NewEvent
from tests.edge.running import Edge, nginx, origin_of, varnish
from tests.running import Valkey, Worker, until, worker

READERS = 300
CHANNEL = "board"


@dataclass(slots=True)
class Reader:
    """Follows the channel as docs/http.md says: by `next` and `cursor` of the last answer."""

    address: str
    after: str
    cursor: str = ""
    answers: int = 0
    gaps: int = 0
    data: list[int] = field(default_factory=list)

    async def follow(self, session: aiohttp.ClientSession, edge: Edge, wait: int) -> None:
        """Ask on and on until cancelled."""
        # Each reader has an address of its own: what the edge allows to one is not at stake here.
        headers = {"X-Forwarded-For": self.address, "Accept-Encoding": "gzip"}
        while True:
            path = f"/history/{CHANNEL}?after={self.after}&limit=100&wait={wait}"
            url = edge.url + path + (f"&cursor={self.cursor}" if self.cursor else "")
            async with session.get(url, headers=headers) as response:
                assert response.status == 200, await response.text()
                page = orjson.loads(await response.read())
            self.data += [event["data"] for event in page["events"]]
            self.after, self.cursor = page["next"], page["cursor"]
            self.gaps += page["gap"]
            self.answers += 1


@dataclass(slots=True)
class Crowd:
    """All readers, and what they cost the gateway."""

    worker: Worker
    readers: list[Reader]
    tasks: list[asyncio.Task[None]]

    def requests(self) -> int:
        return self.worker.gateway.requests["/history"]

    async def publish(self, *numbers: int) -> None:
        events = [NewEvent(CHANNEL, b"%d" % number, json=True) for number in numbers]
        await self.worker.gateway.publisher.publish("default", events)

    async def until_all(self, condition: Callable[[Reader], bool]) -> None:
        """Wait until it holds for every reader, none of which has failed."""

        def holds() -> bool:
            for task in self.tasks:
                if task.done():
                    task.result()
            return all(map(condition, self.readers))

        await until(holds, 40)


Join = Callable[[int], Awaitable[Crowd]]


@pytest.fixture(params=["nginx", "varnish"])
async def join(
    request: pytest.FixtureRequest, redis: Valkey, tmp_path: Path
) -> AsyncIterator[Join]:
    """Lets a crowd follow the channel through a real edge, with waits of some seconds."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(worker(redis.url))
        edges = {"nginx": nginx, "varnish": varnish}
        edge = await stack.enter_async_context(
            edges[request.param](tmp_path / "edge", origin_of(gateway.url))
        )
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=60)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=timeout)
        )

        async def join(wait: int) -> Crowd:
            [first] = await gateway.gateway.publisher.publish(
                "default", [NewEvent(CHANNEL, b"0", json=True)]
            )
            readers = [
                Reader(f"10.0.{at // 250}.{at % 250 + 1}", str(first.position))
                for at in range(READERS)
            ]
            tasks = [asyncio.create_task(one.follow(session, edge, wait)) for one in readers]
            stack.push_async_callback(_stop, tasks)
            return Crowd(gateway, readers, tasks)

        yield join


def _has_come_to(number: int, reader: Reader) -> bool:
    return reader.data[-1:] == [number]


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_event_costs_the_gateway_about_one_request_however_many_wait(join: Join) -> None:
    crowd = await join(25)
    await until(lambda: crowd.worker.gateway.arrivals.waiting)
    before = crowd.requests()
    for number in range(1, 11):
        await crowd.publish(number)
        await crowd.until_all(partial(_has_come_to, number))
    one_by_one = crowd.requests() - before
    for number in range(11, 21):
        await crowd.publish(number)
    await crowd.until_all(partial(_has_come_to, 20))
    assert all(reader.data == list(range(1, 21)) for reader in crowd.readers)
    assert not any(reader.gaps for reader in crowd.readers)
    assert one_by_one <= 3 * 10
    assert crowd.requests() - before <= 3 * 20


async def test_a_silent_channel_costs_the_gateway_no_more(join: Join) -> None:
    crowd = await join(1)
    before = crowd.requests()
    await crowd.until_all(lambda reader: reader.answers >= 3)
    # Slow readers may be one answer behind the fast ones.
    rounds = max(reader.answers for reader in crowd.readers)
    assert crowd.requests() - before <= 3 * rounds
    await crowd.publish(1)
    await crowd.until_all(lambda reader: reader.data == [1])
    assert not any(reader.gaps for reader in crowd.readers)


async def test_no_request_passes_the_lock_of_nginx_though_it_counts_in_10_bits(
    redis: Valkey, tmp_path: Path
) -> None:
    readers = 1100
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        worker(redis.url) as gateway,
        nginx(tmp_path, origin_of(gateway.url)) as edge,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        publish = partial(gateway.gateway.publisher.publish, "default")
        [first] = await publish([NewEvent(CHANNEL, b"0", json=True)])
        url = f"{edge.url}/history/{CHANNEL}?after={first.position}&limit=100&wait=25"

        async def ask(number: int) -> bytes:
            headers = {"X-Forwarded-For": f"10.0.{number // 250}.{number % 250 + 1}"}
            async with session.get(url, headers=headers) as response:
                assert response.status == 200
                return await response.read()

        asking = [asyncio.create_task(ask(number)) for number in range(readers)]
        # NGINX has a connection of each before there is anything to answer.
        await until(lambda: _connections(edge) >= readers, 40)
        await until(lambda: gateway.gateway.arrivals.waiting)
        await publish([NewEvent(CHANNEL, b"1", json=True)])
        assert len(set(await asyncio.gather(*asking))) == 1
        assert gateway.gateway.requests["/history"] == 1


def _connections(edge: Edge) -> int:
    """Return how many connections an edge has taken and not answered yet."""
    port = f":{int(edge.url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Established, and nothing of the request left that was not read.
    return sum(
        line[1].endswith(port) and line[3] == "01" and line[4].endswith(":00000000")
        for line in lines
    )

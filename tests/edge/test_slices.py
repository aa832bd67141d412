"""Slices through real edges: shared by Varnish, cached when over, never kept when cut off."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.protocol.cache_control import snapshot_key
from gateway.protocol.position import Position
from tests.clients.serving import Serving
from tests.edge.following import Follower
from tests.edge.running import nginx, origin_of, varnish
from tests.running import Valkey, Worker, free_port, until, worker

SECONDS = 5
SETTINGS: dict[str, Any] = {
    "namespaces": {"default": {"slice_seconds": SECONDS, "stream_codings": ["zstd", "gzip"]}}
}
READERS = 300


@pytest.fixture
async def session() -> Any:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield client


async def publish(session: aiohttp.ClientSession, origin: Worker, data: str) -> str:
    async with session.post(f"{origin.url}/publish/a", data=data.encode()) as answer:
        return str((await answer.json())["id"])


async def now_ms(origin: Worker) -> int:
    life, ms = await origin.gateway.store.seal("default", Position(0, 0))
    return max(life.clock.ms, ms)


async def at_a_beginning(origin: Worker, after: int = -1) -> int:
    """Wait until a slice has just begun, and the epoch is older than it; return its number."""
    life = await origin.gateway.store.greet("default")
    first = life.floor.ms // (SECONDS * 1000)
    async with asyncio.timeout(30):
        while True:
            number, ms = divmod(await now_ms(origin), SECONDS * 1000)
            if number > max(first, after) and ms < 1000:
                return number
            await asyncio.sleep(0.02)


async def test_readers_behind_varnish_share_three_requests_for_three_slices(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url, SETTINGS) as origin, varnish(tmp_path, origin_of(origin.url)) as e:
        await at_a_beginning(origin)
        before = origin.gateway.requests["/slices/current"]
        followers = [Follower(session, f"{e.url}/slices/current/a") for _ in range(READERS)]
        following = [asyncio.create_task(one.run(3)) for one in followers]
        published: list[str] = []
        while not all(one.ends == 3 for one in followers):
            published.append(await publish(session, origin, f"{len(published)}"))
            await asyncio.sleep(0.1)
            assert not any(task.done() and task.exception() for task in following)
        await asyncio.gather(*following)
        assert origin.gateway.requests["/slices/current"] - before == 3
    got = followers[0].ids
    assert all(one.ids == got for one in followers)
    assert not any(one.cuts for one in followers)
    # Everything, once, in order, up to where the last slice ended.
    assert got == published[: len(got)]
    assert len(got) >= len(published) - 5


async def test_purges_of_a_snapshot_leave_its_running_slice_shared(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    origin_port = free_port()
    async with varnish(tmp_path, f"127.0.0.1:{origin_port}") as edge:
        given: dict[str, Any] = {
            "namespaces": {"default": {"slice_seconds": SECONDS, "purge": "varnish"}},
            "purge": {"varnish_urls": [edge.internal_url], "min_interval_ms": 50},
        }
        async with worker(redis.url, given, port=origin_port) as origin:
            purging = origin.gateway.purging
            number = await at_a_beginning(origin)
            epoch = (await origin.gateway.store.greet("default")).epoch
            before = origin.gateway.requests["/slices"]
            url = f"{edge.url}/slices/{epoch}/{number}/a"
            reading, published = [], []
            for _ in range(10):
                reading.append(asyncio.create_task(read(session, url)))
                published.append(await publish(session, origin, "x"))
                await until(lambda: not purging.purgers["default"].pending)
                # As a CDN that is purged by key; VarnishTarget refreshes instead.
                headers = {"xkey-softpurge": snapshot_key("a")}
                async with session.request("PURGE", edge.internal_url, headers=headers) as answer:
                    assert answer.status == 200
            bodies = await asyncio.gather(*reading)
            assert purging.counters.purged >= 2
            assert origin.gateway.requests["/slices"] - before == 1
            [(body, whole)] = set(bodies)
            assert whole
            assert all(id.encode() in body for id in published)


async def test_a_slice_that_was_cut_off_is_kept_by_no_edge(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url, SETTINGS) as origin:
        address = origin_of(origin.url)
        async with nginx(tmp_path / "n", address) as n, varnish(tmp_path / "v", address) as v:
            number = await at_a_beginning(origin)
            epoch = (await origin.gateway.store.greet("default")).epoch
            first = await publish(session, origin, "1")
            path = f"/slices/{epoch}/{number}/a"
            bodies = [asyncio.create_task(read(session, e.url + path)) for e in (n, v)]
            await until(lambda: origin.gateway.slices.readers == 2)
            origin.gateway.slices.drain()
            for body, whole in await asyncio.gather(*bodies):
                assert first.encode() in body
                assert not whole
            # The same slice, now to its end.
            second = await publish(session, origin, "2")
            for body, whole in await asyncio.gather(*[read(session, e.url + path) for e in (n, v)]):
                assert whole
                assert body.index(first.encode()) < body.index(second.encode())
                assert body.endswith(b'event: end\ndata: {"next":%d}\n\n' % (number + 1))


async def read(session: aiohttp.ClientSession, url: str) -> tuple[bytes, bool]:
    """Return a body, and whether it came to its end."""
    body = b""
    async with session.get(url) as response:
        assert response.status == 200
        try:
            async for chunk in response.content.iter_any():
                body += chunk
        except aiohttp.ClientPayloadError:
            return body, False
    return body, True


async def test_a_slice_that_is_over_comes_from_the_cache(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url, SETTINGS) as origin:
        address = origin_of(origin.url)
        async with nginx(tmp_path / "n", address) as n, varnish(tmp_path / "v", address) as v:
            number = await at_a_beginning(origin)
            epoch = (await origin.gateway.store.greet("default")).epoch
            await publish(session, origin, "1")
            await at_a_beginning(origin, number)
            path = f"/slices/{epoch}/{number}/a"
            for edge in (n, v):
                before = origin.gateway.requests["/slices"]
                answers = [await fetch(session, edge.url + path) for _ in range(3)]
                assert [status for status, _ in answers] == ["MISS", "HIT", "HIT"]
                assert len({body for _, body in answers}) == 1
                assert origin.gateway.requests["/slices"] - before == 1


async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[str, bytes]:
    async with session.get(url) as response:
        return response.headers["X-Cache"], await response.read()


async def test_a_killed_origin_is_a_pause(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    seconds = 10
    origin = Serving(tmp_path, {"GATEWAY_NAMESPACES__DEFAULT__SLICE_SECONDS": str(seconds)})
    await origin.start()
    published: list[str] = []

    async def publish_one() -> None:
        async with session.post(f"{origin.url}/publish/a", data=b"1") as answer:
            published.append(str((await answer.json())["id"]))

    await publish_one()
    while Position.parse(published[-1]).ms % (seconds * 1000) > 1000 or len(published) < 5:
        await asyncio.sleep(0.05)
        await publish_one()
    start = Position.parse(published[-1]).ms // (seconds * 1000) * seconds * 1000
    async with varnish(tmp_path / "varnish", origin_of(origin.url)) as edge:
        followers = [Follower(session, f"{edge.url}/slices/current/a") for _ in range(20)]
        following = [asyncio.create_task(one.run(1)) for one in followers]
        await until(lambda: all(published[-1] in one.ids for one in followers))
        await origin.kill()
        await until(lambda: all(one.cuts for one in followers))
        assert all("end" not in one.types for one in followers)
        await origin.start()
        while not all(task.done() for task in following):
            await publish_one()
            await asyncio.sleep(0.1)
        await asyncio.gather(*following)
    await origin.stop()
    ids = [id for id in published if start <= Position.parse(id).ms < start + seconds * 1000]
    for one in followers:
        # Back within the slice it sees its beginning again; after that, everything once, in order.
        assert one.ids[-len(ids) :] == ids
        assert ids[: len(one.ids) - len(ids)] == one.ids[: -len(ids)]

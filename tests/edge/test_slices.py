"""Slices through real edges: shared by Varnish, cached when over, never kept when cut off."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import pytest_asyncio

from gateway.hub.heartbeats import HEARTBEAT
from gateway.protocol.cache_control import snapshot_key
from gateway.protocol.position import Position
from gateway.protocol.slice import boundary
from gateway.protocol.stream_reader import EventStreamParser
from tests.clients.serving import Serving
from tests.edge.following import Follower
from tests.edge.running import nginx, origin_of, publish, varnish
from tests.edge.slicing import (
    SECONDS,
    SETTINGS,
    TwoWorkers,
    at_a_beginning,
    now_ms,
    open_session,
    path_of,
    read,
    two_workers,
    until_reached,
)
from tests.running import Valkey, free_port, until, valkey, worker
from tests.web.together import Begun, begin, together

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Shared(NamedTuple):
    """What all tests of the module use; their gateways, edges and channels are their own."""

    session: aiohttp.ClientSession
    redis: Valkey
    two: TwoWorkers
    directory: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Begun]:
    """The tests of the module, under way."""
    directory = tmp_path_factory.mktemp("slices")
    async with (
        valkey(directory / "valkey") as redis,
        open_session() as session,
        two_workers(redis, directory / "two") as two,
        begin(request, Shared(session, redis, two, directory)) as tests,
    ):
        yield tests


@together
async def test_purges_of_a_snapshot_leave_its_running_slice_shared(shared: Shared) -> None:
    session, origin_port, seconds = shared.session, free_port(), 10
    address, directory = f"127.0.0.1:{origin_port}", shared.directory / "purged"
    async with varnish(directory, address) as edge:
        given: dict[str, Any] = {
            "namespaces": {"purged": {"slice_seconds": seconds, "purge": "varnish"}},
            "purge": {"varnish_urls": [edge.internal_url], "min_interval_ms": 50},
        }
        async with worker(shared.redis.url, given, port=origin_port) as origin:
            purging = origin.gateway.purging
            await until_reached(session, edge)
            number = await at_a_beginning(origin, seconds=seconds)
            before = origin.gateway.requests["/slices"]
            url = edge.url + await path_of(origin, number, "purged/a")
            reading, published = [], []
            for round in range(10):
                # All of it while the slice is young: near its end it is shared no more.
                if round >= 3 and await now_ms(origin) % (seconds * 1000) > seconds * 500:
                    break
                reading.append(asyncio.create_task(read(session, url)))
                published.append(await publish(session, origin, "purged/a", "x"))
                await until(lambda: not purging.purgers["purged"][0].pending)
                # As a CDN that is purged by key; VarnishTarget refreshes instead.
                headers = {"xkey-softpurge": snapshot_key("purged/a")}
                async with session.request("PURGE", edge.internal_url, headers=headers) as answer:
                    assert answer.status == 200
            bodies = await asyncio.gather(*reading)
            assert purging.counters.purged >= 2
            assert origin.gateway.requests["/slices"] - before == 1
            [(body, whole)] = set(bodies)
            assert whole
            assert all(id.encode() in body for id in published)


@together
async def test_a_page_of_a_snapshot_and_slices_costs_the_origin_nothing_more(
    shared: Shared,
) -> None:
    session = shared.session
    kept = {"edge_max_age_seconds": 60, "slice_seconds": SECONDS}
    async with (
        worker(shared.redis.url, {"namespaces": {"default": kept}}) as origin,
        varnish(shared.directory / "page", origin_of(origin.url)) as edge,
    ):
        number = await at_a_beginning(origin)
        begun = await publish(session, origin, "page", "1")

        async def follow() -> tuple[str, list[bytes]]:
            """Return where the snapshot stands, and that slice and the next one."""
            async with session.get(f"{edge.url}/snapshots/page") as answer:
                snapshot = await answer.json()
            at = Position.parse(snapshot["id"]).ms // (SECONDS * 1000)
            path = f"{edge.url}/slices/{snapshot['epoch']}/{{}}/page"
            return snapshot["id"], [(await read(session, path.format(at + n)))[0] for n in (0, 1)]

        pages = [asyncio.create_task(follow()) for _ in range(10)]
        await until(lambda: origin.gateway.slices.readers == 1)
        published = [await publish(session, origin, "page", str(n)) for n in range(5)]
        results = await asyncio.gather(*pages)
        # Whoever comes later, while the snapshot is kept, is led through the same slices.
        results += await asyncio.gather(*[follow() for _ in range(10)])
        asked = origin.gateway.requests
        # Each slice was asked for once as it ran, and once as it was over.
        assert (asked["/snapshots"], asked["/slices"]) == (1, 4)
        results += await asyncio.gather(*[follow() for _ in range(10)])
        assert (asked["/snapshots"], asked["/slices"]) == (1, 4)
        for at, bodies in results:
            assert at == begun
            assert [id in b"".join(bodies).decode() for id in published] == [True] * 5
            assert bodies[0].endswith(b'{"next":%d}\n\n' % (number + 1))
        assert len({tuple(bodies) for _, bodies in results}) == 1


@together
async def test_a_slice_that_was_cut_off_is_kept_by_no_edge(shared: Shared) -> None:
    session, directory = shared.session, shared.directory / "cut"
    async with worker(shared.redis.url, SETTINGS) as origin:
        address = origin_of(origin.url)
        async with (
            nginx(directory / "n", address) as n,
            varnish(directory / "v", address) as v,
        ):
            number = await at_a_beginning(origin)
            first = await publish(session, origin, "cut", "1")
            path = await path_of(origin, number, "cut")
            begun = [bytearray(), bytearray()]
            reading = [
                asyncio.create_task(read(session, edge.url + path, body))
                for edge, body in zip((n, v), begun, strict=True)
            ]
            await until(lambda: all(first.encode() in body for body in begun))
            origin.gateway.slices.drain()
            assert [whole for _, whole in await asyncio.gather(*reading)] == [False, False]
            # The same slice, now to its end.
            second = await publish(session, origin, "cut", "2")
            for body, whole in await asyncio.gather(*[read(session, e.url + path) for e in (n, v)]):
                assert whole
                assert body.index(first.encode()) < body.index(second.encode())
                assert body.endswith(b'event: end\ndata: {"next":%d}\n\n' % (number + 1))


@together
async def test_a_slice_that_is_over_comes_from_the_cache(shared: Shared) -> None:
    session, directory = shared.session, shared.directory / "over"
    async with worker(shared.redis.url, SETTINGS) as origin:
        address = origin_of(origin.url)
        async with (
            nginx(directory / "n", address) as n,
            varnish(directory / "v", address) as v,
        ):
            number = await at_a_beginning(origin)
            await publish(session, origin, "over", "1")
            await at_a_beginning(origin, number)
            path = await path_of(origin, number, "over")
            for edge in (n, v):
                before = origin.gateway.requests["/slices"]
                answers = [await fetch(session, edge.url + path) for _ in range(3)]
                assert [status for status, _ in answers] == ["MISS", "HIT", "HIT"]
                assert len({body for _, body in answers}) == 1
                assert origin.gateway.requests["/slices"] - before == 1


async def fetch(session: aiohttp.ClientSession, url: str) -> tuple[str, bytes]:
    async with session.get(url) as response:
        return response.headers["X-Cache"], await response.read()


@together
async def test_a_killed_origin_is_a_pause(shared: Shared) -> None:
    seconds, directory = 10, shared.directory / "killed"
    directory.mkdir()
    origin = Serving(directory, {"GATEWAY_NAMESPACES__DEFAULT__SLICE_SECONDS": str(seconds)})
    await origin.start()
    try:
        published, followers = await kill_within_a_slice(shared, origin, seconds)
    finally:
        await origin.stop()

    def number(id: str) -> int:
        return Position.parse(id).ms // (seconds * 1000)

    for one in followers:
        *cut_off, whole = [part for part in one.parts if part]
        # The slice that came to its end, the same one or, after a slow start, a later: all of it.
        assert whole == [id for id in published if number(id) == number(one.last_id) - 1]
        # Before that, the beginning of the one that was cut off, once and in order.
        assert cut_off
        for part in cut_off:
            slice_ids = [id for id in published if number(id) == number(part[0])]
            assert part == slice_ids[: len(part)]


async def kill_within_a_slice(
    shared: Shared, origin: Serving, seconds: int
) -> tuple[list[str], list[Follower]]:
    """Have readers follow a slice to its end although its origin is killed and started again.

    Returns the ids that were published, and the readers.
    """
    session, published, length_ms = shared.session, list[str](), seconds * 1000

    async def publish_one() -> int:
        async with session.post(f"{origin.url}/publish/a", data=b"1") as answer:
            published.append(str((await answer.json())["id"]))
        return Position.parse(published[-1]).ms

    async with varnish(shared.directory / "killed-varnish", origin_of(origin.url)) as edge:
        # What an epoch began within is served to nobody who does not name the epoch.
        first = at = await publish_one()
        while at // length_ms == first // length_ms or at % length_ms > 1000:
            await asyncio.sleep(0.05)
            at = await publish_one()
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
    return published, followers


async def publish_by_turns(shared: Shared, channel: str, reading: asyncio.Future[Any]) -> list[str]:
    """Publish through both workers until readers are done; now and then be quiet for a while."""
    published: list[str] = []
    while not reading.done():
        origin = shared.two.workers[len(published) % 2]
        published.append(await publish(shared.session, origin, channel, "x"))
        # Now and then it is quiet for long enough for heartbeats: each worker has its own moments.
        await asyncio.sleep(0.5 if len(published) % 10 == 0 else 0.02)
    return published


def ids_of(body: bytes) -> list[str]:
    """Return the ids of the events of a whole slice."""
    *blocks, end = EventStreamParser().feed(body)
    assert end.type == "end", body[-200:]
    return [block.id for block in blocks if block.data is not None]


@together
async def test_two_workers_write_the_same_bytes_of_slices_that_both_publish_to(
    shared: Shared,
) -> None:
    session, workers = shared.session, shared.two.workers
    number = await at_a_beginning(workers[0])

    async def read_three(url: str) -> list[bytes]:
        paths = [await path_of(workers[0], number + n, "same") for n in range(3)]
        bodies = [await read(session, url + path) for path in paths]
        assert all(whole for _, whole in bodies)
        return [body for body, _ in bodies]

    reading = asyncio.gather(*[read_three(one.url) for one in workers])
    published = await publish_by_turns(shared, "same", reading)
    first, second = await reading
    assert HEARTBEAT in b"".join(first + second)
    whole = [body.replace(HEARTBEAT, b"") for body in first]
    assert whole == [body.replace(HEARTBEAT, b"") for body in second]
    end = boundary(number + 3, SECONDS)
    got = [id for body in whole for id in ids_of(body)]
    assert got == [id for id in published if Position.parse(id) < end]


@together
async def test_a_reader_that_changes_workers_at_each_boundary_gets_each_event_once(
    shared: Shared,
) -> None:
    session, workers = shared.session, shared.two.workers
    number = await at_a_beginning(workers[0])

    async def read_by_turns() -> list[str]:
        got = []
        for n in range(3):
            path = await path_of(workers[0], number + n, "turns")
            body, whole = await read(session, workers[n % 2].url + path)
            assert whole
            got += ids_of(body)
        return got

    reading = asyncio.ensure_future(read_by_turns())
    published = await publish_by_turns(shared, "turns", reading)
    end = boundary(number + 3, SECONDS)
    assert await reading == [id for id in published if Position.parse(id) < end]


@together
async def test_followers_behind_varnish_and_two_workers_get_each_event_once(
    shared: Shared,
) -> None:
    session, (workers, edge) = shared.session, shared.two
    number = await at_a_beginning(workers[0])
    followers = [Follower(session, f"{edge.url}/slices/current/behind") for _ in range(10)]
    following = asyncio.gather(*[one.run(3) for one in followers])
    published = await publish_by_turns(shared, "behind", following)
    await following
    # Three slices were asked for once each, now of one worker and now of the other.
    asked = [one.gateway.requests["/slices/current"] for one in workers]
    assert sorted(asked) == [1, 2]
    end = boundary(number + 3, SECONDS)
    for one in followers:
        assert one.ids == [id for id in published if Position.parse(id) < end]
        assert not one.cuts

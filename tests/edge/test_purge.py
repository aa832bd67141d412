"""Purges with real edges: the new state is there long before the old one's life is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.protocol.position import Position
from gateway.purge.edges import NginxTarget, VarnishTarget
from gateway.purge.request import Requests
from gateway.purge.target import Purge, PurgeFailed
from tests.edge.running import Edge, nginx, origin_of, publish, varnish
from tests.edge.test_codings import WHOLE
from tests.running import Valkey, Worker, free_port, until, worker
from tests.web.proxy import redis_proxy


def settings(kind: str, edge: Edge, **more: Any) -> dict[str, Any]:
    return {
        "namespaces": {"default": {"edge_max_age_seconds": 600, "purge": kind}},
        "purge": {f"{kind}_urls": [edge.internal_url], "min_interval_ms": 50},
        **more,
    }


@asynccontextmanager
async def edge_of(kind: str, directory: Path, port: int) -> AsyncIterator[Edge]:
    """Run an edge before a gateway that will listen on a port."""
    async with (nginx if kind == "nginx" else varnish)(directory, f"127.0.0.1:{port}") as edge:
        yield edge


@asynccontextmanager
async def purged_edge(
    kind: str, directory: Path, redis: Valkey
) -> AsyncIterator[tuple[Edge, Worker]]:
    """Run an edge, and the gateway behind it that purges it."""
    port = free_port()
    async with (
        edge_of(kind, directory, port) as edge,
        worker(redis.url, settings(kind, edge), port=port) as origin,
    ):
        yield edge, origin


async def states(session: aiohttp.ClientSession, edge: Edge) -> dict[str, object]:
    """Return what the edge has in each coding."""
    found = {}
    for coding, unpack in WHOLE.items():
        async with session.get(
            f"{edge.url}/snapshots/a/b", headers={"Accept-Encoding": coding}
        ) as answer:
            body = await answer.read()
            if answer.status == 200:
                assert answer.headers.get("Content-Encoding", "identity") == coding
                found[coding] = orjson.loads(unpack(body))["state"]
            else:
                found[coding] = None
    return found


async def until_all_have(session: aiohttp.ClientSession, edge: Edge, state: str | None) -> None:
    """Wait until the edge has one state in every coding; None for no state."""
    async with asyncio.timeout(20):
        while set((await states(session, edge)).values()) != {state}:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_an_edge_has_the_new_state_in_every_coding_long_before_the_old_one_ends(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    async with purged_edge(kind, tmp_path, redis) as (edge, origin):
        for state in ("1", "2", "3"):
            await publish(session, origin, "a/b", state)
            await until_all_have(session, edge, state)
            # What is there now stays there, from the cache.
            await until(lambda: not origin.gateway.purging.purgers["default"][0].pending)
            async with asyncio.timeout(20):
                before = -1
                while origin.gateway.requests["/snapshots"] != before:
                    before = origin.gateway.requests["/snapshots"]
                    # What was purged softly is fetched behind its readers' backs.
                    for _ in range(5):
                        await states(session, edge)
        async with session.delete(f"{origin.url}/channels/a/b") as answer:
            assert answer.status == 200
        await until_all_have(session, edge, None)


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_a_worker_that_is_behind_cannot_put_the_old_state_back(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    port = free_port()
    async with redis_proxy(redis.socket) as proxy, edge_of(kind, tmp_path, port) as edge:
        given = settings(kind, edge)
        # The edge asks the one that is behind; the other takes what is published, and purges.
        alone = {"namespaces": {"default": {"edge_max_age_seconds": 600}}}
        async with (
            worker(redis.url, given) as ahead,
            worker(proxy.url, {**alone, "snapshots": {"wait_seconds": 0.3}}, port=port) as behind,
        ):
            await publish(session, ahead, "a/b", "old")
            await until(lambda: not ahead.gateway.purging.purgers["default"][0].pending)
            await until_all_have(session, edge, "old")
            proxy.hold(b"XREAD")
            await publish(session, ahead, "a/b", "new")
            # It waits, says that it is behind, and is asked again: nothing old is taken for new.
            await until(lambda: ahead.gateway.purging.counters.failures >= 2)
            assert set((await states(session, edge)).values()) == {"old"}
            proxy.release()
            await until_all_have(session, edge, "new")
            await until(lambda: not ahead.gateway.purging.purgers["default"][0].pending)
            assert behind.gateway.requests["/snapshots"]
            assert set((await states(session, edge)).values()) == {"new"}


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_nothing_of_another_epoch_is_left_at_an_edge_after_the_store_was_flushed(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    async with (
        purged_edge(kind, tmp_path, redis) as (edge, origin),
        redis.client() as store,
    ):
        await publish(session, origin, "a/b", "old")
        await until_all_have(session, edge, "old")
        await store.flushall()
        await until_all_have(session, edge, None)
        await publish(session, origin, "a/b", "new")
        await until_all_have(session, edge, "new")


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_an_address_that_refreshes_nothing_is_a_failure_and_harms_no_other_edge(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    port = free_port()
    async with edge_of(kind, tmp_path, port) as edge:
        given = settings(kind, edge)
        # That of the readers, at which nobody may refresh, and one where nobody is.
        wrong = [edge.url, f"http://127.0.0.1:{free_port()}"]
        given["purge"][f"{kind}_urls"] = [*wrong, edge.internal_url]
        async with worker(redis.url, given, port=port) as origin:
            *failing, working = origin.gateway.purging.purgers["default"]
            await publish(session, origin, "a/b", "1")
            await until(lambda: not working.pending)
            # Kept, and old from now on.
            assert set((await states(session, edge)).values()) == {"1"}
            for state in ("2", "3"):
                await publish(session, origin, "a/b", state)
                await until_all_have(session, edge, state)
            await until(lambda: failing[1].breaker.failures >= 3)
            assert not working.breaker.failures
            assert origin.gateway.purging.counters.failures >= 3


async def test_an_old_answer_is_not_taken_for_a_refreshed_one(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a/b", "1")
        requests = Requests(5.0)
        target = NginxTarget(requests, edge.url, "")
        ahead = Purge("a/b", Position(2**52, 0))
        with pytest.raises(PurgeFailed, match="is this the internal address"):
            await target.purge("default", [ahead])
        with pytest.raises(PurgeFailed, match="is this the internal address"):
            await NginxTarget(requests, f"{edge.url}/elsewhere", "").purge("default", [ahead])
        await requests.aclose()


async def test_what_changed_while_nobody_purged_is_new_at_the_edge_soon_after_the_start(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    port = free_port()
    async with nginx(tmp_path, f"127.0.0.1:{port}") as edge:
        given = settings("nginx", edge)
        async with worker(redis.url, given, port=port) as first:
            await publish(session, first, "a/b", "old")
            await until_all_have(session, edge, "old")
        async with worker(redis.url) as alone:
            await publish(session, alone, "a/b", "new")
        assert set((await states(session, edge)).values()) == {"old"}
        async with worker(redis.url, given, port=port):
            await until_all_have(session, edge, "new")


async def test_varnish_drops_what_it_has_of_many_channels_with_long_names(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    port = free_port()
    # Longer ones have a hash for a key.
    names = [f"{number:0>120}" for number in range(VarnishTarget.batch_limit)]
    lines = b"".join(orjson.dumps({"channel": name, "data": 1}) + b"\n" for name in names)

    async def status(edge: Edge, name: str, after: str) -> int:
        async with session.get(f"{edge.url}/history/{name}?after={after}&limit=1") as answer:
            return answer.status

    async with worker(redis.url, port=port) as own, varnish(tmp_path, f"127.0.0.1:{port}") as edge:
        async with session.post(f"{own.url}/publish/first", data=b"1") as answer:
            first = (await answer.json())["id"]
        ndjson = {"Content-Type": "application/x-ndjson"}
        async with session.post(f"{own.url}/publish", data=lines, headers=ndjson) as answer:
            assert answer.status == 200
        await until(lambda: len(own.gateway.tails["default"].mirror.index) > len(names))
        assert {await status(edge, name, first) for name in names} == {200}
        purges = []
        for name in names:
            async with session.delete(f"{own.url}/channels/{name}") as answer:
                purges.append(Purge(name, Position.parse((await answer.json())["id"]), ended=True))
        # Kept: a full page can change no more.
        assert {await status(edge, name, first) for name in names} == {200}
        requests = Requests(20.0)
        await VarnishTarget(requests, edge.internal_url, "").purge("default", purges)
        await requests.aclose()
        assert {await status(edge, name, first) for name in names} == {404}

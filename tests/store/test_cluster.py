"""A real cluster: a namespace is one slot, found and followed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from gateway.protocol.errors import StoreUnavailable
from gateway.protocol.position import ORIGIN
from gateway.store.redis import RedisStore
from tests.running import Valkey, free_port, valkey
from tests.store.opening import DEFAULT, KEYED, new, open_store, publish, read_ring, read_state

SLOT = key_slot(b"sg:{default}:meta")


@asynccontextmanager
async def node(directory: Path) -> AsyncIterator[Valkey]:
    options = (
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        str(free_port()),
        "--bind",
        "127.0.0.1",
    )
    async with valkey(directory, *options, port=free_port()) as server:
        yield server


async def command(server: Valkey, *words: object) -> Any:
    async with server.client() as client:
        return await client.execute_command(*map(str, words))


async def settled(*servers: Valkey) -> None:
    """Wait until each of the nodes knows all of them and serves."""
    async with asyncio.timeout(20):
        for server in servers:
            info = b""
            while not (
                b"cluster_state:ok" in info and b"cluster_known_nodes:%d" % len(servers) in info
            ):
                await asyncio.sleep(0.01)
                info = await command(server, "CLUSTER", "INFO")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Valkey]:
    """A cluster of one node."""
    async with node(tmp_path / "one") as server:
        await command(server, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await settled(server)
        yield server


def url(server: Valkey) -> str:
    return f"redis+cluster://127.0.0.1:{server.port}"


async def use(store: RedisStore) -> None:
    """Do everything once."""
    await store.check()
    first = await publish(store, new("a"), new("b"))
    assert [entry.event.id for entry in await store.read_bus("default", ORIGIN, 10, 1)] == first
    await publish(store, new("keyed/a", key="k"), new("keyed/b", key="k"), namespace="keyed")
    assert await store.ring_lengths("keyed", ["keyed/a", "keyed/b"]) == [1, 1]
    assert (await read_state(store, "keyed/a", "keyed"))[b"kk"] == b"j1"
    await store.delete("default", "b")
    assert {name async for name, _ in store.scan_index("default")} == {"a", "b"}
    assert await store.sweep("default", ["b"]) == 1


async def test_a_store_works_on_a_cluster_whose_node_restarts(cluster: Valkey) -> None:
    async with open_store(url(cluster), DEFAULT, KEYED) as store:
        await use(store)
        answers = await asyncio.gather(*(publish(store, new("a")) for _ in range(50)))
        last = max(answers)[0]
        assert len(await read_ring(store, "a")) == 51
        # The keys of a namespace are one slot's, and nothing else is there.
        slots = {key_slot(name) for name in (b"{default}", b"{keyed}")}
        counts = [await command(cluster, "CLUSTER", "COUNTKEYSINSLOT", slot) for slot in slots]
        assert len(counts) == 2
        assert sum(counts) == await command(cluster, "DBSIZE")
        # A restart is a cut, as everywhere.
        await cluster.restart()
        await settled(cluster)
        assert (await publish(store, new("a")))[0] > last
        assert [cut.recovered for cut in (await store.greet("default")).cuts] == [last]


async def test_a_slot_that_nobody_serves_is_unavailable_until_somebody_does(
    cluster: Valkey,
) -> None:
    async with open_store(url(cluster)) as store:
        await publish(store, new("a"))
        await command(cluster, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        await command(cluster, "CLUSTER", "DELSLOTS", SLOT)
        with pytest.raises(StoreUnavailable):
            await publish(store, new("a", "2"))
        with pytest.raises(StoreUnavailable):
            await publish(store, new("a", "2"))
        await command(cluster, "CLUSTER", "ADDSLOTS", SLOT)
        await publish(store, new("a", "3"))
        assert [event.data for event in await read_ring(store, "a")] == [b"1", b"3"]


async def test_a_namespace_is_followed_to_the_node_that_its_slot_moved_to(
    cluster: Valkey, tmp_path: Path
) -> None:
    async with node(tmp_path / "two") as other, open_store(url(cluster)) as store:
        first = (await publish(store, new("a")))[0]
        bus_port = (await command(other, "CONFIG", "GET", "cluster-port"))[1]
        await command(cluster, "CLUSTER", "MEET", "127.0.0.1", other.port, bus_port.decode())
        await settled(cluster, other)
        ids = [(await command(each, "CLUSTER", "MYID")).decode() for each in (cluster, other)]
        await command(other, "CLUSTER", "SETSLOT", SLOT, "IMPORTING", ids[0])
        await command(cluster, "CLUSTER", "SETSLOT", SLOT, "MIGRATING", ids[1])
        names = await command(cluster, "CLUSTER", "GETKEYSINSLOT", SLOT, 100)
        await command(
            cluster, "MIGRATE", "127.0.0.1", other.port, "", 0, 5000, "KEYS",
            *(name.decode() for name in names),
        )  # fmt: skip
        for each in (other, cluster):
            await command(each, "CLUSTER", "SETSLOT", SLOT, "NODE", ids[1])
        second = (await publish(store, new("a", "2")))[0]
        assert second > first
        assert [event.id for event in await read_ring(store, "a")] == [first, second]
        life = await store.greet("default")
        # Another server: what it has may be older than what the first one gave out.
        assert [cut.recovered for cut in life.cuts] == [first]
        assert await command(other, "DBSIZE") > 0
        assert await command(cluster, "DBSIZE") == 0
        # A blocking read finds the way, too, and the node of the URL is needed no more.
        bus = await store.read_bus("default", first, 10, 1)
        assert [entry.event.id for entry in bus] == [second]

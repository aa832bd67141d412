"""A real sentinel: it names the master, and after a failover another one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.protocol.errors import StoreUnavailable
from gateway.store.connection import ConnectionOptions
from gateway.store.server_process import find_binary
from tests.running import Valkey, free_port, kill, valkey
from tests.store.opening import new, open_store, publish, read_ring

CONFIG = """\
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor main 127.0.0.1 {master} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 3000
"""
LOOPBACK = ("--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")


@asynccontextmanager
async def sentinel(directory: Path, master: Valkey) -> AsyncIterator["Redis"]:
    """Run a sentinel of one master; yields a client of it."""
    directory.mkdir()
    port = free_port()
    config = directory / "sentinel.conf"
    config.write_text(CONFIG.format(port=port, directory=directory, master=master.port))
    process = await asyncio.create_subprocess_exec(
        str(find_binary()), str(config), "--sentinel",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    client = Redis(host="127.0.0.1", port=port, protocol=2)
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "100")
                    await client.execute_command("SENTINEL", "DEBUG", "PING-PERIOD", "100")
                    # How long it does nothing after a time in which it did not run (30 s).
                    await client.execute_command("SENTINEL", "DEBUG", "TILT-PERIOD", "100")
                    break
                except Exception:
                    await asyncio.sleep(0.01)
        yield client
    finally:
        await client.aclose()
        kill(process.pid)
        await process.wait()


def url(client: "Redis", *others: int) -> str:
    own = client.connection_pool.connection_kwargs["port"]
    hosts = ",".join(f"127.0.0.1:{port}" for port in (*others, own))
    return f"redis+sentinel://{hosts}/main"


@pytest.fixture
async def master(tmp_path: Path) -> AsyncIterator[Valkey]:
    async with valkey(tmp_path / "one", *LOOPBACK, port=free_port()) as server:
        yield server


async def test_a_store_works_on_the_master_that_a_sentinel_names(
    master: Valkey, tmp_path: Path
) -> None:
    options = ConnectionOptions(connections_limit=4)
    async with sentinel(tmp_path / "sentinel", master) as client:
        # The first of the sentinels is down.
        async with open_store(url(client, free_port()), options=options) as store:
            await store.check()
            await asyncio.gather(*(publish(store, new("a")) for _ in range(100)))
            assert len(await read_ring(store, "a")) == 100
        async with open_store(url(client).replace("main", "other")) as store:
            with pytest.raises(StoreUnavailable, match="No master found for 'other'"):
                await store.check()


async def test_after_a_failover_positions_go_on_behind_a_cut(
    master: Valkey, tmp_path: Path
) -> None:
    replica = ("--replicaof", f"127.0.0.1 {master.port}")
    async with (
        valkey(tmp_path / "two", *LOOPBACK, *replica, port=free_port()) as other,
        sentinel(tmp_path / "sentinel", master) as client,
        open_store(url(client)) as store,
    ):
        await store.check()
        first = (await publish(store, new("a")))[0]
        async with asyncio.timeout(10), other.client() as connected:
            while not await connected.exists("sg:{default}:ring:a"):
                await asyncio.sleep(0.01)
            while not await client.execute_command("SENTINEL", "REPLICAS", "main"):
                await asyncio.sleep(0.01)
        await master.stop(9)
        failures = 0
        async with asyncio.timeout(15):
            while True:
                try:
                    second = (await publish(store, new("a", "2")))[0]
                    break
                except StoreUnavailable:
                    failures += 1
                    await asyncio.sleep(0.05)
        assert failures
        assert second > first
        async with open_store(other.url) as direct:
            assert [event.id for event in await read_ring(direct, "a")] == [first, second]
            assert [cut.recovered for cut in (await direct.greet("default")).cuts] == [first]

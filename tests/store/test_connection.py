"""Connections: never a blind retry, run ids of their own, and clear words when there is none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.protocol.errors import OutcomeUnknown, StoreRefused, StoreUnavailable
from gateway.store.connection import ConnectionOptions, open_server
from gateway.store.redis import PublishCall, StoreLimits
from tests.running import Valkey, free_port, valkey
from tests.store.cutting import cutting_proxy
from tests.store.opening import (
    MERGED,
    calls,
    new,
    open_publisher,
    open_store,
    publish,
    read_ring,
    read_state,
)
from tests.tcp import serving

QUICK = StoreLimits(command_timeout_seconds=0.3)


async def test_a_publish_whose_reply_is_lost_is_stored_once_and_its_outcome_unknown(
    redis: Valkey,
) -> None:
    async with cutting_proxy(redis.socket) as proxy, open_store(proxy.url) as store:
        await publish(store, new("a"))
        call = PublishCall([new("a", "2", idempotency_key="t")])
        proxy.cut_after(b"EVALSHA")
        with pytest.raises(OutcomeUnknown):
            await store.publish("default", call)
        assert proxy.sent(b"EVALSHA") == 1
        ring = await read_ring(store, "a")
        assert [event.data for event in ring] == [b"1", b"2"]
        # The same key tells where it stands.
        again = await store.publish("default", call)
        assert again == [(ring[-1].id, True)]
        assert len(await read_ring(store, "a")) == 2
        assert store.errors == 1


async def test_a_client_as_redis_py_makes_it_runs_such_a_command_twice(redis: Valkey) -> None:
    async with (
        cutting_proxy(redis.socket) as proxy,
        Redis(port=int(proxy.url.rpartition(":")[2]), protocol=2) as client,
    ):
        await client.ping()
        proxy.cut_after(b"INCR")
        assert await client.incr("n") == 2
        assert proxy.sent(b"INCR") == 2


async def test_a_merge_whose_reply_is_lost_is_folded_once(redis: Valkey) -> None:
    async with (
        cutting_proxy(redis.socket) as proxy,
        open_publisher(proxy.url, MERGED) as publisher,
        open_store(redis.url, MERGED) as store,
    ):
        await publisher.publish("merged", [new("merged/a", "{}")])
        event = new("merged/a", '{"secret-word":1}', idempotency_key="t")
        proxy.cut_after(b"secret-word")
        with pytest.raises(OutcomeUnknown):
            await publisher.publish("merged", [event])
        assert proxy.sent(b"secret-word") == 1
        assert (await publisher.publish("merged", [event]))[0].replayed
        assert len(await read_ring(store, "merged/a", "merged")) == 2
        assert await read_state(store, "merged/a", "merged") == {b"v": b'j{"secret-word":1}'}


async def test_a_server_that_does_not_answer_in_time_leaves_the_outcome_unknown(
    redis: Valkey,
) -> None:
    async with open_store(redis.url, limits=QUICK) as store:
        await publish(store, new("a"))
        async with redis.client() as client:
            await client.execute_command("CLIENT", "PAUSE", "700", "ALL")
            with pytest.raises(OutcomeUnknown):
                await publish(store, new("a", "2"))
            await client.ping()  # Answered when the pause is over.
        # The connection was not used again: its answer would have been taken for another's.
        await publish(store, new("a", "3"))
        assert (await read_ring(store, "a"))[-1].data == b"3"


async def test_scripts_are_sent_again_to_a_server_that_forgot_them(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await publish(store, new("a"))
        async with redis.client() as client:
            await client.script_flush()
        before = await calls(redis)
        await publish(store, new("a", "2"))
        await publish(store, new("a", "3"))
        # Refused as unknown, sent whole, known.
        assert await calls(redis) - before == 3
        assert [event.data for event in await read_ring(store, "a")] == [b"1", b"2", b"3"]


async def test_every_connection_learns_the_servers_new_run_after_a_restart(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await store.check()

        async def publish_at_once() -> list[int]:
            answers = await asyncio.gather(*(publish(store, new("a")) for _ in range(20)))
            return [position.ms for answer in answers for position in answer]

        before = await publish_at_once()
        async with redis.client() as client:
            assert len(await client.client_list()) > 10
        await redis.restart()
        after = await publish_at_once()
        assert max(before) < min(after)
        assert len(await read_ring(store, "a")) == 40
        life = await store.greet("default")
        assert len(life.cuts) == 1
        await redis.restart()
        await publish_at_once()
        assert len((await store.greet("default")).cuts) == 2


async def test_connections_are_bounded_and_whoever_finds_none_free_waits(redis: Valkey) -> None:
    options = ConnectionOptions(connections_limit=3)
    async with open_store(redis.url, options=options) as store:
        await asyncio.gather(*(publish(store, new("a")) for _ in range(200)))
        assert len(await read_ring(store, "a")) == 200
        async with redis.client() as client:
            assert len(await client.client_list()) <= 4


async def test_a_cancelled_command_leaves_no_answer_for_the_next_one(redis: Valkey) -> None:
    async with open_store(redis.url, options=ConnectionOptions(connections_limit=1)) as store:
        await publish(store, new("a"))
        waiting = asyncio.create_task(
            store.read_bus("default", (await store.greet("default")).last, 10, 60_000)
        )
        async with redis.client() as client:
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await publish(store, new("a", "2"))
        assert [event.data for event in await read_ring(store, "a")] == [b"1", b"2"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "redis",
        "valkey://127.0.0.1",
        "redis+ring://127.0.0.1",
        "unix+cluster:///tmp/x",
        "redis://127.0.0.1:port",
        "redis://127.0.0.1:1/?socket_timeout=soon",
        "redis+cluster://127.0.0.1:port",
        "redis+sentinel://127.0.0.1:26379",
        "redis+sentinel://127.0.0.1:port/main",
        "redis+sentinel://127.0.0.1/main?db=first",
    ],
)
def test_a_wrong_url_is_refused_in_one_line_that_quotes_it(url: str) -> None:
    with pytest.raises(StoreRefused) as caught:
        open_server(url, ConnectionOptions())
    said = str(caught.value)
    assert said.startswith(f"redis = {url.partition('?')[0]}")
    assert "\n" not in said
    assert not said.endswith(": ")


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@127.0.0.1",
        "redis://:s3cret/x@127.0.0.1:6379",
        "redis://:s3cret#x@127.0.0.1:6379",
        "redis://user:s3cret@127.0.0.1:port",
        "redis://127.0.0.1:port?password=s3cret",
        "redis+cluster://user:s3cret@127.0.0.1:port",
        "redis+sentinel://user:s3cret@127.0.0.1:26379",
        "redis+sentinel://user:s3cret@127.0.0.1:port/main",
    ],
)
def test_a_refused_url_is_quoted_without_its_password(url: str) -> None:
    with pytest.raises(StoreRefused) as caught:
        open_server(url, ConnectionOptions())
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert "127.0.0.1" in str(caught.value)


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[int]:
    """Listen on a port, and answer whoever sends something with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(answer)

    async with serving(serve) as port:
        yield port


async def failure(url: str, seconds: float = 10.0) -> str:
    options = ConnectionOptions(connect_timeout_seconds=seconds)
    limits = StoreLimits(command_timeout_seconds=seconds)
    async with open_store(url, limits=limits, options=options) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.check()
        assert not isinstance(caught.value, OutcomeUnknown)
        assert store.errors == 1
    said = str(caught.value)
    assert said.startswith("redis: ")
    assert len(said) > len("redis: ")
    assert "s3cret" not in said
    return said


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@127.0.0.1:{port}",
        "redis+cluster://user:s3cret@127.0.0.1:{port}",
        "redis+sentinel://user:s3cret@127.0.0.1:{port}/main",
    ],
)
async def test_a_server_that_is_down_is_named(url: str) -> None:
    port = free_port()
    assert str(port) in await failure(url.format(port=port))


async def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nothing.sock" in await failure(f"unix://{tmp_path}/nothing.sock")


async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    async with listening(b"") as port, asyncio.timeout(20):
        await failure(f"redis://127.0.0.1:{port}", 0.3)
        await failure(f"redis+cluster://127.0.0.1:{port}", 0.3)
        await failure(f"redis+sentinel://127.0.0.1:{port}/main", 0.3)


async def test_a_server_that_is_no_redis_is_no_store() -> None:
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        await failure(f"redis://127.0.0.1:{port}")


async def test_a_wrong_password_is_said_but_not_shown(tmp_path: Path) -> None:
    port = free_port()
    async with valkey(tmp_path / "valkey", port=port) as server:
        async with server.client() as client:
            await client.execute_command("ACL", "SETUSER", "gate", "on", ">p@ss/w", "~*", "+@all")
            await client.execute_command("ACL", "SETUSER", "reader", "on", ">r", "~*", "+info")
        said = await failure(f"redis://gate:s3cret@127.0.0.1:{port}")
        assert "password" in said
        assert "evalsha" in await failure(f"redis://reader:r@127.0.0.1:{port}")
        # Percent-encoded, any password can stand in the URL.
        async with open_store(f"redis://gate:p%40ss%2Fw@127.0.0.1:{port}") as store:
            await store.check()
            await publish(store, new("a"))


async def test_a_pool_without_a_free_connection_is_given_up_in_time(redis: Valkey) -> None:
    options = ConnectionOptions(connections_limit=1)
    async with open_store(redis.url, limits=QUICK, options=options) as store:
        life = await store.greet("default")
        tail = asyncio.create_task(store.read_bus("default", life.last, 10, 60_000))
        async with redis.client() as client:
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0.001)
        with pytest.raises(StoreUnavailable) as caught:
            await publish(store, new("a"))
        # It was never sent.
        assert not isinstance(caught.value, OutcomeUnknown)
        tail.cancel()
        await asyncio.gather(tail, return_exceptions=True)
        assert await read_ring(store, "a") == []
        await publish(store, new("a")._replace(data=b"2"))

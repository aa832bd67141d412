"""Snapshots are read once, rendered once a position, made once a coding, and bounded."""

import asyncio
import gzip
import threading
import time
from functools import partial

import orjson
import pytest

from gateway.protocol.coding import compress
from gateway.protocol.position import Position
from gateway.snapshot import cache, variants
from tests.running import Valkey, until
from tests.web.client import Client
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy

LARGE = orjson.dumps({"text": "x y z " * 10_000})


class Compressions:
    """Calls the real `compress` and remembers the coding and the thread of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, threading.Thread]] = []

    def __call__(self, coding: str, body: bytes) -> bytes:
        self.calls.append((coding, threading.current_thread()))
        return compress(coding, body)


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> Compressions:
    seen = Compressions()
    monkeypatch.setattr(variants, "compress", seen)
    return seen


@pytest.mark.parametrize(("data", "crowd"), [(b'{"n":1}', 40), (LARGE, 200)])
async def test_a_crowd_costs_one_read_one_rendering_and_one_variant_of_each_coding(
    start: Start, compressions: Compressions, data: bytes, crowd: int
) -> None:
    client = await start()
    counters = client.gateway.snapshots.counters
    codings = ("gzip", "br", "zstd", "identity")
    for loads in (0, 1):
        await client.publish("a", data)  # The second is folded: nothing is read again.
        await client.settle()
        answers = await asyncio.gather(
            *(client.get("/snapshots/a", {"Accept-Encoding": codings[n % 4]}) for n in range(crowd))
        )
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 4
        assert len({answer.headers["ETag"] for answer in answers}) == 4
        assert counters.loads == 1
        assert counters.renders == loads + 1
        assert counters.hits == (loads + 1) * (crowd - 1)
        assert counters.variants == (loads + 1) * 3
        assert sorted(coding for coding, _ in compressions.calls) == sorted(
            codings[:3] * (loads + 1)
        )


async def test_only_large_variants_leave_the_loop(start: Start, compressions: Compressions) -> None:
    client = await start({"snapshots": {"inline_compression_limit_bytes": 1000}})
    for data, on_loop in ((b"1", True), (b"x" * 2000, False)):
        compressions.calls.clear()
        position = await client.publish("a", data)
        answer = await client.get(f"/snapshots/a?min={position}", {"Accept-Encoding": "gzip"})
        assert orjson.loads(gzip.decompress(answer.body))["state"] == data.decode()
        [(_, thread)] = compressions.calls
        assert (thread is threading.main_thread()) is on_loop


def requests_handled() -> int:
    """Return how many requests the servers of this process have under way."""
    coros = (task.get_coro() for task in asyncio.all_tasks())
    return sum(getattr(c, "__qualname__", "") == "RequestHandler._handle_request" for c in coros)


async def test_a_reader_that_leaves_takes_nobody_elses_snapshot_along(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        client = await start(None, proxy.url)
        await client.publish_lines([{"channel": name, "data": "1"} for name in ("a", "other")])
        await client.settle()
        await client.get("/snapshots/other")  # From here the server knows the script.
        proxy.hold(b"EVALSHA")
        first = asyncio.create_task(client.get("/snapshots/a"))
        await until(lambda: proxy.seen(b"state:a"))
        second = asyncio.create_task(client.get("/snapshots/a"))
        await until(lambda: requests_handled() == 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await until(lambda: requests_handled() == 1)
        proxy.release()
        assert (await second).json["state"] == "1"
        # Asked for once: a client that was dropped would have come again.
        assert proxy.seen(b"state:a") == 1


async def test_events_that_come_while_the_state_is_read_fold_once(
    start: Start, redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BEHIND_SECONDS", 20.0)
    async with redis_proxy(redis.socket) as proxy:
        publisher = await start({"namespaces": {"n": {"reducer": "keyed"}}})
        client = await start({"namespaces": {"n": {"reducer": "keyed"}}}, proxy.url)
        await publisher.publish("n/a", b"1", "?key=a")
        await client.settle()
        proxy.hold(b"state:n/a")
        reading = asyncio.create_task(client.get("/snapshots/n/a"))
        await until(lambda: proxy.seen(b"state:n/a"))
        before = client.gateway.tails["n"].events
        for key in "abc":
            await publisher.publish("n/a", b"2", f"?key={key}")
        last = await publisher.publish("n/a", b"", "?key=b")
        await until(lambda: client.gateway.tails["n"].events == before + 4)
        proxy.release()
        answer = await reading
        assert answer.json["id"] == last
        assert answer.json["state"] == {"a": "2", "c": "2"}


async def test_a_channel_that_ends_while_its_state_is_read_is_unknown(
    start: Start, redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BEHIND_SECONDS", 20.0)
    async with redis_proxy(redis.socket) as proxy:
        publisher, client = await start(), await start(None, proxy.url)
        await publisher.publish("a", b"1")
        await client.settle()
        proxy.hold(b"state:a")
        reading = asyncio.create_task(client.get("/snapshots/a"))
        await until(lambda: proxy.seen(b"state:a"))
        await publisher.ask("DELETE", "/channels/a")
        mirror = client.gateway.tails["default"].mirror
        await until(lambda: not mirror.exists("a"))
        proxy.release()
        assert (await reading).status == 404


async def test_a_store_that_was_emptied_while_a_state_is_read_leaves_no_trace_of_it(
    start: Start, redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BEHIND_SECONDS", 20.0)
    async with redis_proxy(redis.socket) as proxy:
        publisher, client = await start(), await start(None, proxy.url)
        old = await publisher.publish("a", b"old")
        await client.settle()
        proxy.hold(b"state:a")
        reading = asyncio.create_task(client.get("/snapshots/a"))
        await until(lambda: proxy.seen(b"state:a"))
        restarts = client.gateway.tails["default"].mirror.restarts
        async with redis.client() as store:
            await store.flushall()
        await until(lambda: client.gateway.tails["default"].mirror.restarts > restarts)
        proxy.release()
        answer = await reading
        assert answer.status == 404
        position = await publisher.publish("a", b"new")
        answer = await client.get(f"/snapshots/a?min={position}")
        assert answer.json["state"] == "new"
        assert old not in answer.body.decode()


async def test_a_worker_that_has_not_noticed_another_history_reads_no_state_of_it(
    start: Start, redis: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        publisher, client = await start(), await start(None, proxy.url)
        await publisher.publish("a", b"old")
        await client.settle()
        proxy.hold(b"XREAD")
        async with redis.client() as store:
            await store.flushall()
        await publisher.publish("a", b"new")
        monkeypatch.setattr(cache, "_BEHIND_SECONDS", 0.1)
        behind = await client.get("/snapshots/a")
        monkeypatch.setattr(cache, "_BEHIND_SECONDS", 20.0)
        assert behind.status == 503
        assert "behind" in behind.problem["detail"]
        proxy.release()
        mirror = client.gateway.tails["default"].mirror
        await until(lambda: mirror.restarts > 1 and mirror.exists("a"))
        assert (await client.get("/snapshots/a")).json["state"] == "new"


async def test_the_least_recently_used_states_are_dropped_beyond_the_limit(start: Start) -> None:
    limit = 50_000
    client = await start({"snapshots": {"cache_limit_bytes": limit}})
    counters = client.gateway.snapshots.counters
    for n in range(10):
        await client.publish(f"c{n}", b"x" * 10_000)
    await client.settle()

    async def get(name: str) -> int:
        """Return how many states were read from the store for one answer."""
        before = counters.loads
        assert (await client.get(f"/snapshots/{name}", {"Accept-Encoding": "br"})).status == 200
        assert kept_bytes(client) <= limit
        return counters.loads - before

    assert [await get(f"c{n}") for n in (0, 1, 0)] == [1, 1, 0]
    assert await get("c2") == 1  # c1 was used least recently, and goes.
    assert await get("c0") == 0
    assert await get("c1") == 1
    for n in range(10):
        await get(f"c{n}")
    # What the tail folds counts too.
    await client.publish("c9", b"y" * 30_000)
    await client.settle()
    assert kept_bytes(client) <= limit
    # One that is larger than everything is still served, and drops the others.
    await client.publish("huge", b"x" * 60_000)
    await client.settle()
    assert (await client.get("/snapshots/huge")).status == 200
    assert await get_many(client, "c9", "huge") == 2


def kept_bytes(client: Client) -> int:
    return client.gateway.snapshots._size_bytes


async def get_many(client: Client, *names: str) -> int:
    before = client.gateway.snapshots.counters.loads
    for name in names:
        assert (await client.get(f"/snapshots/{name}")).status == 200
    return client.gateway.snapshots.counters.loads - before


async def test_bytes_are_counted_exactly_whatever_comes_and_goes(start: Start) -> None:
    client = await start({"namespaces": {"n": {"reducer": "keyed"}}})
    for n in range(20):
        await client.publish("n/a", b"x" * n, f"?key={n % 5}")
        await client.settle()
        await client.get("/snapshots/n/a", {"Accept-Encoding": "gzip"})
        await client.publish("b", b"y" * n)
        await client.settle()
        await client.get("/snapshots/b")
    kept = client.gateway.snapshots._kept.values()
    assert kept_bytes(client) == sum(entry.size_bytes for entry in kept)
    for channel in ("n/a", "b"):
        await client.ask("DELETE", f"/channels/{channel}")
    await client.settle()
    assert kept_bytes(client) == 0


async def test_within_the_minimum_interval_one_rendering_serves_all_but_those_who_know_more(
    start: Start,
) -> None:
    client = await start({"snapshots": {"min_interval_ms": 3_600_000}})
    counters = client.gateway.snapshots.counters
    first = await client.publish("a", b"1")
    rendered = await client.get(f"/snapshots/a?min={first}")
    second = await client.publish("a", b"2")
    await client.settle()
    for _ in range(3):
        assert (await client.get("/snapshots/a")).body == rendered.body
    same = await client.get("/snapshots/a", {"If-None-Match": rendered.headers["ETag"]})
    assert same.status == 304
    assert counters.renders == 1
    newer = await client.get(f"/snapshots/a?min={second}")
    assert (newer.json["id"], newer.json["state"]) == (second, "2")
    # From now on that one is the rendering.
    assert (await client.get("/snapshots/a")).body == newer.body
    assert counters.renders == 2


async def test_after_the_minimum_interval_the_snapshot_is_rendered_anew(start: Start) -> None:
    client = await start({"snapshots": {"min_interval_ms": 1}})
    over_at = 0.0
    for n in range(3):
        position = await client.publish("a", b"%d" % n)
        await client.settle()
        await until(partial(_has_come, over_at))
        assert (await client.get("/snapshots/a")).json["id"] == position
        over_at = time.monotonic() + 0.001


def _has_come(at: float) -> bool:
    return time.monotonic() > at


async def test_a_state_read_from_beyond_the_tail_is_not_shown_as_of_the_tail(
    start: Start,
) -> None:
    client = await start({"namespaces": {"prices": {"reducer": "keyed", "conflate": True}}})
    gateway = client.gateway
    tail, snapshots = gateway.tails["prices"], gateway.snapshots
    await client.publish("prices/a", b"0", "?key=k")
    await client.settle()
    held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gateway.hub.room = lambda mirror: None if held.done() else held  # type: ignore[method-assign]
    # One read is under way already, and takes one event more.
    for number in (b"1", b"2"):
        await client.publish("prices/a", number, "?key=k")
    last = Position.parse(await client.publish("prices/a", b"3", "?key=k"))
    loading = asyncio.create_task(snapshots.load(tail, "prices/a"))
    await until(lambda: snapshots.counters.loads == 1)
    assert tail.mirror.tailed < last
    assert snapshots.peek(tail.mirror, "prices/a") is None
    held.set_result(None)
    await loading
    assert tail.mirror.tailed >= last
    shown = snapshots.peek(tail.mirror, "prices/a")
    assert shown is not None
    assert orjson.loads(shown)["state"] == {"k": "3"}

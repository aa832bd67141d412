"""Bounds of rings, bus, channels, keys and states, each alone."""

from dataclasses import replace

import pytest

from gateway.protocol.errors import LimitExceeded
from gateway.protocol.namespace import Reducer
from gateway.protocol.position import ORIGIN
from gateway.store.redis import StoreLimits
from tests.running import Valkey
from tests.store.opening import (
    DEFAULT,
    KEYED,
    new,
    open_store,
    publish,
    read_ring,
    read_state,
    set_clock_forward,
)

LIMITS = StoreLimits(batch_limit_events=100, batch_limit_bytes=1_000_000)


async def test_a_ring_is_bounded_by_its_count(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, ring_limit_events=10)) as store:
        positions = await publish(store, *(new("a") for _ in range(25)), new("b"))
        assert [event.id for event in await read_ring(store, "a")] == positions[15:25]
        positions += await publish(store, new("a"))
        assert [e.id for e in await read_ring(store, "a")] == [*positions[16:25], positions[-1]]
        assert len(await read_ring(store, "b")) == 1


async def test_the_count_spares_the_young_up_to_the_bytes(redis: Valkey) -> None:
    rules = replace(DEFAULT, ring_limit_events=10, ring_spare_seconds=60, ring_limit_bytes=100_000)
    async with open_store(redis.url, rules) as store:
        positions = await publish(store, *(new("a") for _ in range(500)))
        assert [event.id for event in await read_ring(store, "a")] == positions
        await set_clock_forward(redis, "default", 70_000)
        late = await publish(store, *(new("a") for _ in range(50)))
        # Of what is spared no longer whole nodes of the stream go, at most a hundred entries each.
        left = [event.id for event in await read_ring(store, "a")]
        assert left == [*positions, *late][-len(left) :]
        assert len(late) <= len(left) < len(late) + 100
        # An event counts 64 bytes more than its data.
        late += await publish(store, *(new("a") for _ in range(1500)))
        assert len(await read_ring(store, "a")) == 100_000 // 65


async def test_a_ring_with_a_few_events_too_many_is_left_alone(redis: Valkey) -> None:
    rules = replace(DEFAULT, ring_limit_events=10, ring_spare_seconds=60)
    async with open_store(redis.url, rules) as store:
        positions = await publish(store, *(new("a") for _ in range(15)))
        await set_clock_forward(redis, "default", 70_000)
        positions += await publish(store, new("a"))
        left = [event.id for event in await read_ring(store, "a")]
        assert left == positions[-len(left) :]
        assert len(left) >= 10


async def test_a_ring_is_bounded_by_its_bytes(redis: Valkey) -> None:
    data = b'"%b"' % (b"x" * 934)  # With what an entry counts on top, 1,000.
    async with open_store(redis.url, replace(DEFAULT, ring_limit_bytes=5000)) as store:
        positions = await publish(store, *(new("a", data) for _ in range(5)))
        assert [event.id for event in await read_ring(store, "a")] == positions
        positions += await publish(store, new("a", data))
        assert [event.id for event in await read_ring(store, "a")] == positions[1:]
        positions += await publish(store, new("a", b'"%b"' % (b"x" * 6000)))
        assert [event.id for event in await read_ring(store, "a")] == positions[-1:]
        # What was dropped counts no more.
        positions += await publish(store, *(new("a", data) for _ in range(5)))
        assert [event.id for event in await read_ring(store, "a")] == positions[-5:]


@pytest.mark.parametrize("how", ["count", "age", "expiry"])
async def test_a_ring_is_not_cut_by_its_bytes_for_what_is_gone_otherwise(
    redis: Valkey, how: str
) -> None:
    data = b'"%b"' % (b"x" * 934)  # With what an entry counts on top, 1,000.
    rules = replace(DEFAULT, ring_limit_bytes=5000, ring_limit_events=4, ring_age_seconds=60)
    async with open_store(redis.url, rules) as store:
        for at in range(12):
            await publish(store, new("a", data))
            if how == "age":
                await set_clock_forward(redis, "default", 70_000 * (at + 1))
        if how == "expiry":
            async with redis.client() as client:
                await client.delete("sg:{default}:ring:a")
        positions = [(await publish(store, new("a", data)))[0] for _ in range(4)]
        assert [event.id for event in await read_ring(store, "a")] == positions
        # And by its bytes as soon as they are too many.
        positions += await publish(store, new("a", b'"%b"' % (b"x" * 3934)))
        assert [event.id for event in await read_ring(store, "a")] == positions[-2:]


async def test_a_publish_far_below_the_bounds_reads_no_entry(redis: Valkey) -> None:
    async with open_store(redis.url) as store:
        await publish(store, new("a", b'"%b"' % (b"x" * 100_000)))
        async with redis.client() as client:
            await client.config_resetstat()
            for _ in range(10):
                await publish(store, new("a"))
            stats = await client.info("commandstats")
        assert "cmdstat_xinfo|stream" not in stats
        # Past the clock, in ring and bus; never the oldest.
        assert stats["cmdstat_xrange"]["calls"] == 20


async def test_a_ring_is_bounded_by_its_age(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, ring_age_seconds=60)) as store:
        await publish(store, new("a"), new("a"))
        await set_clock_forward(redis, "default", 50_000)
        young = await publish(store, new("a"))
        assert len(await read_ring(store, "a")) == 3
        await set_clock_forward(redis, "default", 70_000)
        young += await publish(store, new("a"))
        assert [event.id for event in await read_ring(store, "a")] == young


async def test_a_quiet_ring_expires_at_its_age(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, ring_age_seconds=60)) as store:
        await publish(store, new("a"))
        async with redis.client() as client:
            # A new epoch begins a margin of a second ahead.
            assert 55_000 < await client.pttl("sg:{default}:ring:a") <= 70_000
            assert await client.pttl("sg:{default}:state:a") == -1


async def test_the_bus_is_bounded_and_holds_four_batches_of_most_events(redis: Valkey) -> None:
    async with open_store(redis.url, limits=LIMITS) as store:
        positions = []
        for _ in range(12):
            positions += await publish(store, *(new(f"c/{at}") for at in range(100)))
        bus = [e.event.id for e in await store.read_bus("default", ORIGIN, 10_000, 1)]
        assert bus == positions[-len(bus) :]
        # Trimmed by whole nodes of its tree, at most a hundred entries each.
        assert 400 <= len(bus) <= 500


async def test_the_bus_is_bounded_and_holds_four_batches_of_most_bytes(redis: Valkey) -> None:
    data = b'"%b"' % (b"x" * 199_000)
    async with open_store(redis.url, limits=LIMITS) as store:
        positions = []
        for _ in range(12):
            positions += await publish(store, *(new("c", data) for _ in range(5)))
        bus = [e.event.id for e in await store.read_bus("default", ORIGIN, 10_000, 1)]
        assert bus == positions[-len(bus) :]
        assert len(bus) >= 20
        kept = (len(bus) - 5) * len(data)  # Looked at once a mebibyte, so a batch may be over.
        assert kept <= LIMITS.bus_bytes


async def test_a_namespace_holds_at_most_its_limit_of_channels(redis: Valkey) -> None:
    async with open_store(redis.url, replace(DEFAULT, channels_limit=2)) as store:
        await publish(store, new("a"), new("b"))
        with pytest.raises(LimitExceeded, match="at most 2 channels") as caught:
            await publish(store, new("c"))
        assert (caught.value.field, caught.value.value) == ("channel", "c")
        await publish(store, new("a"), new("b"))
        # A deleted channel is remembered until it is swept.
        await store.delete("default", "a")
        with pytest.raises(LimitExceeded):
            await publish(store, new("c"))
        await publish(store, new("a"))
        await store.delete("default", "a")
        assert await store.sweep("default", ["a"]) == 1
        await publish(store, new("c"))


async def test_a_keyed_state_holds_at_most_its_limit_of_keys(redis: Valkey) -> None:
    async with open_store(redis.url, replace(KEYED, keys_limit=2)) as store:

        async def put(*keys: str) -> None:
            events = [new("keyed/a", "" if k.isupper() else "1", key=k.lower()) for k in keys]
            await publish(store, *events, namespace="keyed")

        await put("a", "b")
        with pytest.raises(LimitExceeded, match="at most 2 keys") as caught:
            await put("a", "c")
        assert (caught.value.field, caught.value.value, caught.value.line) == ("key", "c", 2)
        # An upper-case letter stands for the deletion of its key.
        await put("A", "c", "b")
        await put("A", "A", "B", "C", "x", "y")
        with pytest.raises(LimitExceeded):
            await put("X", "z", "q")
        state = await read_state(store, "keyed/a", "keyed")
        assert state.keys() == {b"#", b"kx", b"ky"}


async def test_a_keyed_state_holds_at_most_its_limit_of_bytes(redis: Valkey) -> None:
    async with open_store(redis.url, replace(KEYED, state_limit_bytes=1000)) as store:

        async def put(size: int, key: str = "k") -> None:
            data = '"' + "x" * (size - 2) + '"' if size else ""
            await publish(store, new("keyed/a", data, key=key), namespace="keyed")

        await put(900)
        with pytest.raises(LimitExceeded, match="at most 1000 bytes"):
            await put(100, "l")
        await put(50, "l")
        with pytest.raises(LimitExceeded):
            await put(960)
        await put(0)
        await put(900, "m")
        state = await read_state(store, "keyed/a", "keyed")
        stored = sum(len(k) + len(v) for k, v in state.items() if k != b"#")
        assert int(state[b"#"]) == stored
        await put(0, "l")
        await put(0, "m")
        assert await read_state(store, "keyed/a", "keyed") == {b"#": b"0"}


async def test_a_last_state_holds_at_most_its_limit_of_bytes(redis: Valkey) -> None:
    none = replace(DEFAULT, name="none", reducer=Reducer.NONE, state_limit_bytes=100)
    async with open_store(redis.url, replace(DEFAULT, state_limit_bytes=100), none) as store:
        await publish(store, new("a", b'"%b"' % (b"x" * 98)))
        with pytest.raises(LimitExceeded, match="at most 100 bytes"):
            await publish(store, new("a", b'"%b"' % (b"x" * 99)))
        await publish(store, new("none/a", b'"%b"' % (b"x" * 99)), namespace="none")
        assert await read_state(store, "none/a", "none") == {}


async def test_counts_of_bytes_stay_whole_numbers_however_large(redis: Valkey) -> None:
    """Lua writes a large number as 9.0072e+15 unless it is asked not to."""
    async with open_store(redis.url) as store, redis.client() as client:
        await publish(store, new("a"))
        position = (await publish(store, new("a")))[0]
        large = 2**53 - 1000
        await client.hset("sg:{default}:meta", "bytes", large)
        await client.hset("sg:{default}:channels", "a", f"{position} {large} {large}")
        await publish(store, new("a", "12"), new("a"))
        bus = await client.xrange("sg:{default}:bus", f"({position}")
        ring = await client.xrange("sg:{default}:ring:a", f"({position}")
        assert [fields[b"s"] for _, fields in bus] == [b"%d" % large, b"%d" % (large + 103)]
        assert [fields[b"s"] for _, fields in ring] == [b"%d" % large, b"%d" % (large + 66)]
        assert await client.hget("sg:{default}:meta", "bytes") == b"%d" % (large + 205)

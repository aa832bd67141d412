"""Slices from their beginning to their end: the same bytes for all, exactly the slice's events."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest
import pytest_asyncio
import zstandard

from gateway.protocol.position import Position
from tests.running import Valkey, until, valkey, worker
from tests.web.client import EVENT_SOURCE, Client
from tests.web.slicing import (
    HEARTBEAT,
    SECONDS,
    SLICED,
    Reader,
    at_a_slices_beginning,
    at_a_slices_beginning_after_the_first,
    epoch_of,
    follow_current,
    ids,
    just_before_the_end,
    max_age,
    now_ms,
    number_now,
    parse,
)
from tests.web.together import Begun, begin, together

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {
    "publish": {"event_limit_bytes": 1000},
    "namespaces": {
        # With room for an hour of what the fastest machine publishes here: age alone bounds it.
        "default": {"slice_seconds": SECONDS, "ring_limit_events": 1_000_000},
        "keyed": {"slice_seconds": SECONDS, "reducer": "keyed"},
        "coded": {"slice_seconds": SECONDS, "stream_codings": ["zstd", "gzip"]},
        "small": {"slice_seconds": SECONDS, "ring_limit_bytes": 10_000},
    },
}


class Shared(NamedTuple):
    """One gateway for all tests of the module, each with channels of its own."""

    client: Client
    redis: Valkey
    session: aiohttp.ClientSession
    directory: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Begun]:
    """The tests of the module, under way."""
    directory = tmp_path_factory.mktemp("slices")
    async with (
        valkey(directory / "shared") as redis,
        worker(redis.url, SETTINGS) as running,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "Content-Type"),
        ) as session,
        begin(request, Shared(Client(session, running), redis, session, directory)) as tests,
    ):
        yield tests


@together
async def test_readers_of_the_current_slice_get_every_event_once(shared: Shared) -> None:
    client = shared.client
    await at_a_slices_beginning_after_the_first(client)
    published: list[str] = []
    following = [asyncio.create_task(follow_current(client, "a", 3)) for _ in range(3)]
    while not all(task.done() for task in following):
        published.append(await client.publish("a", b"%d" % len(published)))
        await client.publish("other", b"no")
        await asyncio.sleep(0.02)
    results = await asyncio.gather(*following)
    epoch = await epoch_of(client)
    for readers in results:
        got: list[str] = []
        for reader in readers:
            blocks = parse(reader.body)
            assert reader.body.startswith(b"retry: 500\n\n")
            assert reader.headers["Transfer-Encoding"] == "chunked"
            assert reader.headers["X-Accel-Buffering"] == "no"
            assert reader.headers["X-Accel-Expires"] == "0"
            # Whoever came late enough to have nothing to share was held until the next slice.
            assert 1 <= max_age(reader.headers) <= SECONDS - 1
            end = Position.parse(blocks[-1].id)
            number = end.ms // (SECONDS * 1000)
            assert end == Position(number * SECONDS * 1000, 0)
            assert blocks[-1].data == f'{{"next":{number}}}'
            events = ids(reader.body)
            assert all(
                (number - 1) * SECONDS * 1000 <= Position.parse(id).ms < end.ms for id in events
            )
            got += events
        first = published.index(got[0])
        assert got == published[first : first + len(got)]
    # All readers, all workers, live or later: the same bytes.
    bodies = {tuple(r.body.replace(HEARTBEAT, b"") for r in readers) for readers in results}
    assert len(bodies) == 1
    async with worker(shared.redis.url, SETTINGS) as other:
        second = Client(shared.session, other)
        for reader in results[0]:
            number = Position.parse(parse(reader.body)[-1].id).ms // (SECONDS * 1000) - 1
            for each in (client, second):
                answer = await each.get(f"/slices/{epoch}/{number}/a")
                assert answer.status == 200
                assert answer.body == reader.body.replace(HEARTBEAT, b"")
                assert 3000 < max_age(answer.headers) < 3600
                assert "X-Accel-Expires" not in answer.headers
                assert answer.headers["Transfer-Encoding"] == "chunked"
                assert answer.headers["Surrogate-Key"] == "ns.default ch.a"


@together
async def test_a_slice_of_one_epoch_is_joined_in_its_middle_from_its_start(shared: Shared) -> None:
    client = shared.client
    await at_a_slices_beginning(client)
    first = await client.publish("keyed/a", b"1", "?key=x&type=t")
    number = Position.parse(first).ms // (SECONDS * 1000)
    path = f"/slices/{await epoch_of(client, 'keyed')}/{number}/keyed/a"
    early = Reader(client, path)
    await early.has(lambda body: first.encode() in body)
    second = await client.publish("keyed/a", b"2", "?key=x")
    late = Reader(client, path)
    await late.has(lambda body: second.encode() in body)
    assert ids(await early.end()) == ids(await late.end()) == [first, second]
    block = next(block for block in parse(late.body) if block.data is not None)
    assert block.type == "t"
    # As on the channel's stream: of one key only an envelope tells.
    assert orjson.loads(str(block.data)) == {"channel": "keyed/a", "key": "x", "data": "1"}


@together
async def test_a_compressed_slice_is_one_whole_stream(shared: Shared) -> None:
    client, codings = shared.client, {"gzip": gzip.decompress, "zstd": _unpack_zstd}
    number = await at_a_slices_beginning(client)
    path = f"/slices/{await epoch_of(client, 'coded')}/{number}/coded/a"
    published = [await client.publish("coded/a", b"1")]
    plain = Reader(client, path, {"Accept-Encoding": "identity"})
    coded = {one: Reader(client, path, {"Accept-Encoding": one}) for one in codings}
    await plain.has(lambda body: published[0].encode() in body)
    for reader in coded.values():
        await reader.has(bool)
    published += [await client.publish("coded/a", b'{"n":%d}' % n) for n in range(5)]
    later = {one: Reader(client, path, {"Accept-Encoding": one}) for one in codings}
    body = await plain.end()
    assert ids(body) == published
    for coding, unpack in codings.items():
        # The trailer's checksum is looked at by these.
        assert unpack(await coded[coding].end()) == unpack(await later[coding].end()) == body
        headers = coded[coding].headers
        assert headers["Content-Encoding"] == coding
        assert headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
        over = await client.get(path, {"Accept-Encoding": coding})
        assert ids(unpack(over.body)) == published


def _unpack_zstd(body: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    data = decoder.decompress(body)
    assert decoder.eof
    assert not decoder.unused_data
    return data


@together
async def test_whoever_asks_late_is_held_until_the_next_slice(shared: Shared) -> None:
    client = shared.client
    number = await just_before_the_end(client)
    asked = Reader(client, "/slices/current/held")
    numbered = await client.get(f"/slices/{await epoch_of(client)}/{number}/held")
    assert numbered.body.endswith(b'event: end\ndata: {"next":%d}\n\n' % (number + 1))
    assert await number_now(client) > number
    assert parse(await asked.end())[-1].id == f"{(number + 2) * SECONDS * 1000}-0"


@together
async def test_a_finished_slice_lives_as_long_as_its_ring_vouches_for_it(shared: Shared) -> None:
    client = shared.client
    number = await at_a_slices_beginning_after_the_first(client)
    path = f"/slices/{await epoch_of(client, 'small')}/{number}/small/a"
    published = await client.publish("small/a", b"1")
    body = await Reader(client, path).end()
    assert ids(body) == [published]
    over = await client.get(path)
    assert over.body == body
    # Nothing but age bounds a ring that has room: an hour, less what is past and the margin.
    assert 3500 < max_age(over.headers) < 3600 - 10
    ring = client.gateway.tails["small"].mirror.ring("small/a")
    assert ring is not None
    # As if a busy channel's ring had dropped what lies 40 s before the slice, and no more.
    ring.cut_short = True
    ring.resumable_from = Position((number * SECONDS - 40) * 1000, 0)
    assert 0 < max_age((await client.get(path)).headers) < 40
    # The slice is kept in memory yet, but nobody could go on from its beginning.
    await client.publish_lines([{"channel": "small/a", "data": "x" * 900} for _ in range(50)])
    await client.settle()
    gone = await client.get(path)
    assert (gone.status, gone.problem["reason"]) == (410, "evicted")


@together
async def test_a_deleted_channel_cuts_its_slice_off_and_makes_it_gone(shared: Shared) -> None:
    client = shared.client
    number = await at_a_slices_beginning_after_the_first(client)
    epoch = await epoch_of(client)
    await client.publish("deleted", b"1")
    current, numbered = "/slices/current/deleted", f"/slices/{epoch}/{number}/deleted"
    readers = [Reader(client, path) for path in (current, numbered)]
    for reader in readers:
        await reader.has(lambda body: b"data: 1" in body)
    assert (await client.ask("DELETE", "/channels/deleted")).status == 200
    for reader in readers:
        await reader.end()
        assert reader.cut
        assert b"event:" not in reader.body
    assert (await client.get(numbered)).problem["reason"] == "deleted"
    end_ms = (number + 1) * SECONDS * 1000
    # As the gateway reckons, which is a little behind.
    sealer = client.gateway.slices._sealers["default"]
    most_ms = int(sealer.left_seconds(Position(end_ms, 0)) * 1000) + 1
    told = await client.get(current, EVENT_SOURCE)
    [retry, gap] = told.body.split(b"\n", 1)
    assert told.headers["Cache-Control"] == "no-store, no-transform"
    # It waits until the slice is over, and not until the last 2 s of the next one, which hold it.
    left_ms = end_ms - await now_ms(client)
    assert left_ms <= int(retry.removeprefix(b"retry: ")) <= most_ms + (SECONDS - 2) * 500
    assert b"event: gap" in gap
    # The next one is whole again.
    async with asyncio.timeout(20):
        while await number_now(client) == number:
            await asyncio.sleep(0.02)
    published = await client.publish("deleted", b"2")
    body = await Reader(client, f"/slices/{epoch}/{number + 1}/deleted").end()
    assert ids(body) == [published]


@together
async def test_a_store_that_may_have_lost_writes_makes_the_slice_gone(shared: Shared) -> None:
    async with (
        valkey(shared.directory / "restarted") as redis,
        worker(redis.url, SLICED) as running,
    ):
        client = Client(shared.session, running)
        epoch = await epoch_of(client)
        in_time = False
        while not in_time:
            number = await at_a_slices_beginning_after_the_first(client)
            broken = client.gateway.slices.counters.broken
            await client.publish("a", b"1")
            reader = Reader(client, f"/slices/{epoch}/{number}/a")
            await reader.has(lambda body: b"data: 1" in body)
            await redis.restart()
            await until(lambda broken=broken: client.gateway.slices.counters.broken > broken)  # type: ignore[misc]
            await reader.end()
            assert reader.cut
            gone = await client.get(f"/slices/{epoch}/{number}/a")
            told = await client.get("/slices/current/a", EVENT_SOURCE)
            # Whoever asks in its last two seconds gets the next slice, which is whole.
            in_time = await now_ms(client) < ((number + 1) * SECONDS - 2) * 1000
        assert (gone.status, gone.problem["reason"]) == (410, "restored")
        assert b'"reason":"restored"' in told.body
        # Somewhat later all is well again: the cut ends before the slice after the next.
        await at_a_slices_beginning(client)
        async with asyncio.timeout(20):
            while (
                (await client.ask("HEAD", "/slices/current/a"))
                .headers["Cache-Control"]
                .startswith("no-store")
            ):
                await asyncio.sleep(0.05)


@together
async def test_a_quiet_slice_is_kept_alive_and_a_lonely_one_is_dropped(shared: Shared) -> None:
    settings = {**SETTINGS, "streams": {"heartbeat_seconds": 0.2}}
    async with worker(shared.redis.url, settings) as running:
        client = Client(shared.session, running)
        number = await at_a_slices_beginning(client)
        reader = Reader(client, f"/slices/{await epoch_of(client)}/{number}/quiet")
        await reader.has(lambda body: body.count(HEARTBEAT) >= 3)
        assert ids(await reader.end()) == []
        assert client.gateway.slices.readers == 0
        assert client.gateway.slices.counters.ended == 1

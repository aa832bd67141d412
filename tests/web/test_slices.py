"""`GET /slices/…`: the same bytes for all, exactly the slice's events, an end or a cut-off body."""

import asyncio
import gzip
import re
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import orjson
import pytest
import zstandard

from gateway.protocol.position import Position
from gateway.protocol.stream_reader import Block, EventStreamParser
from tests.running import Valkey, until, worker
from tests.web.client import EVENT_SOURCE, Client, open_raw
from tests.web.conftest import Start

SECONDS = 5
SLICED: dict[str, Any] = {"namespaces": {"default": {"slice_seconds": SECONDS}}}
HEARTBEAT = b": heartbeat\n\n"


def parse(body: bytes) -> list[Block]:
    """Return the blocks of a body that ended."""
    parser = EventStreamParser()
    return [*parser.feed(body)]


def ids(body: bytes) -> list[str]:
    """Return the ids of the events in a slice, its end left out; the end must be there."""
    blocks = parse(body)
    assert blocks[-1].type == "end", body[-200:]
    return [block.id for block in blocks[:-1] if block.data is not None]


def max_age(headers: Mapping[str, str]) -> int:
    match = re.match(r"public, max-age=(\d+), stale-while", headers["Cache-Control"])
    assert match is not None, headers["Cache-Control"]
    return int(match[1])


async def epoch_of(client: Client) -> str:
    await client.settle()
    life = await client.gateway.store.greet("default")
    return life.epoch


async def number_now(client: Client) -> int:
    """Return the number of the slice that the namespace's time lies in."""
    life, now_ms = await client.gateway.store.seal("default", Position(0, 0))
    return max(now_ms, life.clock.ms) // (SECONDS * 1000)


async def seconds_left(client: Client) -> float:
    life, now_ms = await client.gateway.store.seal("default", Position(0, 0))
    return SECONDS - max(now_ms, life.clock.ms) % (SECONDS * 1000) / 1000


async def at_a_slices_beginning(client: Client, within: float = 1.5) -> int:
    """Wait for a slice that has most of its time before it; return its number."""
    async with asyncio.timeout(20):
        while await seconds_left(client) < SECONDS - within:
            await asyncio.sleep(0.02)
    return await number_now(client)


async def after_the_first_slice(client: Client) -> None:
    """Wait until the slice in which the epoch began is over: `current` cannot vouch for that."""
    life = await client.gateway.store.greet("default")
    first = life.floor.ms // (SECONDS * 1000)
    async with asyncio.timeout(20):
        while await number_now(client) <= first:
            await asyncio.sleep(0.02)


class Reader:
    """Reads one slice as it comes."""

    def __init__(self, client: Client, path: str, headers: Mapping[str, str] | None = None) -> None:
        self.body = b""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.cut = False
        self._task = asyncio.create_task(self._read(client, path, headers or {}))

    async def _read(self, client: Client, path: str, headers: Mapping[str, str]) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
            session.get(client.url(path), headers=headers) as response,
        ):
            self.headers, self.status = response.headers, response.status
            try:
                async for chunk in response.content.iter_any():
                    self.body += chunk
            except aiohttp.ClientPayloadError:
                self.cut = True

    async def has(self, condition: Callable[[bytes], bool]) -> None:
        """Wait until the body so far meets a condition."""
        await until(lambda: self._task.done() or condition(self.body))
        assert condition(self.body), self.body

    async def end(self) -> bytes:
        async with asyncio.timeout(30):
            await self._task
        return self.body


async def follow_current(client: Client, channel: str, slices: int) -> list[Reader]:
    """Do as an EventSource does: ask for the current slice again whenever one has ended."""
    readers = []
    for _ in range(slices):
        reader = Reader(client, f"/slices/current/{channel}", EVENT_SOURCE)
        await reader.end()
        readers.append(reader)
    return readers


async def test_readers_of_the_current_slice_get_every_event_once(
    start: Start, redis: Valkey, session: aiohttp.ClientSession
) -> None:
    client = await start(SLICED)
    await after_the_first_slice(client)
    published: list[str] = []
    following = [asyncio.create_task(follow_current(client, "a", 3)) for _ in range(3)]
    await until(lambda: client.gateway.slices.readers == 3)
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
    async with worker(redis.url, SLICED) as other:
        second = Client(session, other)
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


async def test_a_slice_of_one_epoch_is_joined_in_its_middle_from_its_start(start: Start) -> None:
    client = await start({"namespaces": {"default": {"slice_seconds": SECONDS}, "k": {
        "slice_seconds": SECONDS, "reducer": "keyed"}}})  # fmt: skip
    await at_a_slices_beginning(client)
    first = await client.publish("k/a", b"1", "?key=x&type=t")
    epoch = (await client.gateway.store.greet("k")).epoch
    path = f"/slices/{epoch}/{Position.parse(first).ms // (SECONDS * 1000)}/k/a"
    early = Reader(client, path)
    await early.has(lambda body: first.encode() in body)
    second = await client.publish("k/a", b"2", "?key=x")
    late = Reader(client, path)
    await late.has(lambda body: second.encode() in body)
    assert ids(await early.end()) == ids(await late.end()) == [first, second]
    block = next(block for block in parse(late.body) if block.data is not None)
    assert block.type == "t"
    # As on the channel's stream: of one key only an envelope tells.
    assert orjson.loads(str(block.data)) == {"channel": "k/a", "key": "x", "data": "1"}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_compressed_slice_is_one_whole_stream(start: Start, coding: str) -> None:
    client = await start({"namespaces": {"default": {
        "slice_seconds": SECONDS, "stream_codings": ["zstd", "gzip"]}}})  # fmt: skip
    number = await at_a_slices_beginning(client)
    path = f"/slices/{await epoch_of(client)}/{number}/a"
    published = [await client.publish("a", b"1")]
    plain = Reader(client, path, {"Accept-Encoding": "identity"})
    await plain.has(lambda body: published[0].encode() in body)
    coded = Reader(client, path, {"Accept-Encoding": coding})
    await until(lambda: client.gateway.slices.readers == 2)
    published += [await client.publish("a", b'{"n":%d}' % n) for n in range(5)]
    later = Reader(client, path, {"Accept-Encoding": coding})
    await asyncio.gather(plain.end(), coded.end(), later.end())
    assert coded.headers["Content-Encoding"] == coding
    assert coded.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    # The trailer's checksum is looked at by these.
    unpack = gzip.decompress if coding == "gzip" else _unpack_zstd
    assert unpack(coded.body) == unpack(later.body) == plain.body
    assert ids(plain.body) == published
    over = await client.get(path, {"Accept-Encoding": coding})
    assert ids(unpack(over.body)) == published


def _unpack_zstd(body: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    data = decoder.decompress(body)
    assert decoder.eof
    assert not decoder.unused_data
    return data


async def test_whoever_asks_late_is_held_until_the_next_slice(start: Start) -> None:
    client = await start(SLICED)
    await after_the_first_slice(client)
    number = await at_a_slices_beginning(client)
    async with asyncio.timeout(20):
        while await seconds_left(client) > 1.8:
            await asyncio.sleep(0.02)
    asked = Reader(client, "/slices/current/a")
    numbered = await client.get(f"/slices/{await epoch_of(client)}/{number}/a")
    assert numbered.body.endswith(b'event: end\ndata: {"next":%d}\n\n' % (number + 1))
    assert await number_now(client) > number
    assert parse(await asked.end())[-1].id == f"{(number + 2) * SECONDS * 1000}-0"


@pytest.mark.parametrize(
    ("number", "status"),
    [("-1", 400), ("x", 400), ("01", 400), ("9" * 16, 400), ("9" * 3000, 400), ("9" * 11, 404)],
)
async def test_a_number_that_is_none_or_lies_ahead_is_refused(
    client: Client, number: str, status: int
) -> None:
    answer = await client.get(f"/slices/{await epoch_of(client)}/{number}/a")
    assert answer.status == status
    assert answer.problem
    assert answer.headers["Cache-Control"] == "no-store"


async def test_unknown_parameters_epochs_and_old_slices_are_refused(client: Client) -> None:
    epoch = await epoch_of(client)
    for path, status in (
        (f"/slices/{epoch}/1/a?x=1", 400),
        ("/slices/current/a?x=1", 400),
        (f"/slices/{epoch}/1/a//b", 400),
        (f"/slices/{epoch}/1/a%2Fb", 400),
        ("/slices/current/%61", 400),
        (f"/slices/{'e' * 500}/1/a", 410),
        (f"/slices/{epoch}/1/a", 410),
    ):
        answer = await client.get(path)
        assert answer.status == status, path
        assert answer.problem
        assert answer.headers["Cache-Control"] == "no-store"
    assert (await client.ask("POST", "/slices/current/a")).status == 405


async def test_a_finished_slice_lives_as_long_as_its_ring_vouches_for_it(start: Start) -> None:
    limits = {"ring_limit_bytes": 10_000, "slice_seconds": SECONDS}
    client = await start(
        {"publish": {"event_limit_bytes": 1000}, "namespaces": {"default": limits}}
    )
    await after_the_first_slice(client)
    number = await at_a_slices_beginning(client)
    path = f"/slices/{await epoch_of(client)}/{number}/a"
    published = await client.publish("a", b"1")
    body = await Reader(client, path).end()
    assert ids(body) == [published]
    over = await client.get(path)
    assert over.body == body
    # Nothing but age bounds a ring that has room: an hour, less what is past and the margin.
    assert 3500 < max_age(over.headers) < 3600 - 10
    ring = client.gateway.tails["default"].mirror.ring("a")
    assert ring is not None
    # As if a busy channel's ring had dropped what lies 40 s before the slice, and no more.
    ring.cut_short = True
    ring.resumable_from = Position((number * SECONDS - 40) * 1000, 0)
    assert 0 < max_age((await client.get(path)).headers) < 40
    # The slice is kept in memory yet, but nobody could go on from its beginning.
    await client.publish_lines([{"channel": "a", "data": "x" * 990} for _ in range(50)])
    await client.settle()
    gone = await client.get(path)
    assert (gone.status, gone.problem["reason"]) == (410, "evicted")


async def test_a_head_tells_the_headers_and_opens_nothing(client: Client) -> None:
    epoch = await epoch_of(client)
    number = (await client.gateway.store.greet("default")).clock.ms // 30_000
    answer = await client.ask("HEAD", f"/slices/{epoch}/{number}/a")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert client.gateway.slices.readers == 0


async def test_a_deleted_channel_cuts_its_slice_off_and_makes_it_gone(start: Start) -> None:
    client = await start(SLICED)
    await after_the_first_slice(client)
    number = await at_a_slices_beginning(client)
    epoch = await epoch_of(client)
    await client.publish("a", b"1")
    readers = [Reader(client, p) for p in ("/slices/current/a", f"/slices/{epoch}/{number}/a")]
    for reader in readers:
        await reader.has(lambda body: b"data: 1" in body)
    assert (await client.ask("DELETE", "/channels/a")).status == 200
    for reader in readers:
        await reader.end()
        assert reader.cut
        assert b"event:" not in reader.body
    assert (await client.get(f"/slices/{epoch}/{number}/a")).problem["reason"] == "deleted"
    told = Reader(client, "/slices/current/a", EVENT_SOURCE)
    left_ms = await seconds_left(client) * 1000
    assert told.headers is not None
    [retry, gap] = (await told.end()).split(b"\n", 1)
    assert told.headers["Cache-Control"] == "no-store, no-transform"
    assert left_ms - 200 <= int(retry.removeprefix(b"retry: "))
    assert b"event: gap" in gap
    # The next one is whole again.
    async with asyncio.timeout(20):
        while await number_now(client) == number:
            await asyncio.sleep(0.02)
    published = await client.publish("a", b"2")
    assert ids(await Reader(client, f"/slices/{epoch}/{number + 1}/a").end()) == [published]


async def test_a_drain_cuts_slices_off_without_a_word(start: Start) -> None:
    client = await start(SLICED)
    number = await at_a_slices_beginning(client)
    reader = Reader(client, f"/slices/{await epoch_of(client)}/{number}/a")
    await reader.has(lambda body: body == b"retry: 500\n\n")
    client.gateway.drain()
    assert await reader.end() == b"retry: 500\n\n"
    assert reader.cut
    refused = await client.get("/slices/current/a")
    assert refused.status == 503
    kept = await client.get("/slices/current/a", EVENT_SOURCE)
    assert kept.status == 200
    assert b"event: unavailable" in kept.body
    assert kept.headers["Cache-Control"] == "no-store, no-transform"


async def test_a_store_that_may_have_lost_writes_makes_the_slice_gone(
    start: Start, redis: Valkey
) -> None:
    client = await start(SLICED)
    await after_the_first_slice(client)
    number = await at_a_slices_beginning(client)
    epoch = await epoch_of(client)
    await client.publish("a", b"1")
    reader = Reader(client, f"/slices/{epoch}/{number}/a")
    await reader.has(lambda body: b"data: 1" in body)
    await redis.restart()
    await until(lambda: client.gateway.slices.counters.broken)
    await reader.end()
    assert reader.cut
    gone = await client.get(f"/slices/{epoch}/{number}/a")
    assert (gone.status, gone.problem["reason"]) == (410, "restored")
    told = await client.get("/slices/current/a", EVENT_SOURCE)
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


async def test_a_flushed_store_is_another_epoch(start: Start, redis: Valkey) -> None:
    client = await start(SLICED)
    number = await at_a_slices_beginning(client)
    epoch = await epoch_of(client)
    reader = Reader(client, f"/slices/{epoch}/{number}/a")
    await reader.has(lambda body: body == b"retry: 500\n\n")
    async with redis.client() as valkey:
        await valkey.flushall()
    await reader.end()
    assert reader.cut
    answer = await client.get(f"/slices/{epoch}/{number}/a")
    assert (answer.status, answer.problem["reason"]) == (410, "epoch")


async def test_whoever_names_no_epoch_is_told_that_it_began_within_the_slice(start: Start) -> None:
    rules = {"slice_seconds": 3600, "ring_age_seconds": 4 * 3600}
    client = await start({"namespaces": {"default": rules}})
    published = await client.publish("a", b"1")
    await client.settle()
    told = await client.get("/slices/current/a", EVENT_SOURCE)
    assert b"event: gap" in told.body
    assert published.encode() in told.body  # From where it may go on.
    number = Position.parse(published).ms // 3_600_000
    reader = Reader(client, f"/slices/{await epoch_of(client)}/{number}/a")
    await reader.has(lambda body: published.encode() in body)
    client.gateway.slices.drain()
    await reader.end()


async def test_a_quiet_slice_is_kept_alive_and_a_lonely_one_is_dropped(start: Start) -> None:
    client = await start({**SLICED, "streams": {"heartbeat_seconds": 0.2}})
    number = await at_a_slices_beginning(client)
    reader = Reader(client, f"/slices/{await epoch_of(client)}/{number}/a")
    await reader.has(lambda body: body.count(HEARTBEAT) >= 3)
    assert ids(await reader.end()) == []
    assert client.gateway.slices.readers == 0
    assert client.gateway.slices.counters.ended == 1


async def test_http_1_0_gets_the_slice_but_no_cache_may_keep_it(client: Client) -> None:
    await client.publish("a", b"1")
    epoch = await epoch_of(client)
    number = (await client.gateway.store.greet("default")).clock.ms // 30_000
    async with open_raw(client.worker, f"/slices/{epoch}/{number}/a") as raw:
        assert b"data: 1" in await raw.read_until(b"data: 1\n\n")
        assert b"Cache-Control: no-store\r\n" in raw.head

"""Subscribers that read slowly, or not at all: nobody else notices, and no event is lost unsaid."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack

import orjson
import pytest

from tests.running import Stream, until
from tests.web.client import Client, RawStream, event, first_id, open_raw
from tests.web.conftest import Start
from tests.web.transports import transport

__all__ = ["transport"]

EVENT_BYTES = 16_000
RECEIVE_BUFFER_BYTES = 4096


def lines(first: int, count: int) -> list[dict[str, object]]:
    return [
        {"channel": "a", "data": f"{n} ".ljust(EVENT_BYTES, "x")}
        for n in range(first, first + count)
    ]


async def fill(client: Client, ids: list[str]) -> None:
    """Publish until a subscriber lags; `ids` takes the positions."""
    while client.gateway.hub.counters.lags == 0:
        ids += await client.publish_lines(lines(len(ids), 64))
        await client.settle()
        assert len(ids) < 2000, "nothing ever filled up"


def blocks(body: bytes) -> Iterator[dict[str, str]]:
    """Yield the complete blocks of a raw stream, comments left out."""
    for text in body.decode().split("\n\n")[:-1]:
        block = dict(line.split(": ", 1) for line in text.split("\n") if line[0] != ":")
        if block:
            yield block


def events_of(stream: RawStream) -> list[tuple[str, int]]:
    """Return the id and the number of every event that came, in order."""
    return [
        (block["id"], int(block["data"].split(" ")[0]))
        for block in blocks(stream.body)
        if "data" in block and "event" not in block
    ]


async def test_a_lagging_subscriber_delays_nobody_and_catches_up_exactly(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 5000, "ring_limit_bytes": 1 << 27}}}
    )
    async with (
        open_raw(client.worker, "/events/a", receive_buffer_bytes=RECEIVE_BUFFER_BYTES) as slow,
        client.follow("/events/a") as fast,
    ):
        await slow.read_until(b"\n\n")
        await first_id(fast)
        ids: list[str] = []
        fast_events: list[str] = []
        reading = asyncio.create_task(read_all(fast_events, fast))
        await fill(client, ids)
        assert client.gateway.hub.count_lagging() == 1
        ids += await client.publish_lines(lines(len(ids), 100))
        await until(lambda: len(fast_events) == len(ids))
        assert fast_events == ids
        assert client.gateway.hub.count_lagging() == 1
        slow.widen()
        await slow.read_until(f"id: {ids[-1]}\ndata: {len(ids) - 1} ".encode())
        await until(lambda: client.gateway.hub.count_lagging() == 0)
        # Live again, by the shared chunk.
        ids += await client.publish_lines(lines(len(ids), 1))
        await slow.read_until(f"id: {ids[-1]}\n".encode())
        while not slow.body.endswith(b"x\n\n"):
            await slow.read_more()
        assert events_of(slow) == [(id, n) for n, id in enumerate(ids)]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def read_all(ids: list[str], stream: Stream) -> None:
    while True:
        ids.append((await event(stream))[0])


async def test_a_subscriber_that_the_ring_has_passed_gets_a_gap_and_is_closed(
    start: Start,
) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 10, "ring_spares_young": False}}}
    )
    async with open_raw(
        client.worker, "/events/a", receive_buffer_bytes=RECEIVE_BUFFER_BYTES
    ) as slow:
        await slow.read_until(b"\n\n")
        ids: list[str] = []
        await fill(client, ids)
        ids += await client.publish_lines(lines(len(ids), 64))
        await client.settle()
        slow.widen()
        await slow.read_to_end()
        assert client.gateway.hub.subscribers == 0
    got = events_of(slow)
    assert got == [(id, n) for n, id in enumerate(ids)][: len(got)]
    *_, last = blocks(slow.body)
    gap = orjson.loads(last["data"])
    assert last["event"] == "gap"
    assert last["id"] == gap["newest"] == ids[-1]
    assert (gap["reason"], gap["requested"]) == ("evicted", got[-1][0])
    assert gap["oldest"] == ids[-11]
    assert client.gateway.hub.counters.gaps == 1


async def test_a_subscriber_that_never_reads_is_ended_and_costs_no_more_than_its_buffer(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start(
        {
            "streams": {"write_timeout_seconds": 1.0, "heartbeat_seconds": 0.05},
            "namespaces": {"default": {"ring_limit_events": 5000, "ring_limit_bytes": 1 << 27}},
        }
    )
    hub = client.gateway.hub
    with caplog.at_level(logging.WARNING):
        async with open_raw(
            client.worker, "/events/a", receive_buffer_bytes=RECEIVE_BUFFER_BYTES
        ) as stuck:
            ids: list[str] = []
            await fill(client, ids)
            written = hub.counters.delivered_bytes
            ids += await client.publish_lines(lines(len(ids), 200))
            await client.settle()
            # Neither events nor heartbeats go to a full connection.
            assert hub.counters.delivered_bytes == written
            assert hub.subscribers + hub.counters.timeouts == 1
            await until(lambda: hub.counters.timeouts == 1)
            assert hub.subscribers == 0
            stuck.widen()
            await stuck.read_to_end()
            # What arrived whole is exact; nothing was written after what had not been sent.
            got = events_of(stuck)
            assert got == [(id, n) for n, id in enumerate(ids)][: len(got)]
    assert caplog.records == []


async def test_many_subscribers_that_leave_in_the_middle_of_a_write_leave_nothing_behind(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start({"namespaces": {"default": {"ring_limit_bytes": 1 << 27}}})
    with caplog.at_level(logging.WARNING):
        async with AsyncExitStack() as stack:
            for _ in range(10):
                opening = open_raw(
                    client.worker, "/events/a", receive_buffer_bytes=RECEIVE_BUFFER_BYTES
                )
                await (await stack.enter_async_context(opening)).read_until(b"\n\n")
            await fill(client, [])
        await until(lambda: client.gateway.hub.subscribers == 0)
        assert client.gateway.hub.count_lagging() == 0
    assert caplog.records == []


async def test_a_reader_that_takes_a_little_now_and_then_is_never_ended(start: Start) -> None:
    client = await start(
        {
            "streams": {
                "write_timeout_seconds": 0.5, "send_buffer_bytes": 4096, "buffer_limit_bytes": 4096,
            },
        }
    )  # fmt: skip
    hub = client.gateway.hub

    async def read_all_slowly() -> float:
        """Return for how long the reader took nothing, in seconds, at the most."""
        async with open_raw(
            client.worker, "/events/a", receive_buffer_bytes=RECEIVE_BUFFER_BYTES
        ) as slow:
            await slow.read_until(b"\n\n")
            await client.publish("a", b"x" * 60_000)
            reading = asyncio.create_task(slow.read_slowly(20_000))
            # It takes several times as long as a reader may take nothing.
            await until(lambda: slow.body.endswith(b"x\n\n") or not hub.subscribers)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return slow.longest_pause

    # On a machine that stands still it is none that takes a little now and then.
    for _ in range(5):
        hub.counters.timeouts = 0
        if await read_all_slowly() < 0.25:
            break
    assert hub.counters.timeouts == 0
    assert hub.counters.lags

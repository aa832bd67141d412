"""The demo publishes real figures of this machine, under names that carry their unit."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine

import orjson
import psutil
import pytest

from gateway.demo import (
    HostFigures,
    gateway_figures,
    next_tick,
    publish_gateway_figures,
    publish_host_figures,
    rate,
)
from gateway.protocol.errors import StoreUnavailable

INTERVAL_SECONDS = 0.05
UNITS = ("percent", "bytes", "bytes_per_second", "minute", "minutes", "cores")


class Channels:
    """Takes what is published and lets a test wait for it; refuses the first `refusals` calls."""

    def __init__(self, refusals: int = 0) -> None:
        self.calls = 0
        self._refusals = refusals
        self._events: asyncio.Queue[tuple[str, dict[str, float]]] = asyncio.Queue()

    async def publish(self, channel: str, data: bytes) -> None:
        self.calls += 1
        if self.calls <= self._refusals:
            raise StoreUnavailable("Redis is away")
        self._events.put_nowait((channel, orjson.loads(data)))

    async def event_of(self, channel: str) -> dict[str, float]:
        """Return the fields of the channel's next event, dropping those of other channels."""
        async with asyncio.timeout(10):
            while True:
                name, fields = await self._events.get()
                if name == channel:
                    return fields

    async def round(self) -> dict[str, dict[str, float]]:
        """Return channel → fields of the next events up to and with `host/load`, the last one."""
        figures: dict[str, dict[str, float]] = {}
        async with asyncio.timeout(10):
            while "host/load" not in figures:
                name, fields = await self._events.get()
                figures[name] = fields
        return figures


@contextlib.asynccontextmanager
async def running(publisher: Coroutine[object, object, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(publisher)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_every_round_covers_each_core_and_memory_disk_network_and_load() -> None:
    channels = Channels()
    async with running(publish_host_figures(channels.publish, interval_seconds=INTERVAL_SECONDS)):
        first, second = await channels.round(), await channels.round()
    cores = {f"host/cpu/{core}" for core in range(psutil.cpu_count() or 1)}
    assert set(first) == cores | {"host/memory", "host/disk", "host/network", "host/load"}
    assert set(second) == set(first)


async def test_figures_are_of_this_machine_and_within_their_bounds() -> None:
    channels = Channels()
    async with running(publish_host_figures(channels.publish, interval_seconds=INTERVAL_SECONDS)):
        figures = await channels.round()
    assert figures["host/memory"]["total_bytes"] == psutil.virtual_memory().total
    assert 0 < figures["host/memory"]["used_bytes"] < figures["host/memory"]["total_bytes"]
    assert figures["host/disk"]["total_bytes"] == psutil.disk_usage("/").total
    for fields in figures.values():
        assert all(value >= 0 for value in fields.values())
        assert all(value <= 100 for name, value in fields.items() if name.endswith("percent"))


async def test_every_field_is_named_with_its_unit_and_rounded() -> None:
    channels = Channels()
    async with running(publish_host_figures(channels.publish, interval_seconds=INTERVAL_SECONDS)):
        figures = await channels.round()
    for fields in figures.values():
        assert all(name.endswith(UNITS) for name in fields)
        assert all(value == round(value, 2) for value in fields.values())


def test_a_busy_core_shows_in_the_percentages() -> None:
    host = HostFigures(time.monotonic())
    spent = time.process_time() + 0.3
    while time.process_time() < spent:
        pass
    figures = host.read(time.monotonic())
    assert sum(fields["percent"] for name, fields in figures.items() if "/cpu/" in name) > 0


async def test_network_bytes_show_as_a_rate() -> None:
    host = HostFigures(0.0)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await reader.read()
        writer.close()
        await writer.wait_closed()
    assert host.read(0.5)["host/network"]["received_bytes_per_second"] > 0


def test_a_rate_is_an_increase_per_second() -> None:
    assert rate(1_000, 4_000, 2.0) == 1_500.0
    assert rate(0, 1, 3.0) == 0.3


def test_a_counter_that_went_back_has_rate_zero() -> None:
    assert rate(4_000, 1_000, 1.0) == 0.0


def test_a_rate_over_no_time_is_zero() -> None:
    assert rate(0, 1_000, 0.0) == 0.0


def test_a_gateway_counter_carries_its_total_and_its_rate() -> None:
    figures = gateway_figures({"events_total": 100.0}, {"events_total": 150.0}, 2.0)
    assert figures == {"gateway/events": {"total": 150.0, "per_second": 25.0}}


def test_a_gateway_counter_seen_for_the_first_time_has_rate_zero() -> None:
    figures = gateway_figures({}, {"gaps_total": 7.0}, 1.0)
    assert figures == {"gateway/gaps": {"total": 7.0, "per_second": 0.0}}


def test_a_gateway_gauge_carries_its_value() -> None:
    assert gateway_figures({}, {"subscribers": 3.14159}, 1.0) == {
        "gateway/subscribers": {"value": 3.142}
    }


def test_gateway_figures_in_bytes_say_so_in_their_fields() -> None:
    before = {"delivered_bytes_total": 0.0, "memory_bytes": 1.0}
    after = {"delivered_bytes_total": 4096.0, "memory_bytes": 2.0}
    assert gateway_figures(before, after, 2.0) == {
        "gateway/delivered": {"total_bytes": 4096.0, "bytes_per_second": 2048.0},
        "gateway/memory": {"bytes": 2.0},
    }


async def test_gateway_figures_are_published_as_they_are_read() -> None:
    channels = Channels()
    counted = iter(range(0, 1_000_000, 10))

    def read() -> dict[str, float]:
        return {"events_total": next(counted), "subscribers": 2}

    async with running(
        publish_gateway_figures(channels.publish, read, interval_seconds=INTERVAL_SECONDS)
    ):
        first = await channels.event_of("gateway/events")
        subscribers = await channels.event_of("gateway/subscribers")
        second = await channels.event_of("gateway/events")
    assert (first["total"], second["total"]) == (10, 20)
    assert second["per_second"] > 0  # How much, the clock decides.
    assert subscribers == {"value": 2}


async def test_a_store_that_is_away_for_a_moment_does_not_end_the_demo(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channels = Channels(refusals=2)
    with caplog.at_level(logging.WARNING, logger="gateway.demo"):
        async with running(
            publish_host_figures(channels.publish, interval_seconds=INTERVAL_SECONDS)
        ):
            assert await channels.event_of("host/memory")
    # The rest of a refused round is left out: two rounds, two refusals.
    assert [record.getMessage() for record in caplog.records] == [
        "demo figures were not published: Redis is away"
    ] * 2


async def test_other_errors_are_not_swallowed() -> None:
    async def publish(channel: str, data: bytes) -> None:
        raise TypeError(channel)

    with pytest.raises(TypeError, match="host/cpu/0"):
        async with asyncio.timeout(10):
            await publish_host_figures(publish, interval_seconds=INTERVAL_SECONDS)


async def test_cancelling_ends_it() -> None:
    channels = Channels()
    async with running(
        publish_host_figures(channels.publish, interval_seconds=INTERVAL_SECONDS)
    ) as task:
        await channels.event_of("host/load")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_ticks_that_a_slow_publisher_missed_are_left_out() -> None:
    assert next_tick(10.0, 1.0, now=10.2) == 11.0
    # Ten are overdue: one comes at once, the next an interval later.
    late = next_tick(11.0, 1.0, now=21.5)
    assert late == 21.5
    assert next_tick(late, 1.0, now=21.6) == 22.5

"""Publish live figures of this machine and of the gateway; it only measures and publishes."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import orjson
import psutil

from gateway.protocol.errors import GatewayError

logger = logging.getLogger(__name__)

Publish = Callable[[str, bytes], Awaitable[object]]
"""Publish JSON bytes to the channel of that name."""

Figures = dict[str, dict[str, float]]
"""Channel → its fields; each field's name ends in its unit."""

_COUNTER_SUFFIX = "_total"
_BYTES_SUFFIX = "_bytes"
_COUNT_FIELDS = ("total", "per_second")
_BYTES_FIELDS = ("total_bytes", "bytes_per_second")


async def publish_host_figures(publish: Publish, *, interval_seconds: float = 1.0) -> None:
    """Publish CPU, memory, disk, network and load on `host/…`; run until cancelled.

    The first figures come one interval after the call: a CPU percentage and a rate both need
    an interval to be measured over.
    """
    host = HostFigures(time.monotonic())
    async for now in _ticks(interval_seconds):
        await _publish_all(publish, host.read(now))


async def publish_gateway_figures(
    publish: Publish,
    read: Callable[[], dict[str, float]],
    *,
    interval_seconds: float = 1.0,
) -> None:
    """Publish what `read` returns, one channel `gateway/<name>` per figure; run until cancelled.

    A figure `<name>_total` is a counter: its channel carries `total` and `per_second`. Any other
    is a gauge: its channel carries `value`. A name that ends in `_bytes` gives that to the fields
    instead: `memory_bytes` is `bytes` on `gateway/memory`.
    """
    previous, then = read(), time.monotonic()
    async for now in _ticks(interval_seconds):
        current = read()
        await _publish_all(publish, gateway_figures(previous, current, now - then))
        previous, then = current, now


def gateway_figures(
    previous: Mapping[str, float], current: Mapping[str, float], elapsed_seconds: float
) -> Figures:
    """Return the figures of the `gateway/…` channels between two readings."""
    figures: Figures = {}
    for full_name, value in current.items():
        name = full_name.removesuffix(_COUNTER_SUFFIX)
        channel = f"gateway/{name.removesuffix(_BYTES_SUFFIX)}"
        in_bytes = name.endswith(_BYTES_SUFFIX)
        if name == full_name:
            figures[channel] = {"bytes" if in_bytes else "value": round(value, 3)}
        else:
            per_second = rate(previous.get(full_name, value), value, elapsed_seconds)
            total, speed = _BYTES_FIELDS if in_bytes else _COUNT_FIELDS
            figures[channel] = {total: value, speed: per_second}
    return figures


def rate(previous: float, current: float, elapsed_seconds: float) -> float:
    """Return a counter's increase per second, to one decimal.

    A counter that went back was reset (an interface went away, a driver was reloaded): 0.
    """
    if elapsed_seconds <= 0 or current < previous:
        return 0.0
    return round((current - previous) / elapsed_seconds, 1)


@dataclass(frozen=True, slots=True)
class Counters:
    """What the machine has counted since it started."""

    disk_read_bytes: int = 0
    disk_written_bytes: int = 0
    network_received_bytes: int = 0
    network_sent_bytes: int = 0


class HostFigures:
    """Reads this machine's figures; rates and percentages hold since the reading before."""

    def __init__(self, now: float) -> None:
        """`now` is in seconds of a monotonic clock, here and in `read`."""
        self._read_at = now
        self._counters = _read_counters()
        # The first percentages that psutil gives mean nothing: it has nothing to compare with.
        psutil.cpu_percent(percpu=True)
        psutil.cpu_times_percent(percpu=True)

    def read(self, now: float) -> Figures:
        """Return the figures of every `host/…` channel."""
        elapsed_seconds, self._read_at = now - self._read_at, now
        before, self._counters = self._counters, _read_counters()
        return {
            **_cpu_figures(),
            "host/memory": _memory_figures(),
            "host/disk": _disk_figures(before, self._counters, elapsed_seconds),
            "host/network": _network_figures(before, self._counters, elapsed_seconds),
            "host/load": _load_figures(),
        }


def _cpu_figures() -> Figures:
    percents = psutil.cpu_percent(percpu=True)
    times = psutil.cpu_times_percent(percpu=True)
    return {
        f"host/cpu/{core}": {
            "percent": percent,
            "user_percent": parts.user,
            "system_percent": parts.system,
        }
        for core, (percent, parts) in enumerate(zip(percents, times, strict=True))
    }


def _memory_figures() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "percent": memory.percent,
        "used_bytes": memory.used,
        "available_bytes": memory.available,
        "total_bytes": memory.total,
    }


def _disk_figures(before: Counters, after: Counters, elapsed_seconds: float) -> dict[str, float]:
    usage = psutil.disk_usage("/")
    return {
        "read_bytes_per_second": rate(
            before.disk_read_bytes, after.disk_read_bytes, elapsed_seconds
        ),
        "written_bytes_per_second": rate(
            before.disk_written_bytes, after.disk_written_bytes, elapsed_seconds
        ),
        "percent": usage.percent,
        "used_bytes": usage.used,
        "total_bytes": usage.total,
    }


def _network_figures(before: Counters, after: Counters, elapsed_seconds: float) -> dict[str, float]:
    return {
        "received_bytes_per_second": rate(
            before.network_received_bytes, after.network_received_bytes, elapsed_seconds
        ),
        "sent_bytes_per_second": rate(
            before.network_sent_bytes, after.network_sent_bytes, elapsed_seconds
        ),
    }


def _load_figures() -> dict[str, float]:
    one, five, fifteen = psutil.getloadavg()
    return {
        "load_1_minute": round(one, 2),
        "load_5_minutes": round(five, 2),
        "load_15_minutes": round(fifteen, 2),
        "cores": psutil.cpu_count() or 1,
    }


def _read_counters() -> Counters:
    # psutil returns None where a system has no disk or network to show; its stubs leave that out.
    disk = cast("_Disk | None", psutil.disk_io_counters())
    network = cast("_Network | None", psutil.net_io_counters())
    return Counters(
        disk_read_bytes=disk.read_bytes if disk else 0,
        disk_written_bytes=disk.write_bytes if disk else 0,
        network_received_bytes=network.bytes_recv if network else 0,
        network_sent_bytes=network.bytes_sent if network else 0,
    )


class _Disk(Protocol):
    read_bytes: int
    write_bytes: int


class _Network(Protocol):
    bytes_recv: int
    bytes_sent: int


async def _publish_all(publish: Publish, figures: Figures) -> None:
    try:
        for channel, fields in figures.items():
            await publish(channel, orjson.dumps(fields))
    except GatewayError as error:
        # Old figures are worth nothing: this round is lost, the next one comes in a moment.
        logger.warning("demo figures were not published: %s", error)


def next_tick(due: float, interval_seconds: float, now: float) -> float:
    """Return when the tick after the one at `due` is due; those missed until `now` are left out."""
    return max(due + interval_seconds, now)


async def _ticks(interval_seconds: float) -> AsyncIterator[float]:
    """Yield the monotonic time once an interval."""
    due = time.monotonic()
    while True:
        due = next_tick(due, interval_seconds, time.monotonic())
        await asyncio.sleep(due - time.monotonic())
        yield time.monotonic()

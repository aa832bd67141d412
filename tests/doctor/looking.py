"""Looking with the doctor: settings of the gateway that is looked at, and what was found."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gateway.doctor.examine import Examination, examine
from gateway.doctor.finding import Finding, Level
from gateway.doctor.probe import Probe
from tests.edge.running import Edge
from tests.running import ENDLESS

BEAT = 0.3
SETTINGS: dict[str, Any] = {
    "streams": {"heartbeat_seconds": BEAT},
    "namespaces": {
        "default": {
            **ENDLESS, "edge_max_age_seconds": 60, "stale_if_error_seconds": 120,
        },
        "busy": {"ring_limit_events": 5, "ring_spares_young": False},
        "prices": {**ENDLESS, "reducer": "keyed"},
    },
}  # fmt: skip


async def publish(url: str, channel: str, data: bytes) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/publish/{channel}", data=data) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def look(url: str, **more: Any) -> list[Finding]:
    """Examine with little patience, for what must be found; what must not be has more of it."""
    given = {"channel": "a/b", "patience": 0.5, "idle": 0.8, "insecure": True, **more}
    return await examine(Examination(url, **given))


def faults(found: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found if one.level is Level.FAULT}


def beyond_ok(found: list[Finding]) -> list[str]:
    return [one.check for one in found if one.level is not Level.OK]


@asynccontextmanager
async def probing(edge: Edge) -> AsyncIterator[Probe]:
    async with Probe(edge.url, timeout_seconds=10) as probe:
        yield probe


async def until_ok(probe: Probe, path: str) -> None:
    async with asyncio.timeout(20):
        while (await probe.get(path, accept_encoding="br")).status != 200:
            await asyncio.sleep(0.05)


PATIENT = {"patience": 10.0, "idle": 1.0}

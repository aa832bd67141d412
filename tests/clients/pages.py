"""Pages that follow channels with `/client.js`, what they were told, and what was published.

The fixtures run in the loop of the module that imports them: its tests have one browser, and each
has a gateway, a Valkey and contexts of its own.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.clients.chromium import chromium
from tests.clients.faults import Way, way_to
from tests.clients.serving import RETRY_MS
from tests.running import Valkey, Worker, valkey, worker

ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
"""For `pytestmark` of every module that imports these fixtures."""

READER = (Path(__file__).parent / "client_pages" / "reader.js").read_text()
TRANSPORTS = ["events", "slices", "poll"]
SLICE_SECONDS = 5
SETTINGS: dict[str, Any] = {
    "streams": {"retry_ms": RETRY_MS, "heartbeat_seconds": 1.0},
    "slices": {"retry_ms": RETRY_MS},
    "namespaces": {
        "default": {"slice_seconds": SLICE_SECONDS},
        "merged": {"reducer": "merge", "slice_seconds": SLICE_SECONDS},
        "keyed": {"reducer": "keyed", "slice_seconds": SLICE_SECONDS},
        "bare": {"reducer": "none", "slice_seconds": SLICE_SECONDS},
        "short": {
            "ring_limit_events": 5,
            "ring_spares_young": False,
            "slice_seconds": SLICE_SECONDS,
        },
    },
}
PATIENT = {**SETTINGS, "streams": {"retry_ms": 60_000, "heartbeat_seconds": 1.0}}
"""Whoever waits for as long as it is told does not come back while a test looks on."""

QUICK = {"heartbeatSeconds": 1, "patienceSeconds": 2, "refreshSeconds": 0.2}
Report = dict[str, Any]
Opener = Callable[[str], Awaitable[Page]]
Case = TypeVar("Case")


# -- fixtures ---------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def redis(tmp_path: Path) -> AsyncIterator[Valkey]:
    async with valkey(tmp_path / "valkey") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit of connections."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(redis: Valkey) -> AsyncIterator[Worker]:
    async with worker(redis.url, SETTINGS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def way(gateway: Worker) -> AsyncIterator[Way]:
    async with way_to(gateway.url) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def opener(browser: Browser) -> AsyncIterator[Opener]:
    """Opens pages of a gateway's own site that know how to read, each in a context of its own."""
    contexts = []

    async def open_one(url: str) -> Page:
        contexts.append(context := await browser.new_context())
        return await open_page(await context.new_page(), url)

    yield open_one
    for context in contexts:
        await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(opener: Opener, gateway: Worker) -> Page:
    return await opener(gateway.url)


# -- many at a time ---------------------------------------------------------------------------


async def for_each(cases: Iterable[Case], scenario: Callable[[Case], Awaitable[None]]) -> None:
    """Run a scenario for all cases at the same time; a failure names its case."""

    async def run(case: Case) -> None:
        try:
            await scenario(case)
        except Exception as error:
            error.add_note(f"with {case}")
            raise

    async with asyncio.TaskGroup() as tasks:
        for case in cases:
            tasks.create_task(run(case))


# -- pages ------------------------------------------------------------------------------------


async def open_page(page: Page, url: str) -> Page:
    await page.add_init_script(READER)
    # A document that browsers may keep when they go elsewhere.
    await page.goto(f"{url}/openapi.json")
    return page


async def read(page: Page, base: str, channel: str, name: str = "", **options: Any) -> None:
    """Let a page follow a channel."""
    await page.evaluate(
        "args => read(...args)",
        [name or channel, f"{page.url.rpartition('/')[0]}/client.js", base, channel,
         {**QUICK, **options}],
    )  # fmt: skip


async def report(page: Page, name: str) -> Report:
    found: Report = await page.evaluate("name => report(name)", name)
    assert found["wrong"] == []
    return found


async def eventually(
    page: Page, name: str, condition: Callable[[Report], object], seconds: float = 25
) -> Report:
    """Return the first report that fulfils a condition."""
    found: Report = {}
    try:
        async with asyncio.timeout(seconds):
            while not condition(found := await report(page, name)):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came: {found}") from None
    return found


def order(position: str) -> tuple[int, ...]:
    return tuple(int(part) for part in position.split("-"))


async def reached(page: Page, name: str, position: str) -> Report:
    """Return when the reader has come as far as a position."""

    def has_it(found: Report) -> bool:
        return bool(found["position"]) and order(found["position"]) >= order(position)

    return await eventually(page, name, has_it)


async def connected(page: Page, name: str, transport: str) -> Report:
    def is_connected(found: Report) -> bool:
        status = found["status"]
        return bool(status["connected"] and status["transport"] == transport)

    return await eventually(page, name, is_connected)


async def state_in_page(page: Page, name: str) -> Any:
    """Return the state as JSON has it: a key `__proto__` is one like any other."""
    return json.loads(
        await page.evaluate("name => JSON.stringify(readers[name].followed.state)", name)
    )


# -- the gateway ------------------------------------------------------------------------------


async def publish(
    session: aiohttp.ClientSession, url: str, channel: str, data: object, key: str = ""
) -> str:
    """Publish JSON, but the empty text as it is: it deletes a key. Returns the position."""
    query = {"key": key} if key else {}
    body = b"" if data == "" else json.dumps(data).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    async with session.post(
        f"{url}/publish/{channel}", data=body, params=query, headers=headers
    ) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["id"])


async def publish_batch(
    session: aiohttp.ClientSession, url: str, events: list[tuple[str, str, object]]
) -> str:
    """Publish a batch of (channel, key, data); return the last position."""
    names = ("channel", "key", "data")
    lines = [json.dumps(dict(zip(names, event, strict=True))) for event in events]
    headers = {"Content-Type": "application/x-ndjson"}
    async with session.post(f"{url}/publish", data="\n".join(lines), headers=headers) as response:
        return str((await response.json())["ids"][-1])


async def snapshot(
    session: aiohttp.ClientSession, url: str, channel: str, published: str = ""
) -> Any:
    """Return a channel's document; with the position of what was just published, no older one."""
    query = {"min": published} if published else {}
    async with session.get(f"{url}/snapshots/{channel}", params=query) as response:
        return await response.json(content_type=None)


async def delete(session: aiohttp.ClientSession, url: str, channel: str) -> str:
    async with session.delete(f"{url}/channels/{channel}") as response:
        return str((await response.json())["id"])


async def three_heartbeats(session: aiohttp.ClientSession, url: str) -> None:
    """Return when a stream has been silent three times: after two seconds or more."""
    async with session.get(f"{url}/events/quiet") as stream:
        for _ in range(3):
            while await stream.content.readline() != b": heartbeat\n":
                pass

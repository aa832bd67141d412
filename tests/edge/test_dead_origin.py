"""Chromium's own EventSource behind NGINX lives through an origin that goes away and comes back."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.clients import test_browser
from tests.edge.running import nginx
from tests.running import ENDLESS, Valkey, free_port, worker

page = test_browser.page

SETTINGS: dict[str, Any] = {"namespaces": {"default": ENDLESS}}
FOLLOW = """
paths => {
    window.seen = paths.map(path => {
        const seen = { ids: [], reasons: [], dead: false };
        const source = new EventSource(path);
        source.onmessage = event => seen.ids.push(event.lastEventId);
        for (const type of ["unavailable", "gap"])
            source.addEventListener(type, ({ data }) => seen.reasons.push(JSON.parse(data).reason));
        source.onerror = () => { seen.dead = source.readyState === EventSource.CLOSED; };
        return seen;
    });
}
"""


async def test_an_eventsource_comes_back_when_its_origin_does(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, page: Any
) -> None:
    port = free_port()

    async def publish(url: str, data: bytes) -> str:
        async with session.post(f"{url}/publish/a", data=data) as answer:
            return str((await answer.json(content_type=None))["id"])

    async with nginx(tmp_path, f"127.0.0.1:{port}") as edge:
        async with worker(redis.url, SETTINGS, port=port) as origin:
            first = await publish(origin.url, b"1")
            await page.goto(f"{edge.url}/snapshots/a")
            await page.evaluate(FOLLOW, [f"/events/a?last_event_id={first}", "/slices/current/a"])
            second = await publish(origin.url, b"2")
            await page.wait_for_function("id => seen[0].ids.at(-1) === id", arg=second)
            # The epoch began within the slice: it is told so, and comes back afterwards.
            await page.wait_for_function("seen[1].reasons.includes('evicted')")
        # Nobody is there now, and whoever asks is told within a stream.
        await page.wait_for_function("seen[0].reasons.includes('unreachable')")
        assert await page.evaluate("seen.map(one => one.dead)") == [False, False]
        async with worker(redis.url, SETTINGS, port=port) as origin:
            third = await publish(origin.url, b"3")
            await page.wait_for_function("id => seen[0].ids.at(-1) === id", arg=third)
            assert await page.evaluate("seen[0].ids") == [second, third]
            assert await page.evaluate("seen.map(one => one.dead)") == [False, False]


async def test_a_follower_of_slices_comes_back_when_its_origin_does(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, page: Any
) -> None:
    port = free_port()
    settings = {"namespaces": {"default": {"slice_seconds": 5}}}
    async with nginx(tmp_path, f"127.0.0.1:{port}") as edge:
        async with worker(redis.url, settings, port=port) as origin:
            life = await origin.gateway.store.greet("default")
            while (await origin.gateway.store.greet("default")).clock.ms // 5000 <= (
                life.floor.ms // 5000
            ):
                # Until the slice in which the epoch began is over.
                async with session.post(f"{origin.url}/publish/a", data=b"0"):
                    await asyncio.sleep(0.05)
            await page.goto(f"{edge.url}/snapshots/a")
            await page.evaluate(FOLLOW, ["/slices/current/a"])
            # A page that was slow to open gets the next slice, and what comes in that one.
            while not await page.evaluate("seen[0].ids.length"):
                async with session.post(f"{origin.url}/publish/a", data=b"1"):
                    await asyncio.sleep(0.1)
        await page.wait_for_function("seen[0].reasons.includes('unreachable')")
        async with worker(redis.url, settings, port=port) as origin:
            async with session.post(f"{origin.url}/publish/a", data=b"2") as answer:
                second = (await answer.json(content_type=None))["id"]
            # It may have been away for longer than a slice, so what it gets is what comes now.
            while second not in await page.evaluate("seen[0].ids"):
                assert not await page.evaluate("seen[0].dead")
                async with session.post(f"{origin.url}/publish/a", data=b"3") as answer:
                    second = (await answer.json(content_type=None))["id"]
                await asyncio.sleep(0.1)

"""`/client.js` with storage that is shut, deleted, or not there at all."""

import asyncio

import aiohttp
from playwright.async_api import Page

from tests.clients.pages import (
    ONE_LOOP,
    QUICK,
    browser,
    connected,
    gateway,
    open_page,
    opener,
    page,
    publish,
    reached,
    read,
    redis,
    session,
)
from tests.running import Worker

__all__ = ["browser", "gateway", "opener", "page", "redis", "session"]

pytestmark = ONE_LOOP

BLOCK = """() => new Promise((resolve, reject) => {
  const first = indexedDB.open("sse-gateway", 1);
  first.onupgradeneeded = () => first.result.createObjectStore("channels");
  first.onerror = reject;
  first.onsuccess = () => {
    globalThis.kept = first.result; // Never closed, so whoever opens it after this one waits.
    indexedDB.open("sse-gateway", 2).onblocked = resolve;
  };
})"""
DELETE = """() => new Promise((resolve, reject) => {
  const deleting = indexedDB.deleteDatabase("sse-gateway");
  deleting.onsuccess = () => resolve("deleted");
  deleting.onblocked = () => resolve("blocked");
  deleting.onerror = reject;
})"""


async def test_a_database_that_never_opens_does_not_keep_a_page_from_its_channel(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    last = await publish(session, gateway.url, "plain/a", 1)
    other = await open_page(await page.context.new_page(), gateway.url)
    await other.evaluate(BLOCK)
    await read(page, gateway.url, "plain/a", persist=True)
    found = await reached(page, "plain/a", last)
    assert found["state"] == 1
    await connected(page, "plain/a", "events")


async def test_what_is_kept_may_be_deleted_under_a_page_and_is_kept_again(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    await read(page, gateway.url, "plain/a", persist=True)
    await connected(page, "plain/a", "events")
    other = await open_page(await page.context.new_page(), gateway.url)
    assert await other.evaluate(DELETE) == "deleted"
    last = await publish(session, gateway.url, "plain/a", 1)
    await reached(page, "plain/a", last)
    there = "indexedDB.databases().then((all) => all.length)"
    async with asyncio.timeout(25):
        while not await other.evaluate(there):
            await asyncio.sleep(0.02)
    await page.goto("about:blank")
    await page.goto(f"{gateway.url}/openapi.json")
    asked = gateway.gateway.requests["/snapshots"]
    await read(page, gateway.url, "plain/a", persist=True)
    assert (await reached(page, "plain/a", last))["state"] == 1
    assert gateway.gateway.requests["/snapshots"] == asked


FRAME = """([module, base, channel, options]) => new Promise((resolve) => {
  const frame = document.createElement("iframe");
  frame.sandbox = "allow-scripts";
  addEventListener("message", ({ data }) => resolve(data));
  frame.srcdoc = `<script type="module">
    import { follow } from ${JSON.stringify(module)};
    const wrong = [];
    addEventListener("unhandledrejection", ({ reason }) => wrong.push(String(reason)));
    const followed = follow(...${JSON.stringify([base, channel, options])});
    followed.addEventListener("status", ({ detail }) => {
      if (!detail.connected || !followed.position) return;
      const told = followed.state;
      followed.close();
      // A turn or two later than whatever would be thrown away.
      setTimeout(() => parent.postMessage([told, wrong], "*"), 200);
    });
  <\\/script>`;
  document.documentElement.append(frame);
})"""


async def test_a_frame_that_may_share_and_keep_nothing_follows_all_the_same(
    gateway: Worker, session: aiohttp.ClientSession, page: Page
) -> None:
    await publish(session, gateway.url, "plain/a", "told")
    options = {**QUICK, "share": True, "persist": True}
    async with asyncio.timeout(25):
        found = await page.evaluate(
            FRAME, [f"{gateway.url}/client.js", gateway.url, "plain/a", options]
        )
    assert found == ["told", []]

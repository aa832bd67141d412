"""A real Chromium for tests, driven by Playwright."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, async_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find_chromium() -> str:
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert binary is not None, "the tests need Chromium"
    return binary


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser that keeps pages for the way back; each context is one of its own."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(
            executable_path=find_chromium(),
            args=ARGUMENTS,
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield running
        await running.close()


@asynccontextmanager
async def chromium_as_people_have_it(profile: Path) -> AsyncIterator[BrowserContext]:
    """Run a browser whose pages are hidden when another one is in front."""
    process = await asyncio.create_subprocess_exec(
        find_chromium(), "--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}",
        *ARGUMENTS, "about:blank",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output = process.stderr
    assert output is not None
    async with asyncio.timeout(30):
        while not (found := re.search(rb"listening on (ws:\S+)", line := await output.readline())):
            assert line, "Chromium did not start"
    drain = asyncio.create_task(output.read())
    async with async_playwright() as playwright:
        running = await playwright.chromium.connect_over_cdp(found[1].decode(), no_defaults=True)
        yield running.contexts[0]
        await running.close()
    process.terminate()
    await process.wait()
    await drain

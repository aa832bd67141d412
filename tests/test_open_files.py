"""The limit of open files: raised at the start, and never promised to more streams than fit."""

import asyncio
import logging
import os
import re
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.app import build_gateway
from gateway.open_files import bound_streams, raise_limit
from gateway.settings import Settings
from tests.running import Valkey, follow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("wanted", "files_limit", "bound"),
    [
        (10_000, None, 10_000),
        (10_000, 1_048_576, 10_000),
        (15_000, 20_000, 15_000),
        (20_000, 20_000, 19_000),
        (10_000, 10_512, 9_987),
        (10_000, 4096, 3584),
        (10_000, 1024, 512),
        (10_000, 256, 128),
        (100, 256, 100),
    ],
)
def test_streams_leave_a_reserve_of_files(wanted: int, files_limit: int | None, bound: int) -> None:
    assert bound_streams(wanted, files_limit) == bound


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield soft, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_is_raised_to_the_hard_one(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    assert raise_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert raise_limit() == hard


def test_a_system_without_such_limits_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert raise_limit() is None


async def test_a_setting_that_cannot_be_had_is_said_at_the_start(
    redis: Valkey, caplog: pytest.LogCaptureFixture, limits: tuple[int, int]
) -> None:
    _, hard = limits
    with caplog.at_level(logging.WARNING, "gateway.app"):
        gateway = build_gateway(Settings(streams={"subscribers_limit": 2**40}), redis.url)
        await gateway.store.aclose()
    [line] = [record.getMessage() for record in caplog.records]
    assert "streams.subscribers_limit is 1099511627776" in line
    assert f"open files, {hard}, leaves room for {bound_streams(2**40, hard)}" in line


async def test_a_setting_that_can_be_had_is_not_spoken_of(
    redis: Valkey, caplog: pytest.LogCaptureFixture, limits: tuple[int, int]
) -> None:
    with caplog.at_level(logging.WARNING, "gateway.app"):
        gateway = build_gateway(Settings(streams={"subscribers_limit": 10}), redis.url)
        await gateway.store.aclose()
    assert caplog.records == []


@asynccontextmanager
async def serving(redis: Valkey, soft: int, hard: int, log: Path) -> AsyncIterator[str]:
    """Run `sse-gateway serve` below a limit of open files; yields its address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "GATEWAY_REDIS": redis.url}
    command = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", command, "sh",
            sys.executable, "-m", "gateway", "serve", "--port", "0", "--log-level", "debug",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            env=environment, cwd=log.parent,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (
                found := re.search(rb"serves (\S+)", line := await process.stdout.readline())
            ):
                assert line, log.read_text()
        yield found[1].decode()
    finally:
        process.terminate()
        await process.communicate()


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/readyz") as answer:
        return answer.status == 200


async def test_no_more_streams_are_taken_than_fit(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    log = tmp_path / "gateway.log"
    async with serving(redis, 80, 120, log) as url, AsyncExitStack() as stack:
        while not await is_ready(session, url):
            pass
        for _ in range(60):
            stream = await stack.enter_async_context(follow(session, f"{url}/events/news"))
            first = await stream.next()
            assert first is not None
            assert first.type == "", first
        refused = await stack.enter_async_context(follow(session, f"{url}/events/news"))
        block = await refused.next()
        assert block is not None
        assert block.type == "unavailable"
        assert '"overload"' in (block.data or "")
        async with session.post(f"{url}/publish/news", json=1) as answer:
            assert answer.status == 200, await answer.text()
    text = log.read_text()
    assert "raised from 80 to 120" in text
    assert "leaves room for 60" in text
    assert re.search("written by the loop in (C|Python)", text)

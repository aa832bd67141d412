"""A reader that vanishes without a word is noticed, whichever way its stream is written."""

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from tests.running import Valkey, until, worker


@dataclass(frozen=True)
class Cable:
    """A network namespace, and the two ends of the link to it."""

    namespace: str
    here: str
    there: str

    def cut(self) -> None:
        """Take the far end down: nothing that is sent reaches anybody, no FIN, no RST."""
        ip("-n", self.namespace, "link", "set", "far", "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and the program ip (Debian: iproute2)")
    # 198.18.0.0/15 is set aside for tests of networks: RFC 2544.
    network = f"198.18.{random.randrange(256)}.{4 * random.randrange(64)}"
    prefix, _, last = network.rpartition(".")
    token = f"{os.getpid():x}{random.randrange(4096):03x}"
    namespace, near = f"gateway-{token}", f"gw{token}"
    made = Cable(namespace, f"{prefix}.{int(last) + 1}", f"{prefix}.{int(last) + 2}")
    try:
        ip("netns", "add", namespace)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace may be made here: {error.stderr.strip()}")
    with ExitStack() as stack:
        stack.callback(ip, "netns", "del", namespace)
        ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", namespace)
        # By itself it would go only with the namespace, which lasts as long as its dead sockets.
        stack.callback(ip, "link", "del", near)
        ip("addr", "add", f"{made.here}/30", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", namespace, "addr", "add", f"{made.there}/30", "dev", "far")
        ip("-n", namespace, "link", "set", "far", "up")
        yield made


@asynccontextmanager
async def reader(cable: Cable, url: str) -> AsyncIterator[asyncio.StreamReader]:
    """Follow a stream from the far end of the cable."""
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", cable.namespace, "curl", "-sN", "--noproxy", "*", url,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.parametrize("transport", ["socket", "response"])
@pytest.mark.parametrize("heartbeat_seconds", [0.5, 600.0])
async def test_a_reader_behind_a_cut_cable_is_noticed(
    redis: Valkey,
    cable: Cable,
    session: aiohttp.ClientSession,
    transport: str,
    heartbeat_seconds: float,
) -> None:
    streams = {
        "vanished_seconds": 2.0,
        "heartbeat_seconds": heartbeat_seconds,
        "transport": transport,
    }
    settings = {"host": cable.here, "streams": streams}
    async with (
        worker(redis.url, settings) as running,
        reader(cable, f"{running.url}/events/news") as first,
        reader(cable, f"{running.url}/events/news") as second,
    ):
        hub = running.gateway.hub
        for lines in (first, second):
            async with asyncio.timeout(20):
                assert (await lines.readline()).startswith(b"retry:")
        assert hub.subscribers == 2
        async with session.post(f"{running.url}/publish/news", json="seen") as answer:
            assert answer.status == 200
        for lines in (first, second):
            async with asyncio.timeout(20):
                while await lines.readline() != b'data: "seen"\n':
                    pass
        cable.cut()
        await until(lambda: hub.subscribers == 0)

"""A gateway with real edges before it, each on its core, and what they cost; it reads nothing."""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import aiohttp

from benchmarks.machine import core_busy_seconds, cpu_seconds
from benchmarks.peers.base import Server
from benchmarks.peers.gateway import GatewayPeer, valkey
from tests.edge.running import nginx, varnish

T = TypeVar("T")
ESTABLISHED = "01"  # The kernel's number of the state in /proc/net/tcp.
LIMIT = "            limit_req zone=requests burst=400 nodelay;\n"


@dataclass
class Plan:
    """How everything is measured; `quick` is for trying whether it runs."""

    quick: bool = False
    core: int = 0
    load_core: int = 1

    def pick(self, full: T, quick: T) -> T:
        """Return one of two sizes."""
        return quick if self.quick else full


@dataclass
class Rig:
    """A gateway that runs, the addresses of its edges, and a client to publish with."""

    server: Server
    session: aiohttp.ClientSession
    core: int
    nginx: str = ""
    varnish: str = ""
    published: dict[str, int] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"http://{self.server.host}:{self.server.port}"

    async def publish(self, channel: str, data: bytes) -> str:
        """Publish one event; return its id."""
        url = self.origin + self.server.publish_path(channel)
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=data, headers=headers) as answer:
            if answer.status != 200:
                raise RuntimeError(f"publish: {answer.status} {await answer.text()}")
            return str((await answer.json())["id"])

    async def publish_numbered(self, channel: str) -> str:
        """Publish the channel's next event with its number and the time."""
        number = self.published.get(channel, 0)
        self.published[channel] = number + 1
        return await self.publish(channel, b'{"n":%d,"t":%d}' % (number, time.perf_counter_ns()))

    async def publish_steadily(
        self, channel: str, per_second: float, until: Callable[[], bool]
    ) -> int:
        """Publish at a steady rate until a condition holds; return how many."""
        begun, count = time.monotonic(), 0
        while not until():
            await self.publish_numbered(channel)
            count += 1
            await asyncio.sleep(max(0.0, begun + count / per_second - time.monotonic()))
        return count

    async def until_sliced(self, channel: str) -> None:
        """Wait until the slice in which the epoch began is over: nobody vouches for that one."""
        while True:
            async with self.session.head(f"{self.origin}/slices/current/{channel}") as answer:
                if "max-age" in answer.headers.get("Cache-Control", ""):
                    return
            await asyncio.sleep(0.1)

    async def running_slice(self, channel: str) -> str:
        """Return the path of the slice of now, by its number: the epoch may have begun in it."""
        async with self.session.get(f"{self.origin}/snapshots/{channel}") as answer:
            document = await answer.json(content_type=None)
        number = int(time.time()) // int(document["slice_seconds"])
        return f"/slices/{document['epoch']}/{number}/{channel}"

    async def requests(self, route: str) -> int:
        """Return how many requests the gateway has had on a route."""
        async with self.session.get(self.origin + "/metrics") as answer:
            text = await answer.text()
        found = re.search(
            rf'^sse_gateway_http_requests_total{{route="{re.escape(route)}"}} ([0-9.e+]+)$',
            text, re.MULTILINE,
        )  # fmt: skip
        return round(float(found[1])) if found else 0

    def connections(self) -> int:
        """Return how many connections the gateway has."""
        wanted = f":{self.server.port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(line[1].endswith(wanted) and line[3] == ESTABLISHED for line in lines)


class Used:
    """What the gateway uses of the processor within the block, and what else ran on its core."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.seconds = self.cpu = self.others = 0.0

    def _read(self) -> tuple[float, float, float]:
        return (
            time.monotonic(), cpu_seconds(self._rig.server.pid), core_busy_seconds(self._rig.core)
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        used = [after - before for after, before in zip(self._read(), self._before, strict=True)]
        self.seconds, self.cpu = used[:2]
        self.others = max(0.0, used[2] - self.cpu) / self.seconds


@contextmanager
def on_core(core: int, back: int) -> Iterator[None]:
    """Start what the block starts on one core, and go on on another."""
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {back})


@asynccontextmanager
async def rig(
    plan: Plan,
    environment: Mapping[str, str] | None = None,
    *,
    edges: str = "nginx varnish",
    purge_port: int = 0,
    edit: Callable[[str], str] = lambda text: text,
) -> AsyncIterator[Rig]:
    """Run a gateway and its edges on the server's core, the store on the load's.

    With `purge_port` NGINX's internal address listens there too: it is known before the gateway is.
    """

    def change(text: str) -> str:
        text = text.replace("/access.log edge;", "/access.log edge buffer=64k flush=5s;")
        if purge_port:
            allow = "        allow 127.0.0.1;\n"
            assert allow in text
            text = text.replace(allow, f"        listen 127.0.0.1:{purge_port};\n{allow}", 1)
        return edit(text)

    async with AsyncExitStack() as stack:
        store = stack.enter_context(valkey(plan.load_core))
        server = stack.enter_context(GatewayPeer(environment).worker(plan.core, store))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-")))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        found = Rig(server, session, plan.core)
        origin = f"{server.host}:{server.port}"
        with on_core(plan.core, plan.load_core):
            if "nginx" in edges:
                started = await stack.enter_async_context(
                    nginx(folder / "nginx", origin, edit=change)
                )
                found.nginx = started.url
            if "varnish" in edges:
                started = await stack.enter_async_context(varnish(folder / "varnish", origin))
                found.varnish = started.url
        yield found


def without_limit(text: str) -> str:
    """Return the configuration without the limit of requests: one address asks for all here."""
    assert LIMIT in text
    return text.replace(LIMIT, "")

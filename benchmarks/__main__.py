"""`python -m benchmarks publish`: how fast the gateway takes events in, over HTTP.

The gateway and its Valkey run on one core, the load on another (`taskset`); medians of a few
runs. Nothing is asserted: it prints what it saw.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson

BATCH_EVENTS = 1000
CALLERS = 32
EVENT = {"home": 1, "away": 0, "minute": 61, "note": "x" * 140}  # About 200 bytes as JSON.
CHANNELS = 50


def pinned(core: int) -> list[str]:
    """Return the command prefix that keeps a process on one core, where there are two."""
    return ["taskset", "-c", str(core)] if (os.cpu_count() or 1) > 1 else []


@contextmanager
def gateway() -> Iterator[str]:
    """Run a gateway with an embedded Valkey on core 0 and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *pinned(0), sys.executable, "-m", "gateway", "serve", "--port", str(port),
            "--data-dir", str(Path(folder) / "data"), "--log-level", "warning",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


async def until_ready(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the gateway follows its store."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def publish_batches(session: aiohttp.ClientSession, url: str, seconds: float) -> float:
    """Return events/s by NDJSON batches, two requests under way at any time."""
    lines = [
        orjson.dumps({"channel": f"bench/{number % CHANNELS}", "data": EVENT})
        for number in range(BATCH_EVENTS)
    ]
    body, headers = b"\n".join(lines), {"Content-Type": "application/x-ndjson"}
    return BATCH_EVENTS * await repeat(session, f"{url}/publish", body, headers, 2, seconds)


async def publish_singly(session: aiohttp.ClientSession, url: str, seconds: float) -> float:
    """Return events/s by one event a request."""
    body, headers = orjson.dumps(EVENT), {"Content-Type": "application/json"}
    return await repeat(session, f"{url}/publish/bench/0", body, headers, CALLERS, seconds)


async def repeat(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: dict[str, str],
    callers: int,
    seconds: float,
) -> float:
    """Return answered requests/s of `callers` that each send the next after an answer."""
    answered = 0
    started = time.perf_counter()

    async def call() -> None:
        nonlocal answered
        while time.perf_counter() - started < seconds:
            async with session.post(url, data=body, headers=headers) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{url} answered {response.status}")
            answered += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return answered / (time.perf_counter() - started)


async def measure(runs: int, seconds: float) -> dict[str, list[float]]:
    """Return events/s of every run, by way of publishing."""
    figures: dict[str, list[float]] = {"batches of 1,000": [], "singly, 32 callers": []}
    with gateway() as url:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await until_ready(session, url)
            for _ in range(runs):
                figures["batches of 1,000"].append(await publish_batches(session, url, seconds))
                figures["singly, 32 callers"].append(await publish_singly(session, url, seconds))
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=["publish"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    figures = asyncio.run(measure(options.runs, options.seconds))
    print(f"publish, events/s acknowledged, about 200 bytes each, median of {options.runs}")
    for name, values in figures.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"  {name:<20} {statistics.median(values):>10,.0f}   ({spread})")


if __name__ == "__main__":
    main()

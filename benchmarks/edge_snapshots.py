"""Snapshots at the edge: reads a second, what they cost the origin, and how fresh they are."""

import asyncio
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from benchmarks.edge_rig import Plan, Rig, rig, without_limit
from benchmarks.edge_tables import Found, percentile
from benchmarks.peers.processes import free_port, pinned

CODINGS = ("br", "zstd", "gzip", "identity")
CONNECTIONS = 64
OWN = {"date", "server", "content-length", "last-modified", "etag", "connection", "x-cache"}
# Each request asks for the next coding; what is not 200 is counted by wrk itself.
ASK_IN_TURNS = """
local codings, at = {"br", "zstd", "gzip", "identity"}, 0
request = function()
  at = at % 4 + 1
  return wrk.format("GET", nil, {["Accept-Encoding"] = codings[at]})
end
"""


async def wrk(plan: Plan, url: str, seconds: float, script: str = "") -> tuple[int, float, str]:
    """Read as fast as possible; return how many, how many a second, and what went wrong."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = [
            *pinned(plan.load_core), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s",
            *(["-s", file.name] if script else []), url,
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        text = (await process.communicate())[0].decode()
    count = re.search(r"(\d+) requests in", text)
    rate = re.search(r"Requests/sec: +([0-9.]+)", text)
    if not count or not rate:
        raise RuntimeError(f"wrk said: {text}")
    wrong = [
        line.strip() for line in text.splitlines() if "Non-2xx" in line or "Socket err" in line
    ]
    return int(count[1]), float(rate[1]), ", ".join(wrong)


async def snapshots(plan: Plan) -> Found:
    """Reads a second: the gateway itself, an NGINX hit, a static file of that NGINX."""
    found = Found(
        "Snapshot reads per second",
        ("body", "origin", "NGINX hit", "NGINX static file", "hit / static", "hit / origin"),
        notes=[
            "`wrk`, 64 connections kept alive; medians of rounds in turns. The file has the size "
            "and the headers of the hit; both without the limit of requests per address."
        ],
    )
    with tempfile.TemporaryDirectory(prefix="static-") as folder:
        Path(folder).chmod(0o755)
        for size in plan.pick((200, 2_000, 20_000), (2_000,)):
            await _snapshots_of(plan, found, Path(folder), size)
    return found


async def _snapshots_of(plan: Plan, found: Found, folder: Path, size: int) -> None:
    settings = {"GATEWAY_NAMESPACES__DEFAULT__EDGE_MAX_AGE_SECONDS": "600"}
    location = (
        "            location = /static.json { root %s; default_type application/json; %s }\n"
    )
    marker = "        location /events {\n"
    async with rig(plan, settings, edges="") as alone:
        await alone.publish("board", json.dumps({"text": "x" * size}).encode())
        async with alone.session.get(
            f"{alone.origin}/snapshots/board", headers={"Accept-Encoding": "identity"}
        ) as answer:
            body, headers = await answer.read(), answer.headers
    (folder / "static.json").write_bytes(body)
    adds = " ".join(
        f"add_header {name} '{value}';"
        for name, value in headers.items()
        if name.lower() not in OWN | {"content-type"}
    )
    text = location % (folder, adds + " add_header X-Cache HIT;")

    def edit(old: str) -> str:
        assert marker in old
        return without_limit(old).replace(marker, text + marker, 1)

    async with rig(plan, settings, edges="nginx", edit=edit) as edge:
        await edge.publish("board", json.dumps({"text": "x" * size}).encode())
        urls = {
            "origin": f"{edge.origin}/snapshots/board",
            "hit": f"{edge.nginx}/snapshots/board",
            "static": f"{edge.nginx}/static.json",
        }
        if unlike := await _unlike(edge, urls["hit"], urls["static"]):
            found.problems.append(f"{size:,} bytes: hit and file differ: {unlike}")
        rates: dict[str, list[float]] = {name: [] for name in urls}
        for turn in range(1 + plan.pick(5, 1)):
            for name, url in urls.items():
                _, rate, wrong = await wrk(plan, url, plan.pick(2, 1))
                # The first round warms up.
                if turn:
                    rates[name].append(rate)
                if wrong:
                    found.problems.append(f"{name}, {size:,} bytes: {wrong}")
        if (asked := await edge.requests("/snapshots")) < 1:
            found.problems.append(f"{asked} requests came to the origin")
    origin, hit, static = (statistics.median(rates[name]) for name in urls)
    found.rows.append((f"{len(body):,} bytes", origin, hit, static, hit / static, hit / origin))


async def _unlike(edge: Rig, hit: str, static: str) -> str:
    """Return in what the two answers that are compared differ, as a reader sees them."""
    seen = []
    for url in (hit, hit, static):
        async with edge.session.get(url, headers={"Accept-Encoding": "identity"}) as answer:
            names = {name.lower() for name in answer.headers} - {"last-modified", "accept-ranges"}
            seen.append((answer.status, len(await answer.read()), names))
    (_, size, names), (status, file_size, file_names) = seen[1:]
    if status != 200 or size != file_size:
        return f"{size} bytes, {file_size} bytes with status {status}"
    return ", ".join(sorted(names ^ file_names))


def _purging(port: int) -> Mapping[str, str]:
    return {
        "GATEWAY_NAMESPACES__DEFAULT__PURGE": "nginx",
        "GATEWAY_NAMESPACES__DEFAULT__EDGE_MAX_AGE_SECONDS": "600",
        "GATEWAY_PURGE__NGINX_URLS": json.dumps([f"http://127.0.0.1:{port}"]),
    }


def _ways() -> list[tuple[str, Mapping[str, str], int]]:
    port = free_port()
    return [("no purge, 1 s of life", {}, 0), ("purge, 600 s of life", _purging(port), port)]


async def requests(plan: Plan) -> Found:
    """What the origin gets of many reads at the edge while 10 events a second are published."""
    found = Found(
        "Origin requests of reads at the edge, 10 publishes/s",
        ("", "reads", "seconds", "publishes", "origin requests", "per 100,000 reads",
         "per coding and publish"),
        notes=["Readers ask for br, zstd, gzip and identity in turns."],
    )  # fmt: skip
    for name, settings, port in _ways():
        async with rig(plan, settings, edges="nginx", purge_port=port, edit=without_limit) as edge:
            await edge.publish_numbered("board")
            url = f"{edge.nginx}/snapshots/board"
            await wrk(plan, url, 1, ASK_IN_TURNS)
            reads = publishes = 0
            before, begun = await edge.requests("/snapshots"), time.monotonic()
            while reads < plan.pick(100_000, 1_000):
                reading = asyncio.create_task(wrk(plan, url, plan.pick(10, 2), ASK_IN_TURNS))
                publishes += await edge.publish_steadily("board", 10, reading.done)
                count, _, wrong = await reading
                reads += count
                if wrong:
                    found.problems.append(f"{name}: {wrong}")
            seconds = time.monotonic() - begun
            asked = await edge.requests("/snapshots") - before
            each = asked / publishes / len(CODINGS)
            found.rows.append(
                (name, reads, seconds, publishes, asked, asked * 100_000 / reads, each)
            )
    return found


async def freshness(plan: Plan) -> Found:
    """How long after a publish the new snapshot is there at the edge."""
    found = Found(
        "Freshness: publish to new snapshot at the edge, ms",
        ("", "publishes", "p50", "p99", "longest"),
        notes=[
            "Read through NGINX every 5 ms; each channel gets an event every 1 to 2 s "
            "(`purge.min_interval_ms` is 1,000)."
        ],
    )
    for name, settings, port in _ways():
        async with rig(plan, settings, edges="nginx", purge_port=port, edit=without_limit) as edge:
            each = [_fresh(edge, f"fresh/{at}", plan.pick(30, 3)) for at in range(4)]
            took = [ms for many in await asyncio.gather(*each) for ms in many]
            late = sum(ms == float("inf") for ms in took)
            if late:
                found.problems.append(f"{name}: {late} were not there after 20 s")
            found.rows.append(
                (name, len(took), percentile(took, 0.5), percentile(took, 0.99), max(took))
            )
    return found


async def _fresh(edge: Rig, channel: str, count: int) -> list[float]:
    """Return the milliseconds of each publish; infinity for one that did not come."""
    took: list[float] = []
    url = f"{edge.nginx}/snapshots/{channel}"
    for number in range(-1, count):
        begun = time.perf_counter()
        await edge.publish(channel, b'{"n":%d}' % number)
        while await _state(edge.session, url) != number:
            if time.perf_counter() - begun > 20:
                return [*took, float("inf")]
            await asyncio.sleep(0.005)
        # The first was to a channel that was not known yet.
        if number >= 0:
            took.append((time.perf_counter() - begun) * 1000)
        # Not in step with the life of what is cached, which begins with the first read.
        pause = time.monotonic() + random.uniform(1.0, 2.0)
        while time.monotonic() < pause:
            await _state(edge.session, url)
            await asyncio.sleep(0.005)
    return took


async def _state(session: aiohttp.ClientSession, url: str) -> int | None:
    async with session.get(url) as answer:
        document = json.loads(await answer.read())
    # A 404 says nothing yet; the state is kept as what was published.
    state = document.get("state")
    if isinstance(state, str):
        state = json.loads(state)
    return int(state["n"]) if isinstance(state, dict) else None

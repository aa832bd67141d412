"""`python -m benchmarks edge`: what caches before the gateway serve, and what is left for it to do.

Slower than hoped is a figure; a run in which an event was missed, doubled or out of order fails.
"""

import argparse
import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.edge_bytes import bytes_on_the_wire
from benchmarks.edge_rig import Plan
from benchmarks.edge_snapshots import freshness, requests, snapshots
from benchmarks.edge_streams import load, longpoll, slices
from benchmarks.edge_tables import Found, medians, render
from benchmarks.machine import describe_machine
from gateway.open_files import raise_limit

PARTS: dict[str, Callable[[Plan], Awaitable[Found]]] = {
    "snapshots": snapshots,
    "requests": requests,
    "bytes": bytes_on_the_wire,
    "freshness": freshness,
    "load": load,
    "slices": slices,
    "longpoll": longpoll,
}
PROGRAMS = {"nginx": "nginx", "varnishd": "varnish", "wrk": "wrk", "openssl": "openssl"}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; returns the exit status."""
    options = parse(arguments)
    if lacking := [package for name, package in PROGRAMS.items() if not shutil.which(name)]:
        print(f"edge: apt-get install {' '.join(lacking)}", file=sys.stderr)
        return 2
    # Leave through all blocks, so that no server outlives this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise_limit()
    plan = Plan(options.quick, options.core, options.load_core)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {plan.load_core})
    try:
        parts = options.part or list(PARTS)
        found = measure(plan, parts, options.repeat, options.json, arguments)
    finally:
        os.sched_setaffinity(0, cores)
    return 1 if any(part.problems for part in found.values()) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks edge", description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="repeatable")
    parser.add_argument("--quick", action="store_true", help="short and small: does it run")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="medians of N runs")
    parser.add_argument("--core", type=int, default=0, help="the gateway's and the edges'")
    parser.add_argument("--load-core", type=int, default=1, help="the readers' and Redis's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the tables, and the machine")
    return parser.parse_args(arguments)


def measure(
    plan: Plan, parts: Sequence[str], repeat: int, file: Path | None, arguments: Sequence[str]
) -> dict[str, Found]:
    """Measure some parts in their order; each is printed, and written, as it is there."""
    found: dict[str, Found] = {}
    for name in parts:
        try:
            found[name] = medians([asyncio.run(_run(plan, name)) for _ in range(repeat)])
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            # The other parts are still worth having.
            found[name] = Found(name, ("",), problems=[f"{type(error).__name__}: {error}"])
        print(f"{render(found[name])}\n", flush=True)
        if file:
            document = {
                "command": shlex.join(["python", "-m", "benchmarks", "edge", *arguments]),
                "machine": describe_machine(),
                "parts": {name: asdict(part) for name, part in found.items()},
            }
            file.write_text(json.dumps(document, indent=1) + "\n")
    return found


async def _run(plan: Plan, name: str) -> Found:
    return await PARTS[name](plan)

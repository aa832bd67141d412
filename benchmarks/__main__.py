"""`python -m benchmarks WHAT`: this gateway beside its peers, each server and the load pinned.

Slower than hoped is a figure; a run that was not complete and in order makes the command fail.
"""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import edge
from benchmarks.bench import Bench, Contender, Sample, Scenario, run_scenario
from benchmarks.compiling import NoCompilerError
from benchmarks.load import compile_load
from benchmarks.machine import describe_machine
from benchmarks.peers import PEERS
from benchmarks.scenarios import SCENARIOS
from benchmarks.table import render

DEFAULT_PEERS = "nchan"


def main() -> int:
    """Measure, print, write; returns the exit status."""
    if sys.argv[1:2] == ["edge"]:
        return edge.main(sys.argv[2:])
    options = parse()
    # Leave through all blocks, so that no server outlives this.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        compile_load()
    except NoCompilerError as error:
        print(error, file=sys.stderr)
        return 2
    bench = Bench(options.runs, options.seconds, options.core, options.load_core)
    names = list(SCENARIOS) if options.what == "all" else [options.what]
    asked = [name for name in options.peers.split(",") if name and name != "none"]
    if unknown := [name for name in asked if name != "all" and name not in PEERS]:
        print(f"unknown peers: {', '.join(unknown)}; known: {', '.join(PEERS)}", file=sys.stderr)
        return 2
    found: dict[str, list[Sample]] = {}
    excused: set[str] = set()
    for name in names:
        scenario = SCENARIOS[name]
        contenders = able(choose(scenario, asked, options), excused)
        found[name] = list(run_scenario(bench, scenario, contenders, say))
        print(f"\n{render(scenario, found[name])}\n", flush=True)
        if options.json:
            write_json(options.json, bench, found)
    if options.chart:
        from benchmarks.chart import NoMatplotlibError, draw

        try:
            draw(options.chart, [(SCENARIOS[name], samples) for name, samples in found.items()])
        except NoMatplotlibError as error:
            print(error, file=sys.stderr)
            return 2
    failed = any(sample.problems for samples in found.values() for sample in samples)
    # Last: its edges are no peers, and its tables are its own.
    edge_status = edge.main([]) if options.what == "all" else 0
    return 1 if failed else edge_status


def parse() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*SCENARIOS, "edge", "all"])
    parser.add_argument(
        "--peers",
        default=DEFAULT_PEERS,
        help=f"to compare with, by commas: {', '.join(PEERS)}, all or none; default: %(default)s",
    )
    parser.add_argument("--runs", type=int, help="rounds; default: 3, of slow 5")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--core", type=int, default=0, help="the server's")
    parser.add_argument("--load-core", type=int, default=1, help="the load's and Redis's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="GATEWAY_... of ours"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:SETTING=VALUE,...",
        help="one more gateway, with these settings",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run, and the machine")
    parser.add_argument("--chart", type=Path, metavar="FILE.png")
    return parser.parse_args()


def choose(
    scenario: Scenario, asked: Sequence[str], options: argparse.Namespace
) -> list[Contender]:
    """Return who takes part: ours first, then the peers that the scenario makes sense for."""
    own = dict(setting.split("=", 1) for setting in options.set)
    chosen = [Contender("gateway", own)]
    for variant in options.variant:
        name, _, settings = variant.partition(":")
        more = dict(setting.split("=", 1) for setting in settings.split(",") if setting)
        chosen.append(Contender(f"gateway:{name}", {**own, **more}))
    possible = [scenario.reference, *scenario.peers] if scenario.reference else scenario.peers
    wanted = set(possible) if "all" in asked else {*asked, scenario.reference} if asked else set()
    return [*chosen, *(Contender(name) for name in possible if name in wanted)]


def able(contenders: Sequence[Contender], excused: set[str]) -> list[Contender]:
    """Return those that can run, and say once what the others lack."""
    found = []
    for contender in contenders:
        lack = contender.peer({}).missing()
        if not lack:
            found.append(contender)
        elif lack not in excused:
            excused.add(lack)
            print(f"not here: {lack}")
    return found


def say(text: str) -> None:
    """Tell how far it is, where somebody is watching."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\r", file=sys.stderr, flush=True)


def write_json(path: Path, bench: Bench, found: dict[str, list[Sample]]) -> None:
    """Write every run, what it was measured on, and how."""
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "machine": describe_machine(),
        "options": asdict(bench),
        "scenarios": {
            name: {
                "title": SCENARIOS[name].title,
                "samples": [asdict(sample) for sample in samples],
            }
            for name, samples in found.items()
        },
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())

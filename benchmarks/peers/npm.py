"""The peer from npm: better-sse on Node, installed into its own folder when it is first asked."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.base import Server, local_server
from benchmarks.peers.processes import free_port, serving

FOLDER = Path(__file__).with_name("better_sse")
OLDEST_NODE = 20
INSTALL_SECONDS = 120


class BetterSse:
    """better-sse behind Node's own HTTP server."""

    name = "better-sse"

    def missing(self) -> str:
        """Return what to install, or nothing when it can run; tries `npm ci` before it says so."""
        node = shutil.which("node")
        if node is None or _node_version(node) < OLDEST_NODE:
            return f"better-sse needs Node {OLDEST_NODE} or newer: apt-get install nodejs npm"
        if _installed() or _install():
            return ""
        return "better-sse is missing: cd benchmarks/peers/better_sse && npm ci"

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Server]:
        """Run it on `core`; it has nothing for the load's core to do."""
        port = free_port()
        with serving(["node", "server.mjs", str(port)], core, port, FOLDER) as process:
            yield local_server(port, process.pid)


def _node_version(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.lstrip("v").split(".")[0])


def _installed() -> bool:
    """Say whether what is installed is what the lock file asks for."""
    record = FOLDER / "node_modules" / ".package-lock.json"
    lock = FOLDER / "package-lock.json"
    return record.exists() and record.stat().st_mtime >= lock.stat().st_mtime


def _install() -> bool:
    npm = shutil.which("npm")
    if npm is None:
        return False
    try:
        command = [npm, "ci", "--no-progress"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and _installed()

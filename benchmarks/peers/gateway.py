"""This gateway as the benchmarks run it: one worker, and a Valkey of its own elsewhere."""

import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.base import Server, local_server
from benchmarks.peers.processes import (
    END_SECONDS,
    HOST,
    START_SECONDS,
    free_port,
    pinned,
    serving,
)
from gateway.store.data_directory import EmbeddedServerError
from gateway.store.server_process import find_binary

ROOT = Path(__file__).parents[2]
DEFAULTS = {"GATEWAY_STREAMS__SUBSCRIBERS_LIMIT": "100000", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Store:
    """A Valkey that runs."""

    url: str
    pid: int


class GatewayPeer:
    """One worker of this gateway; settings are given as they stand in the environment."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, name: str = "gateway"
    ) -> None:
        self.name = name
        self._environment = {**DEFAULTS, **(environment or {})}

    def missing(self) -> str:
        """Return what to install, or nothing when it can run."""
        try:
            find_binary()
        except EmbeddedServerError as error:
            return f"{self.name}: {error}"
        return ""

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Server]:
        """Run a Valkey on `load_core` and the gateway on `core`, until the block ends."""
        with valkey(load_core) as store, self.worker(core, store) as server:
            yield server

    @contextmanager
    def worker(self, core: int, store: Store) -> Iterator[Server]:
        """Run the gateway alone; what is in the store outlives it."""
        port = free_port()
        # `env` becomes the gateway, so that the process id stays.
        command = [
            "env", *(f"{name}={value}" for name, value in self._environment.items()),
            sys.executable, "-m", "gateway", "serve", "--port", str(port),
            "--redis", store.url, "--log-level", "warning",
        ]  # fmt: skip
        with (
            tempfile.TemporaryDirectory(prefix="gateway-") as folder,
            serving(command, core, port, Path(folder)) as process,
        ):
            _wait_until_ready(port)
            yield local_server(
                port,
                process.pid,
                streams="/events/",
                batch_path="/publish",
                redis_pid=store.pid,
            )


@contextmanager
def valkey(core: int) -> Iterator[Store]:
    """Run a Valkey on one core, append-only file on, as the embedded one has it."""
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        path = Path(folder) / "valkey.sock"
        command = [
            *pinned(core), str(find_binary()), "--port", "0", "--unixsocket", str(path),
            "--dir", folder, "--appendonly", "yes", "--save", "",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(path, process)
            yield Store(f"unix://{path}", process.pid)
        finally:
            process.terminate()
            process.wait(END_SECONDS)


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the Valkey did not start")
        time.sleep(0.01)


def _wait_until_ready(port: int) -> None:
    """Wait until the gateway follows its store."""
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.02)

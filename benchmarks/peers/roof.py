"""The roof: a small C server, compiled when it is first needed, that only calls `send()`."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.base import Running
from benchmarks.peers.processes import HOST, free_port, serving

SOURCE = Path(__file__).with_name("roof.c")
COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")


class Roof:
    """One `send()` to each stream for each event or, joining, for all that are waiting.

    The first is the most that can be had one event at a time, the second in bursts.
    """

    def __init__(self, *, joining: bool = False) -> None:
        self.name = "roof-joining" if joining else "roof"
        self._options = ["--join"] if joining else []

    def missing(self) -> str:
        """Return what to install, or nothing when it can run."""
        if not sys.platform.startswith("linux"):
            return "the roof needs Linux"
        return "" if COMPILER else "a C compiler is missing: apt-get install gcc libc6-dev"

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Running]:
        """Compile and run it on `core`; it has nothing for the load's core to do."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="roof-") as folder:
            program = str(Path(folder) / "roof")
            subprocess.run([COMPILER, "-O2", "-o", program, str(SOURCE)], check=True)
            with serving([program, str(port), *self._options], core, port) as process:
                yield Running(
                    host=HOST,
                    port=port,
                    stream_path=lambda channel: f"/streams/{channel}",
                    publish_path=lambda channel: f"/publish/{channel}",
                    publish_headers={"Content-Type": "application/json"},
                    batch_path="/publish",
                    pid=process.pid,
                    redis_pid=0,
                )

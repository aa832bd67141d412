"""The roof: a small C server, compiled when it is first needed, that only calls `send()`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compiling import MISSING, compile_c, find_compiler
from benchmarks.peers.base import Server, local_server
from benchmarks.peers.processes import free_port, serving

SOURCE = Path(__file__).with_name("roof.c")


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
        return "" if find_compiler() else MISSING

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Server]:
        """Compile and run it on `core`; it has nothing for the load's core to do."""
        port = free_port()
        command = [str(compile_c(SOURCE)), str(port), *self._options]
        with serving(command, core, port) as process:
            yield local_server(port, process.pid, batch_path="/publish")

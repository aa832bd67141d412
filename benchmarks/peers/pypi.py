"""The peers from PyPI: each a script of its own, run by this Python."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.base import Server, local_server
from benchmarks.peers.processes import free_port, serving


class PythonServer:
    """A script beside this module that serves streams on the port it is given."""

    name: str
    script: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]

    def missing(self) -> str:
        """Return what to install, or nothing when it can run."""
        missing = [module for module in self.modules if find_spec(module) is None]
        if not missing:
            return ""
        return (
            f"{self.name} is missing ({', '.join(missing)}): "
            "python -m pip install -r requirements-bench.lock"
        )

    @contextmanager
    def start(self, core: int, load_core: int) -> Iterator[Server]:
        """Run it on `core`; it has nothing for the load's core to do."""
        port = free_port()
        script = str(Path(__file__).with_name(self.script))
        # -P: a module of this folder must not stand in the way of a library.
        with serving([sys.executable, "-P", script, str(port)], core, port) as process:
            yield local_server(port, process.pid)


class AiohttpSse(PythonServer):
    """aiohttp-sse on uvloop, a queue per stream."""

    name = "aiohttp-sse"
    script = "aiohttp_sse_server.py"
    modules = ("aiohttp_sse", "uvloop")


class SseStarlette(PythonServer):
    """sse-starlette on uvicorn with uvloop and httptools, a queue per stream."""

    name = "sse-starlette"
    script = "sse_starlette_server.py"
    modules = ("sse_starlette", "uvicorn", "uvloop", "httptools")

"""What a benchmark needs to know of a server; it neither starts nor measures one itself."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

from benchmarks.peers.processes import HOST


@dataclass
class Server:
    """A server that runs and takes streams and events."""

    host: str
    port: int
    stream_path: Callable[[str], str]  # Channel to the request target of its stream.
    publish_path: Callable[[str], str]
    publish_headers: dict[str, str] = field(default_factory=dict)
    batch_path: str = ""  # NDJSON batches; empty when the server takes none.
    pid: int = 0  # The process that does the fan-out.
    redis_pid: int = 0  # 0 when there is none.


def local_server(
    port: int, pid: int, *, streams: str = "/streams/", batch_path: str = "", redis_pid: int = 0
) -> Server:
    """Return what runs on a port of loopback and takes JSON at `/publish/CHANNEL`."""
    return Server(
        host=HOST,
        port=port,
        stream_path=lambda channel: streams + quote(channel),
        publish_path=lambda channel: "/publish/" + quote(channel),
        publish_headers={"Content-Type": "application/json"},
        batch_path=batch_path,
        pid=pid,
        redis_pid=redis_pid,
    )


class Peer(Protocol):
    """A server that can be started, pinned to a core."""

    name: str

    def missing(self) -> str:
        """Return an empty string when it can run, else one line that says what to install."""
        ...

    def start(self, core: int, load_core: int) -> AbstractContextManager[Server]:
        """Run it on `core`, what it publishes through (Redis) on `load_core`."""
        ...

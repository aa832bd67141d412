"""Slow readers of a keyed channel that fold events and resets into its state; they measure nothing.

Each begins with the channel's snapshot. Every state on the way must be that of one moment: as the
load client publishes the keys in turns, its numbers are without a hole.
"""

import json
import threading
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from benchmarks.peers.base import Server
from benchmarks.stream_thread import StreamThread

READS_PER_SECOND = 10
READ_BYTES_RELEASED = 65536
PATIENCE_SECONDS = 30.0

State = Mapping[str, Any]


def read_snapshot(server: Server, channel: str) -> tuple[str, State]:
    """Return the position and the state of a channel."""
    url = f"http://{server.host}:{server.port}/snapshots/{channel}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        document = json.load(answer)
    return document["id"], document["state"]


class KeyedReader(StreamThread):
    """A stream that is read a few bytes at a time until it is released."""

    def __init__(
        self,
        server: Server,
        channel: str,
        core: int,
        *,
        bytes_per_second: int,
        receive_buffer_bytes: int,
    ) -> None:
        position, state = read_snapshot(server, channel)
        super().__init__(
            server, channel, core, f"Last-Event-ID: {position}",
            receive_buffer_bytes=receive_buffer_bytes,
        )  # fmt: skip
        if b" 200 " not in self._head[:16] or b"\r\ntransfer-encoding:" in self._head.lower():
            raise RuntimeError(f"no plain stream: {self._head[:60]!r}")
        self.resets = 0
        self._state = dict(state)
        self._piece_bytes = bytes_per_second // READS_PER_SECOND
        self._wrong = ""
        self._released = threading.Event()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        super().__exit__(kind, error, trace)

    def release(self) -> None:
        """Read as fast as it comes from now on."""
        self._released.set()

    def problem(self, state: State) -> str:
        """Wait until the state is this one; returns what was wrong, nothing when all was well."""
        self._wait(lambda: self._state == state or bool(self._wrong), PATIENCE_SECONDS)
        if self._wrong or self._state == state:
            return self._wrong
        differ = sum(self._state.get(key) != value for key, value in state.items())
        return f"a slow reader holds {differ:,} of {len(state):,} keys wrong at the end"

    def _read(self) -> None:
        rest = b""
        while not self._wrong:
            size = READ_BYTES_RELEASED if self._released.is_set() else self._piece_bytes
            try:
                piece = self._connection.recv(size)
            except OSError as error:
                piece, ended = b"", f": {error}"
            else:
                ended = ""
            if not piece:
                if not self._closing:
                    self._wrong = f"a slow reader's stream ended{ended}"
                return
            *blocks, rest = (rest + piece).split(b"\n\n")
            for block in blocks:
                self._take(block)
            self._released.wait(1 / READS_PER_SECOND)

    def _take(self, block: bytes) -> None:
        """Fold one block; what has no data changes nothing."""
        fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
        if b"data" not in fields:
            return
        data, type = json.loads(fields[b"data"]), fields.get(b"event", b"")
        if type == b"reset":
            self.resets += 1
            state = dict(data["state"])
        elif type:
            self._wrong = f"a slow reader got {type.decode()}"
            return
        else:
            state = {**self._state, data["key"]: data["data"]}
        before, newest = newest_number(self._state), newest_number(state)
        numbers = sorted(value["n"] for value in state.values())
        if newest <= before or numbers != list(range(newest - len(self._state) + 1, newest + 1)):
            self._wrong = f"a slow reader's state is of no moment after {type.decode() or 'event'}"
        self._state = state


def newest_number(state: State) -> int:
    """Return the number of the last event that is in a state."""
    return max((int(value["n"]) for value in state.values()), default=0)

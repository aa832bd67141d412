"""Readers of compressed streams that compare every event; they only count their bytes."""

import re
import zlib
from collections.abc import Sequence
from io import BufferedReader

import zstandard

from benchmarks.peers.base import Server
from benchmarks.stream_thread import StreamThread

FIRST_NUMBER = 1_000_000_000
PATIENCE_SECONDS = 10.0
EVENT = re.compile(rb'^data: \{"n":(\d+),"t":\d+,(.*)$')


class Decoder:
    """The bytes of one content coding, one stream or many in a row."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inner = self._new()

    def _new(self) -> "zlib._Decompress | zstandard.ZstdDecompressionObj | None":
        if self._coding == "gzip":
            return zlib.decompressobj(wbits=31)
        if self._coding == "zstd":
            return zstandard.ZstdDecompressor().decompressobj()
        return None

    def decode(self, data: bytes) -> bytes:
        """Return all that these bytes complete."""
        if self._inner is None:
            return data
        decoded = b""
        while data:
            decoded += self._inner.decompress(data)
            if not self._inner.eof:
                break
            data = self._inner.unused_data
            self._inner = self._new()
            assert self._inner is not None
        return decoded


class DecodingReader(StreamThread):
    """A stream that is decoded and compared; `coding` is what was chosen."""

    def __init__(
        self, server: Server, channel: str, coding: str, events: Sequence[str], core: int
    ) -> None:
        super().__init__(server, channel, core, f"Accept-Encoding: {coding}")
        self.bytes = 0
        """Of the body, so far."""
        self._events = [event.encode() for event in events]
        self._seen = 0
        self._wrong: list[str] = []
        said = re.search(rb"\r\ncontent-encoding: *(\S+)", self._head, re.IGNORECASE)
        self.coding = said[1].decode() if said else "identity"
        self.chunked = re.search(rb"\r\ntransfer-encoding: *chunked", self._head, re.IGNORECASE)

    def problems(self, published: int) -> list[str]:
        """Wait for all that was published; returns what was wrong with it."""
        self._wait(lambda: self._seen >= published or bool(self._wrong), PATIENCE_SECONDS)
        if self._seen != published and not self._wrong:
            return [f"decoded {self._seen:,} of {published:,} events"]
        return self._wrong[:1]

    def _read(self) -> None:
        decoder = Decoder(self.coding)
        rest = b""
        with self._connection.makefile("rb") as body:
            while piece := self._piece(body):
                self.bytes += len(piece)
                try:
                    *lines, rest = (rest + decoder.decode(piece)).split(b"\n")
                except (zlib.error, zstandard.ZstdError) as error:
                    self._wrong.append(f"it does not decode: {error}")
                    return
                for line in lines:
                    self._check(line)
        if not self._closing:
            self._wrong.append("the decoded stream ended")

    def _piece(self, body: BufferedReader) -> bytes:
        """Return what comes next of the body; nothing at its end."""
        try:
            if not self.chunked:
                return body.read1(65536)
            size = int(body.readline().split(b";")[0] or b"0", 16)
            return body.read(size + 2)[:size]  # The chunk's own end of line is dropped.
        except OSError:
            return b""

    def _check(self, line: bytes) -> None:
        if not line.startswith(b"data: "):
            return
        found = EVENT.match(line)
        number = FIRST_NUMBER + self._seen
        if not found or int(found[1]) != number:
            self._wrong.append(f"event {self._seen + 1:,} decoded as {line[:60]!r}")
        elif found[2] != self._events[number % len(self._events)]:
            self._wrong.append(f"event {self._seen + 1:,} has other content")
        self._seen += 1

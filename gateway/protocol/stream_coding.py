"""Streams in a content coding: one compressor for all readers of a subscription; writes nothing.

A reader gets `opening` and then, in any mixture:

- private bytes, which build on nothing before them, so they fit everywhere;
- shared bytes, which build on all the shared bytes since the last *sync point*, where the
  encoder forgot its history. A reader takes them from a sync point on, and without a hole.

Whoever missed some, or joined when the encoder was `open`, gets private bytes until the next
sync point. Whatever goes to readers of shared bytes is encoded with them, heartbeats too.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Protocol

import zstandard

# By events between two sync points, for score events of 274 bytes, each flushed, one core: %
# of the plain size and us per event for all readers. Then the KB that one encoder occupies
# after 50 events, and after a batch of 1,000.
#                                  1          10         50         never       KB     KB
#   gzip 6                     71.9  7.8  24.0  4.5  16.0  3.7  12.7  4.0    131    252
#   gzip 7, 16 KB of tables    71.9  7.8  23.9  4.6  15.7  3.9  12.4  4.5     73    150
#   gzip 9                     71.9  8.0  23.8  4.6  15.2  4.3  12.0  6.9    133    256
#   zstd 1                     75.2  3.2  26.5  1.5  19.5  1.3  17.3  1.2    130    477
#   zstd 3                     74.7  3.5  26.5  1.5  19.4  1.3  17.0  1.3    834  1,199
#   zstd 6                     74.9  5.0  25.4  2.9  17.7  2.6  14.7  2.6  2,630  2,968
#   zstd lazy2, 32 KB of them  75.2  4.6  25.3  3.1  17.6  3.0  14.9  3.0     86    233
SYNC_EVENTS = 50
SYNC_SECONDS = 10.0
"""Until then those who join get private bytes. Longer ones save little."""

# A window occupies memory only as far as it is used, so it may hold what large events repeat:
# documents of 24 KB, changed a little each time, come to 1.5 %, with 16 KB of window to 8.6 %.
GZIP_LEVEL, GZIP_WINDOW_LOG, GZIP_MEMORY_LEVEL = 7, 15, 5
# RFC 9659 lets a window have 8 MB. With tables of this size the strategy decides, no level.
ZSTD_WINDOW_LOG = 16


def _zstd_parameters(*, checksum: bool) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(
        window_log=ZSTD_WINDOW_LOG,
        hash_log=12,
        chain_log=12,
        search_log=4,
        min_match=5,
        strategy=zstandard.STRATEGY_LAZY2,
        write_checksum=checksum,
    )


_ZSTD_SHARED = _zstd_parameters(checksum=False)
_ZSTD_BODY = _zstd_parameters(checksum=True)

# Private bytes are for few, so they are made at the cheapest that still finds what repeats (us
# and % of the plain size):  1 event    4 events   20         100        240 = 64 KB
#   stored                    1  102     1  100     1  100     1  100     4  100
#   gzip 1                    4   72     5   31     9   15    24   11    62   11
#   zstd dfast               12   73    13   30    15   14    27    9    47    9
# Stored is not worth its code: readers behind, on slow lines, would get ten times the bytes.
GZIP_PRIVATE_LEVEL = 1
_ZSTD_PRIVATE = zstandard.ZstdCompressionParameters(
    window_log=ZSTD_WINDOW_LOG,
    hash_log=12,
    chain_log=12,
    min_match=5,
    strategy=zstandard.STRATEGY_DFAST,
)


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self, mode: int = ..., /) -> bytes: ...


class StreamEncoder(ABC):
    """Encodes what all readers of one subscription get; holds memory only while `open`."""

    coding: ClassVar[str]
    opening: ClassVar[bytes]
    """The first bytes of every body."""
    closing: ClassVar[bytes]
    """The last bytes of a body that ends in order, after whole shared or private bytes."""
    _joint: ClassVar[bytes]
    """What bytes with a history of their own begin with."""
    _flush: ClassVar[int]
    """Ends a block on a whole byte, so that all that went in can be decoded."""

    def __init__(self) -> None:
        self._compressor: _Compressor | None = None
        self._events = 0
        self._since = 0.0

    @property
    def open(self) -> bool:
        """Whether the next shared bytes build on some that a newcomer has not seen."""
        return self._compressor is not None

    def encode(self, data: bytes, events: int, now: float, *, sync: bool = False) -> bytes:
        """Return the next shared bytes: `data`, decodable at once; nothing for nothing.

        `now` is in monotonic seconds. A sync point follows when SYNC_EVENTS events or
        SYNC_SECONDS went by since the last one, or for `sync`: when a subscription goes idle.
        """
        coded = b""
        if data:
            if self._compressor is None:
                self._compressor = self._start()
                self._events, self._since = 0, now
                coded = self._joint
            coded += self._compressor.compress(data) + self._compressor.flush(self._flush)
        self._events += events
        if sync or self._events >= SYNC_EVENTS or now - self._since >= SYNC_SECONDS:
            self.reset()
        return coded

    def reset(self) -> None:
        """Make a sync point here: nobody follows, or those who do have had all shared bytes."""
        # A new compressor is cheaper than a clean one is to keep: 1 us gzip, 13 us zstd.
        self._compressor = None

    @classmethod
    def private(cls, data: bytes) -> bytes:
        """Return `data` as bytes for one reader or some, wherever they are in the stream."""
        if not data:
            return b""
        compressor = cls._start_private()
        return cls._joint + compressor.compress(data) + compressor.flush(cls._flush)

    @staticmethod
    @abstractmethod
    def _start() -> _Compressor: ...

    @staticmethod
    @abstractmethod
    def _start_private() -> _Compressor: ...


class _Gzip(StreamEncoder):
    """Deflate blocks behind a header for each reader, without a trailer; at most 150 KB.

    The trailer's checksum would have to be counted for each reader.
    """

    coding = "gzip"
    # RFC 1952 2.3: deflate, no flags, no time, no extra flags, system unknown.
    opening = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    closing = b""
    # Blocks of several compressors make one stream as long as none is marked as the last and
    # each begins on a whole byte: RFC 1951 3.2.3. Another compressor has another history.
    _joint = b""
    _flush = zlib.Z_SYNC_FLUSH

    @staticmethod
    def _start() -> _Compressor:
        return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, -GZIP_WINDOW_LOG, GZIP_MEMORY_LEVEL)

    @staticmethod
    def _start_private() -> _Compressor:
        return zlib.compressobj(
            GZIP_PRIVATE_LEVEL, zlib.DEFLATED, -GZIP_WINDOW_LOG, GZIP_MEMORY_LEVEL
        )


class _Zstd(StreamEncoder):
    """One frame for each history, without checksums; at most 600 KB.

    A reader is always within a frame, from `opening` on: whatever begins another one first ends
    that. So nothing depends on where a reader is, and no bytes end with a frame: decoders that
    take one frame at a time (httpx) fail when the next one is not there yet.
    """

    coding = "zstd"
    # RFC 8878 3.1.1: magic number, no flags, window; the header that the frames below have, too.
    opening = b"\x28\xb5\x2f\xfd\x00" + bytes([(ZSTD_WINDOW_LOG - 10) << 3])
    # An empty raw block, marked as the last: RFC 8878 3.1.1.2.
    closing = _joint = b"\x01\x00\x00"
    _flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK

    @staticmethod
    def _start() -> _Compressor:
        return zstandard.ZstdCompressor(compression_params=_ZSTD_SHARED).compressobj()

    @staticmethod
    def _start_private() -> _Compressor:
        return zstandard.ZstdCompressor(compression_params=_ZSTD_PRIVATE).compressobj()


# In order of preference: zstd costs less to make and to read. No br: a body is one stream
# there, and within one no compressor forgets its history.
_ENCODERS: Mapping[str, type[StreamEncoder]] = {
    encoder.coding: encoder for encoder in (_Zstd, _Gzip)
}
STREAM_CODINGS = tuple(_ENCODERS)
"""Every coding of streams. Which is preferred is a setting."""


def open_encoder(coding: str) -> StreamEncoder:
    """Return an encoder of one of STREAM_CODINGS."""
    return _ENCODERS[coding]()


def opening_of(coding: str) -> bytes:
    """Return the first bytes of a body; none of one that has no coding."""
    return _ENCODERS[coding].opening if coding in _ENCODERS else b""


def closing_of(coding: str) -> bytes:
    """Return the last bytes of a body that ends in order; none of one that has no coding."""
    return _ENCODERS[coding].closing if coding in _ENCODERS else b""


class BodyEncoder:
    """Encodes a body that all get from its first byte to its last, trailer and checksum included.

    `coding` is one of STREAM_CODINGS.
    """

    def __init__(self, coding: str) -> None:
        self._flush, self._finish = _BODY_FLUSHES[coding]
        self._compressor = _start_body(coding)

    def encode(self, data: bytes) -> bytes:
        """Return the next bytes, which can be decoded at once."""
        return self._compressor.compress(data) + self._compressor.flush(self._flush)

    def finish(self) -> bytes:
        """Return the last bytes of the body."""
        return self._compressor.flush(self._finish)


_BODY_FLUSHES = {
    "gzip": (zlib.Z_SYNC_FLUSH, zlib.Z_FINISH),
    "zstd": (zstandard.COMPRESSOBJ_FLUSH_BLOCK, zstandard.COMPRESSOBJ_FLUSH_FINISH),
}


def _start_body(coding: str) -> _Compressor:
    if coding == "zstd":
        return zstandard.ZstdCompressor(compression_params=_ZSTD_BODY).compressobj()
    # 16 more than the window's logarithm: with gzip's header and trailer.
    return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + GZIP_WINDOW_LOG, GZIP_MEMORY_LEVEL)


def encode_private(coding: str, data: bytes) -> bytes:
    """Return `data` as private bytes of one of STREAM_CODINGS; takes 12 us, and 1 us a KB."""
    return _ENCODERS[coding].private(data)

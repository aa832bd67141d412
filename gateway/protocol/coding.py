"""Content codings: which one a request accepts, and the bytes of a body in it.

A coding is added here, as one line of `_COMPRESSORS`; nothing else lists them.
"""

import gzip
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import brotli
import zstandard

IDENTITY = "identity"

# Levels by time and size (ms and % of the body) for a state of keyed sensor readings, one core:
#              16 KiB        256 KiB       4 MiB
#   br 4       0.06  13.0    1.2   12.7    19    12.8
#   br 5       0.10  11.9    2.1   11.8    34    12.0
#   br 11     11.8   10.4    227    9.5    4514   9.4
#   zstd 6     0.07  11.4    1.3   11.9    21    12.2
#   zstd 9     0.14  11.4    2.5   11.2    33    11.6
#   gzip 4     0.04  15.1    1.2   13.8    19    13.7
#   gzip 6     0.06  13.2    2.1   12.3    34    12.2
# A snapshot is compressed again at every position that is asked for, so the top levels cost
# more than they save. Up to this size the better level stays under 3 ms; beyond it the
# cheaper one takes a third off the time, or more, for 6 to 12 % more bytes.
LARGE_BODY_BYTES = 262144
BROTLI_QUALITY, BROTLI_QUALITY_LARGE = 5, 4
# RFC 9659: a window of at most 8 MB. Levels below 20 keep it.
ZSTD_LEVEL, ZSTD_LEVEL_LARGE = 9, 6
GZIP_LEVEL, GZIP_LEVEL_LARGE = 6, 4


def _identity(body: bytes) -> bytes:
    return body


def _brotli(body: bytes) -> bytes:
    large = len(body) > LARGE_BODY_BYTES
    compressed: bytes = brotli.compress(
        body, quality=BROTLI_QUALITY_LARGE if large else BROTLI_QUALITY
    )
    return compressed


def _zstd(body: bytes) -> bytes:
    large = len(body) > LARGE_BODY_BYTES
    # One compressor per call: it must not be shared between threads, and costs 10 us.
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL_LARGE if large else ZSTD_LEVEL).compress(body)


def _gzip(body: bytes) -> bytes:
    large = len(body) > LARGE_BODY_BYTES
    # mtime 0, so that two workers that make one variant make the same bytes.
    return gzip.compress(body, GZIP_LEVEL_LARGE if large else GZIP_LEVEL, mtime=0)


# In order of preference: br is the smallest that every browser has, zstd unpacks fastest.
_COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "br": _brotli,
    "zstd": _zstd,
    "gzip": _gzip,
    IDENTITY: _identity,
}
CODINGS = tuple(_COMPRESSORS)
"""Every coding, the preferred first."""

_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 8.4.1.3.
# Possessive, so that a long run of blanks is read once: RFC 9110 12.4.2 and 12.5.3.
_MEMBER = re.compile(
    r"[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+"
    r"(?:;[ \t]*+[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*+)?",
    re.ASCII,
)


def compress(coding: str, body: bytes) -> bytes:
    """Return `body` in `coding`: equal bytes for equal input, whenever it is made.

    `coding` is one of CODINGS. Takes milliseconds for a large body and releases the interpreter
    lock meanwhile.
    """
    return _COMPRESSORS[coding](body)


def negotiate_coding(accept_encoding: str | None) -> str | None:
    """Return the coding of CODINGS that suits `Accept-Encoding` best; None when none does.

    The highest weight wins, then the order of CODINGS. Members that break the grammar are
    ignored, and so are codings that nobody offers. None means 406.
    Source: RFC 9110 12.5.3.
    """
    # Without the field every coding may be sent; who does not ask gets what all can read.
    weights = {} if accept_encoding is None else _parse_weights(accept_encoding)
    return _heaviest(CODINGS, weights)


def negotiate_stream_coding(accept_encoding: str | None, offered: Sequence[str]) -> str:
    """Return which of the codings in `offered` a stream is to have; identity unless one is named.

    The highest weight wins, identity's too, then the order of `offered`. No stream is refused
    for its coding: an EventSource that got a 406 would never come back.
    """
    weights = {} if accept_encoding is None else _parse_weights(accept_encoding)
    # A star may stand for a client that takes no coding, or holds events back until the end.
    named = [coding for coding in offered if coding in weights]
    return _heaviest([*named, IDENTITY], weights) or IDENTITY


def _heaviest(codings: Iterable[str], weights: Mapping[str, float]) -> str | None:
    """Return the first coding of the highest weight; None when none is acceptable."""
    best: str | None = None
    best_weight = 0.0
    for coding in codings:
        weight = _weight_of(coding, weights)
        if weight > best_weight:
            best, best_weight = coding, weight
    return best


def _weight_of(coding: str, weights: Mapping[str, float]) -> float:
    if coding in weights:
        return weights[coding]
    if "*" in weights:
        return weights["*"]
    # Identity needs no mention, but ranks below all that is mentioned: the least q is 0.001.
    return 0.0001 if coding == IDENTITY else 0.0


def _parse_weights(accept_encoding: str) -> dict[str, float]:
    """Return the weight of each coding named; the highest when one is named twice."""
    weights: dict[str, float] = {}
    for member in accept_encoding.split(","):
        match = _MEMBER.fullmatch(member)
        if match is not None:
            # Names of codings ignore case: RFC 9110 8.4.1.
            name = match[1].lower()
            coding = _ALIASES.get(name, name)
            weights[coding] = max(float(match[2] or "1"), weights.get(coding, 0.0))
    return weights

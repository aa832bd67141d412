"""Which coding a request gets, and that every coding carries a body unharmed."""

import gzip
import time
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.coding import (
    BROTLI_QUALITY,
    BROTLI_QUALITY_LARGE,
    CODINGS,
    GZIP_LEVEL,
    GZIP_LEVEL_LARGE,
    LARGE_BODY_BYTES,
    ZSTD_LEVEL,
    ZSTD_LEVEL_LARGE,
    compress,
    negotiate_coding,
)

DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.decompress,
    "zstd": zstandard.decompress,
    "gzip": gzip.decompress,
    "identity": bytes,
}


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        # What clients send.
        (None, "identity"),  # curl without --compressed
        ("", "identity"),
        ("gzip, deflate, br, zstd", "br"),  # Chromium, Firefox
        ("gzip, deflate, br", "br"),  # Safari
        ("gzip, deflate", "gzip"),
        ("gzip", "gzip"),
        ("identity", "identity"),
        ("deflate", "identity"),
        # Weights.
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("gzip;q=0.5, br;q=0.8, zstd;q=0.9", "zstd"),
        ("zstd, gzip", "zstd"),
        ("gzip;q=0.001", "gzip"),
        ("gzip;q=0.5, identity", "identity"),
        ("gzip;q=0.5, identity;q=0.5", "gzip"),
        ("br;q=0, gzip", "gzip"),
        ("gzip;q=0", "identity"),
        ("gzip;q=0.000", "identity"),
        # The star stands for what is not named.
        ("*", "br"),
        ("*;q=0.5, gzip", "gzip"),
        ("br;q=0, *", "zstd"),
        ("gzip, *;q=0", "gzip"),
        ("deflate, *;q=0", None),
        ("identity, *;q=0", "identity"),
        # Identity needs no mention, but can be refused.
        ("identity;q=0", None),
        ("identity;q=0, gzip", "gzip"),
        ("identity;q=0, *;q=0", None),
        ("identity;q=0, *", "br"),
        ("*;q=0", None),
        # Spelling.
        ("X-GZIP", "gzip"),
        ("x-gzip;q=0, br;q=0", "identity"),
        ("GZip;Q=0.5", "gzip"),
        (" \tgzip \t;\t q=0.5 ", "gzip"),
        (",, gzip ,,", "gzip"),
        ("gzip;q=0.3, br;q=0.5, gzip;q=0.8", "gzip"),  # twice: the highest
        # Members that break the grammar do not count.
        ("gzip;q=2", "identity"),
        ("gzip;q=1.001", "identity"),
        ("gzip;q=0.1234", "identity"),
        ("gzip;q=-1", "identity"),
        ("gzip;q=", "identity"),
        ("gzip;q", "identity"),
        ("gzip;level=9", "identity"),
        ("gzip;q=0.5;q=0.6", "identity"),
        ("gzip q=1", "identity"),
        ("g zip", "identity"),
        ("br;q=nan, gzip;q=0.1", "gzip"),
        ('"gzip"', "identity"),
        ("identity;q=x", "identity"),
        ("gzip;q=0.\u0665", "identity"),  # a digit, but not ASCII
    ],
)
def test_the_coding_with_the_highest_weight_wins(
    accept_encoding: str | None, coding: str | None
) -> None:
    assert negotiate_coding(accept_encoding) == coding


@given(st.text(alphabet="gzipbrstdx-*;=q01. ,\tentiy", max_size=80))
def test_no_header_is_an_error(accept_encoding: str) -> None:
    assert negotiate_coding(accept_encoding) in (*CODINGS, None)


@given(st.dictionaries(st.sampled_from([*CODINGS, "deflate"]), st.integers(0, 1000)))
def test_no_other_coding_has_a_higher_weight(weights: dict[str, int]) -> None:
    header = ", ".join(f"{coding};q={weight / 1000:.3f}" for coding, weight in weights.items())
    best: dict[str, float] = {coding: weights.get(coding, 0) for coding in CODINGS}
    best["identity"] = weights.get("identity", 0.1)
    highest = max(best.values())
    expected = next(coding for coding in CODINGS if best[coding] == highest)
    assert negotiate_coding(header) == (expected if highest else None)


@pytest.mark.parametrize(
    "piece", [" ", "\t", "gzip;", "gzip ", "gzip;q=0.", ";", "; q=", ",", "a", "*"]
)
def test_a_header_of_8_kib_is_read_quickly(piece: str) -> None:
    header = (piece * 8192)[:8192] + "\x00"
    started = time.process_time()
    negotiate_coding(header)
    # It takes about 1 ms; a pattern that goes back over its input takes seconds.
    assert time.process_time() - started < 0.25


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [0, 1, 1000, LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1])
def test_every_coding_gives_the_body_back(coding: str, size: int) -> None:
    body = (b'{"value":%d,"unit":"C"},' * (size // 20 + 1) % ((7,) * (size // 20 + 1)))[:size]
    assert DECOMPRESSORS[coding](compress(coding, body)) == body


@given(st.binary(max_size=2000), st.sampled_from(CODINGS))
def test_any_bytes_survive_every_coding(body: bytes, coding: str) -> None:
    assert DECOMPRESSORS[coding](compress(coding, body)) == body


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [1000, LARGE_BODY_BYTES + 1])
def test_equal_bodies_make_equal_variants(coding: str, size: int) -> None:
    body = bytes(index * index % 251 for index in range(size))
    assert compress(coding, body) == compress(coding, body)


def test_only_bodies_over_the_limit_get_the_cheaper_level() -> None:
    body = b"".join(b'{"n":%d},' % (index * index % 9973) for index in range(40_000))
    for size, quality, zstd_level, gzip_level in (
        (LARGE_BODY_BYTES, BROTLI_QUALITY, ZSTD_LEVEL, GZIP_LEVEL),
        (LARGE_BODY_BYTES + 1, BROTLI_QUALITY_LARGE, ZSTD_LEVEL_LARGE, GZIP_LEVEL_LARGE),
    ):
        part = body[:size]
        assert len(part) == size
        assert compress("br", part) == brotli.compress(part, quality=quality)
        assert compress("zstd", part) == zstandard.compress(part, zstd_level)
        assert compress("gzip", part) == gzip.compress(part, gzip_level, mtime=0)


def test_gzip_holds_no_time_of_making() -> None:
    # RFC 1952 2.3: MTIME is bytes 4 to 7, 0 when there is none.
    assert compress("gzip", b"body")[4:8] == b"\0\0\0\0"


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip"])
@pytest.mark.parametrize("size", [20_000, 2 * LARGE_BODY_BYTES])
def test_json_shrinks_to_a_fifth_or_less(coding: str, size: int) -> None:
    body = b"".join(
        b'{"host":"edge-%02d","value":%d.%d,"status":"ok"}' % (n % 40, n * 7919 % 100, n % 10)
        for n in range(size // 45)
    )
    assert len(compress(coding, body)) < len(body) / 5


def test_large_zstd_bodies_stay_within_the_window_that_browsers_take() -> None:
    body = bytes(index % 253 for index in range(4096)) * 4096
    # RFC 9659: decoders may refuse a window of more than 8 MB.
    assert zstandard.get_frame_parameters(compress("zstd", body)).window_size <= 8 * 1024 * 1024
    frame = compress("zstd", body)
    assert zstandard.ZstdDecompressor(max_window_size=2**23).decompress(frame) == body

"""Readers who share a compressor, come, go and fall behind: each decodes what a plain one sees."""

import random
import tracemalloc
import zlib
from dataclasses import dataclass, field

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.coding import negotiate_stream_coding
from gateway.protocol.position import Position
from gateway.protocol.sse import encode_block, encode_comment
from gateway.protocol.stream_coding import (
    STREAM_CODINGS,
    SYNC_EVENTS,
    SYNC_SECONDS,
    StreamEncoder,
    closing_of,
    encode_private,
    open_encoder,
    opening_of,
)

HEARTBEAT = encode_comment("")
WINDOW_LIMIT_BYTES = 8 * 1024 * 1024  # RFC 9659.


class Decoder:
    """What a client has decoded so far; as demanding as the strictest of them."""

    def __init__(self, coding: str) -> None:
        self.text = b""
        self._coding = coding
        self._decompressor = self._next()

    def _next(self) -> "zlib._Decompress | zstandard.ZstdDecompressionObj":
        if self._coding == "gzip":
            return zlib.decompressobj(31)
        return zstandard.ZstdDecompressor(max_window_size=WINDOW_LIMIT_BYTES).decompressobj()

    def feed(self, data: bytes) -> None:
        """Take some bytes of the body; what they hold must come out at once."""
        self.text += self._decompressor.decompress(data)
        while self._coding == "zstd" and self._decompressor.eof:
            # httpx takes the next frame only from the same bytes.
            rest = self._decompressor.unused_data
            assert rest, "the bytes end with a frame"
            self._decompressor = self._next()
            self.text += self._decompressor.decompress(rest)
        # No client reads on after the end of a gzip member, or all differently.
        assert not self._decompressor.eof

    def end(self) -> bool:
        """Tell whether the body is over in the eyes of the coding."""
        return self._decompressor.eof


@dataclass(eq=False)
class Reader:
    """One client: what a plain one would have seen, and what it is still to get."""

    decoder: Decoder
    plain: bytes = b""
    missed: list[bytes] = field(default_factory=list)
    lagging: bool = False
    together: bool = False


WORDS = ("score", "Riverton", '{"home":', '"away":', "2026-10-24T15:00", ",", " ", "äöü", "\n")
texts = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=40).map("".join),
    st.text(max_size=60),
    # Larger than a zstd block, and no word in it repeats.
    st.integers(0, 9).map(lambda seed: random.Random(seed).randbytes(35_000).hex()),
)
frames = st.builds(
    lambda number, text: encode_block(id=Position(number, 0), data=text.encode()),
    st.integers(0, 999),
    texts,
)


class Subscription(RuleBasedStateMachine):
    """An encoder and its readers, as a hub treats them."""

    coding = "gzip"

    def __init__(self) -> None:
        super().__init__()
        self.encoder = open_encoder(self.coding)
        self.readers: list[Reader] = []
        self.now = 0.0

    def write(self, data: bytes, events: int, *, sync: bool = False) -> None:
        """Write to all who have everything, in the two ways there are."""
        self.gather()
        if not any(reader.together for reader in self.readers):
            self.encoder.reset()
            self.gather()
        shared = self.encoder.encode(data, events, self.now, sync=sync)
        private = encode_private(self.coding, data)
        for reader in self.readers:
            if reader.lagging:
                reader.missed.append(data)
                continue
            reader.decoder.feed(shared if reader.together else private)
            reader.plain += data

    def gather(self) -> None:
        if not self.encoder.open:
            for reader in self.readers:
                reader.together = not reader.lagging

    def pick(self, chance: int, lagging: bool) -> Reader:
        return (some := [one for one in self.readers if one.lagging == lagging])[chance % len(some)]

    @rule(first=frames)
    def join(self, first: bytes) -> None:
        """A reader comes and gets some replay at once."""
        reader = Reader(Decoder(self.coding))
        reader.decoder.feed(self.encoder.opening)
        reader.decoder.feed(encode_private(self.coding, first))
        reader.plain += first
        self.readers.append(reader)

    @precondition(lambda self: self.readers)
    @rule(chance=st.integers(0, 99))
    def leave(self, chance: int) -> None:
        """A reader goes, in order; its body may be ended."""
        reader = self.readers.pop(chance % len(self.readers))
        # Nothing comes after it, so `feed` and what it demands are not meant.
        reader.decoder._decompressor.decompress(self.encoder.closing)
        assert reader.decoder.end() == (self.coding == "zstd")

    @rule(batch=st.lists(frames, min_size=1, max_size=5), more=st.sampled_from([0, 0, 20]))
    def publish(self, batch: list[bytes], more: int) -> None:
        self.write(b"".join(batch), len(batch) + more)

    @rule(frame=frames, seconds=st.sampled_from([1.0, 4.0, SYNC_SECONDS]))
    def publish_later(self, frame: bytes, seconds: float) -> None:
        self.now += seconds
        self.write(frame, 1)

    @rule(sync=st.booleans())
    def beat(self, sync: bool) -> None:
        self.write(HEARTBEAT, 0, sync=sync)

    @rule()
    def rest(self) -> None:
        """The subscription goes idle: nothing is to be said, and nothing sent."""
        assert self.encoder.encode(b"", 0, self.now, sync=True) == b""
        assert not self.encoder.open

    @precondition(lambda self: any(not reader.lagging for reader in self.readers))
    @rule(chance=st.integers(0, 99))
    def fall_behind(self, chance: int) -> None:
        reader = self.pick(chance, False)
        reader.lagging, reader.together = True, False

    @precondition(lambda self: any(reader.lagging for reader in self.readers))
    @rule(chance=st.integers(0, 99), whole=st.booleans())
    def catch_up(self, chance: int, whole: bool) -> None:
        """A reader gets some or all of what it missed, joined as it comes."""
        reader = self.pick(chance, True)
        count = len(reader.missed) if whole else len(reader.missed) // 2
        data = b"".join(reader.missed[:count])
        del reader.missed[:count]
        if data:
            reader.decoder.feed(encode_private(self.coding, data))
            reader.plain += data
        reader.lagging = bool(reader.missed)

    @invariant()
    def every_reader_has_decoded_all_that_it_got(self) -> None:
        for reader in self.readers:
            assert reader.decoder.text == reader.plain


class ZstdSubscription(Subscription):
    coding = "zstd"


TestGzip = Subscription.TestCase
TestZstd = ZstdSubscription.TestCase
TestGzip.settings = TestZstd.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None
)


def scores(count: int) -> list[bytes]:
    """Return frames of the kind that streams are full of: 270 bytes, much of them the same."""
    chance = random.Random(1)
    clubs = ["Northbridge", "Lakeside", "Riverton", "Harbour City", "Old Town", "Eastfield"]
    found = []
    for number in range(count):
        match = chance.randrange(3)
        clock = f"{number // 60:02d}:{number % 60:02d}"
        home, away = (
            f'{{"name":"{club}","score":{chance.randrange(3)},"shots":{chance.randrange(30)}}}'
            for club in clubs[2 * match : 2 * match + 2]
        )
        data = (
            f'{{"match":"2026-{match:04d}","league":"premier","home":{home},"away":{away},'
            f'"clock":"{clock}","period":2,"status":"live","possession":{chance.randrange(30, 71)},'
            f'"updated":"2026-10-24T15:{clock}.{chance.randrange(1000):03d}Z"}}'
        )
        id = Position(1_760_000_000_000 + 250 * number, 0)
        found.append(encode_block(id=id, type="score", data=data.encode()))
    return found


def follow(coding: str, *parts: bytes) -> bytes:
    """Return what a reader decodes from the first part on."""
    decoder = Decoder(coding)
    decoder.feed(open_encoder(coding).opening)
    for part in parts:
        decoder.feed(part)
    return decoder.text


@pytest.fixture(params=STREAM_CODINGS)
def encoder(request: pytest.FixtureRequest) -> StreamEncoder:
    return open_encoder(request.param)


def test_an_encoder_is_of_the_coding_that_was_asked_for() -> None:
    assert STREAM_CODINGS == ("zstd", "gzip")
    for coding in STREAM_CODINGS:
        encoder = open_encoder(coding)
        assert encoder.coding == coding
        assert (opening_of(coding), closing_of(coding)) == (encoder.opening, encoder.closing)
        assert opening_of(coding)


def test_a_body_without_a_coding_is_nothing_but_its_events() -> None:
    assert (opening_of("identity"), closing_of("identity")) == (b"", b"")


def test_every_event_can_be_read_before_the_next_one(encoder: StreamEncoder) -> None:
    decoder = Decoder(encoder.coding)
    decoder.feed(encoder.opening)
    seen = b""
    for frame in scores(120):
        decoder.feed(encoder.encode(frame, 1, 0.0))
        seen += frame
        assert decoder.text == seen


def test_history_is_cut_after_so_many_events(encoder: StreamEncoder) -> None:
    assert not encoder.open
    for count in range(1, 2 * SYNC_EVENTS + 1):
        encoder.encode(b"data: x\n\n", 1, 0.0)
        assert encoder.open == (count % SYNC_EVENTS != 0)
    encoder.encode(b"data: x\n\n" * 1000, 1000, 0.0)
    assert not encoder.open


def test_history_is_cut_after_so_much_time(encoder: StreamEncoder) -> None:
    for start in (100.0, 500.0):
        # The time before is nobody's history.
        for since in (0.0, 1.0, SYNC_SECONDS - 0.001):
            encoder.encode(b"data: x\n\n", 1, start + since)
            assert encoder.open
        encoder.encode(b"data: x\n\n", 1, start + SYNC_SECONDS)
        assert not encoder.open


def test_history_is_cut_when_it_is_asked_for(encoder: StreamEncoder) -> None:
    first, second, third, fourth = scores(4)
    parts, open_after = [], []
    for data, sync in (first, True), (second, False), (b"", False), (b"", True), (third, False):
        parts.append(encoder.encode(data, 1, 0.0, sync=sync))
        open_after.append(encoder.open)
    assert open_after == [False, True, True, False, True]
    assert parts[2:4] == [b"", b""]
    encoder.reset()
    parts.append(encoder.encode(fourth, 1, 0.0))
    assert follow(encoder.coding, *parts) == first + second + third + fourth
    assert follow(encoder.coding, *parts[2:]) == third + fourth
    assert follow(encoder.coding, *parts[5:]) == fourth


def test_nothing_is_no_history(encoder: StreamEncoder) -> None:
    assert encoder.encode(b"", 0, 0.0) == b""
    assert not encoder.open


def garbles(coding: str, parts: list[bytes], text: bytes) -> bool:
    """Tell whether a reader of these bytes sees anything but `text`; some do not even notice."""
    try:
        return follow(coding, *parts) != text
    except (zlib.error, zstandard.ZstdError):
        return True


def test_whoever_joins_an_open_history_without_waiting_reads_garbage(
    encoder: StreamEncoder,
) -> None:
    first, second, third = scores(3)
    parts = [encoder.encode(first, 1, 0.0), encoder.encode(second, 1, 0.0)]
    assert not garbles(encoder.coding, parts, first + second)
    assert garbles(encoder.coding, parts[1:], second)
    # Nor does it help to have seen something else before.
    assert garbles(encoder.coding, [encoder.private(third), *parts[1:]], third + second)


def test_bytes_put_into_one_readers_stream_shift_its_history(encoder: StreamEncoder) -> None:
    first, second, third = scores(3)
    parts = [encoder.encode(frame, 1, 0.0) for frame in (first, second, third)]
    parts.insert(2, encoder.private(HEARTBEAT))
    assert not garbles(encoder.coding, parts[:3], first + second + HEARTBEAT)
    assert garbles(encoder.coding, parts, first + second + HEARTBEAT + third)


@given(data=st.binary(max_size=300), coding=st.sampled_from(STREAM_CODINGS))
def test_private_bytes_fit_anywhere(data: bytes, coding: str) -> None:
    encoder = open_encoder(coding)
    private = encode_private(coding, data)
    shared = encoder.encode(b"data: before\n\n", 1, 0.0)
    text = follow(coding, private, private, shared, private, private)
    assert text == 2 * data + b"data: before\n\n" + 2 * data


@pytest.mark.parametrize("size", [65_535, 65_536, 131_072, 1_000_000])
@pytest.mark.parametrize("coding", STREAM_CODINGS)
def test_data_that_does_not_shrink_grows_by_a_few_thousandths(coding: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    encoder = open_encoder(coding)
    shared, private = encoder.encode(data, 1, 0.0), encode_private(coding, data)
    assert follow(coding, shared, private) == 2 * data
    assert max(len(shared), len(private)) < 1.003 * size + 20


def test_a_zstd_body_can_be_ended() -> None:
    encoder = open_encoder("zstd")
    frame = scores(1)[0]
    body = encoder.opening + encoder.encode(frame, 1, 0.0) + encoder.closing
    # Whole frames, and nothing behind them.
    with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
        assert reader.read() == frame
    decoder = zstandard.ZstdDecompressor().decompressobj()
    decoder.decompress(encoder.opening + encoder.closing)
    assert decoder.eof


def test_a_gzip_body_has_no_end() -> None:
    # The checksum there would be another one for each reader.
    assert open_encoder("gzip").closing == b""


def test_the_opening_is_the_header_of_every_frame_that_follows() -> None:
    encoder = open_encoder("zstd")
    header = encoder.opening
    shared = encoder.encode(b"data: x\n\n", 1, 0.0)
    for made in (
        shared,
        encode_private("zstd", b"data: x\n\n"),
        encode_private("zstd", b"x" * 9999),
    ):
        assert made.startswith(b"\x01\x00\x00" + header)
    parameters = zstandard.get_frame_parameters(header)
    assert parameters.window_size <= WINDOW_LIMIT_BYTES
    assert not parameters.has_checksum
    assert parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN


def ratio(encoder: StreamEncoder, frames: list[bytes], every: int) -> float:
    """Return the shared bytes by the plain ones, with a sync point after so many events."""
    size = sum(
        len(encoder.encode(frame, 1, 0.0, sync=number % every == 0))
        for number, frame in enumerate(frames, 1)
    )
    return size / sum(map(len, frames))


def test_a_history_of_fifty_events_saves_four_fifths(encoder: StreamEncoder) -> None:
    frames = scores(500)
    assert 250 < sum(map(len, frames)) / len(frames) < 290
    assert ratio(encoder, frames, SYNC_EVENTS) < 0.2
    assert ratio(encoder, frames, 10) < 0.3
    assert ratio(encoder, frames, 1) > 0.6


def test_what_a_large_event_repeats_of_the_last_one_is_found(encoder: StreamEncoder) -> None:
    rows = scores(400)
    documents = []
    for number in range(100):
        rows[number * 7 % 100] = rows[100 + number]
        documents.append(b"".join(rows[:100]))
    assert len(documents[0]) > 25_000
    assert ratio(encoder, documents, SYNC_EVENTS) < 0.03


@pytest.mark.parametrize("coding", STREAM_CODINGS)
def test_a_replay_of_a_hundred_events_saves_four_fifths(coding: str) -> None:
    data = b"".join(scores(100))
    assert len(encode_private(coding, data)) < 0.2 * len(data)


def test_the_memory_of_gzip_is_bounded_and_given_back() -> None:
    encoder = open_encoder("gzip")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        encoder.encode(scores(1)[0], 1, 0.0)
        held, _ = tracemalloc.get_traced_memory()
        encoder.encode(b"data: y\n\n", 1, 0.0, sync=True)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 50_000 < held - before < 160_000
    assert after - before < 2_000


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("gzip, deflate, br, zstd", "zstd"),  # Chromium, Firefox
        ("gzip, deflate, br", "gzip"),  # Safari
        ("deflate, gzip, br, zstd", "zstd"),  # curl --compressed
        ("br", "identity"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("X-GZIP", "gzip"),
        # Who does not name a coding gets none.
        (None, "identity"),
        ("", "identity"),
        ("*", "identity"),
        ("br, *", "identity"),
        ("*;q=0.5, gzip;q=0.6", "gzip"),
        ("*;q=0.5, gzip;q=0.4", "identity"),
        ("identity", "identity"),
        ("identity, gzip;q=0.9", "identity"),
        ("identity;q=0.9, gzip", "gzip"),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        # Nor who refuses it, nor whose header says nothing that has a meaning.
        ("gzip;q=0", "identity"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=2", "identity"),
        # There is always an answer.
        ("identity;q=0", "identity"),
        ("*;q=0", "identity"),
        ("gzip;q=0, *;q=0", "identity"),
        ("identity;q=0, gzip", "gzip"),
    ],
)
def test_a_stream_has_a_coding_when_it_is_asked_for_by_name(
    accept_encoding: str | None, coding: str
) -> None:
    assert negotiate_stream_coding(accept_encoding, STREAM_CODINGS) == coding


def test_only_what_is_offered_is_chosen_and_in_that_order() -> None:
    assert negotiate_stream_coding("gzip, zstd", ["gzip", "zstd"]) == "gzip"
    assert negotiate_stream_coding("gzip, zstd", ["gzip"]) == "gzip"
    assert negotiate_stream_coding("zstd", ["gzip"]) == "identity"
    assert negotiate_stream_coding("gzip, zstd, br", []) == "identity"


@given(st.text(alphabet="gzipbrstdx-*;=q01. ,\tentiy", max_size=80))
def test_no_header_is_an_error(accept_encoding: str) -> None:
    chosen = negotiate_stream_coding(accept_encoding, STREAM_CODINGS)
    assert chosen in (*STREAM_CODINGS, "identity")

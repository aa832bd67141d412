"""Rings: what they keep, what they drop, and from where they can vouch for everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.event import Event
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry, Ring
from gateway.protocol.sse import encode_enveloped, encode_event

END = Position(2**53 - 1, 0)
PLENTY = 10**9


def event(ms: int, prev: int, data: bytes = b"x", *, deletion: bool = False) -> Event:
    return Event(Position(ms, 0), Position(prev, 0), "a", data, deletion=deletion)


def new_ring(
    resumable_from: Position = ORIGIN,
    *,
    limit_events: int = 1000,
    limit_bytes: int = 1_000_000,
    age_ms: int = 1_000_000,
    spare_ms: int = 0,
) -> Ring:
    return Ring(
        resumable_from,
        limit_events=limit_events,
        limit_bytes=limit_bytes,
        age_ms=age_ms,
        spare_ms=spare_ms,
    )


def fill(ring: Ring, *times: int, data: bytes = b"x") -> Ring:
    for ms in times:
        ring.append(event(ms, ring.last.ms, data))
    return ring


def kept(ring: Ring, after: int = 0, until: Position = END, limit_bytes: int = PLENTY) -> list[int]:
    return [entry.id.ms for entry in ring.after(Position(after, 0), until, limit_bytes)]


def test_a_frame_is_made_once_in_each_form() -> None:
    entry = Entry(event(5, 0, b'{"a":1}'))
    assert entry.frame(enveloped=False) == encode_event(entry.event)
    assert entry.frame(enveloped=True) == encode_enveloped(entry.event)
    assert entry.frame(enveloped=False) is entry.frame(enveloped=False)
    assert entry.frame(enveloped=True) is entry.frame(enveloped=True)


def test_a_new_ring_is_empty_and_vouches_from_where_it_was_made() -> None:
    ring = new_ring(Position(7, 0))
    assert (len(ring), ring.size_bytes) == (0, 0)
    assert (ring.resumable_from, ring.last, ring.complete) == (
        Position(7, 0),
        Position(7, 0),
        False,
    )
    assert kept(ring) == []
    assert ring.page(ORIGIN, 10) == []


def test_events_are_read_after_a_position_up_to_another() -> None:
    ring = fill(new_ring(), 10, 20, 30, 40)
    assert kept(ring) == [10, 20, 30, 40]
    assert kept(ring, after=20) == [30, 40]
    assert kept(ring, after=25) == [30, 40]
    assert kept(ring, after=40) == []
    assert kept(ring, until=Position(30, 0)) == [10, 20, 30]
    assert kept(ring, after=30, until=Position(20, 0)) == []
    assert ring.last == Position(40, 0)


def test_what_lies_between_two_positions_is_told_without_reading_it() -> None:
    ring = fill(new_ring(), 10, 20, 30)
    assert ring.has_between(Position(10, 0), Position(20, 0))
    assert not ring.has_between(Position(10, 0), Position(19, 0))
    assert not ring.has_between(Position(30, 0), END)


def test_a_page_is_bounded_by_its_number_of_events() -> None:
    ring = fill(new_ring(), 10, 20, 30, 40)
    assert [item.id.ms for item in ring.page(Position(10, 0), 2)] == [20, 30]
    assert [item.id.ms for item in ring.page(Position(30, 0), 2)] == [40]


def test_a_piece_is_bounded_by_its_bytes_but_never_empty() -> None:
    ring = fill(new_ring(), 10, 20, 30, data=b"x" * 1000)
    assert kept(ring, limit_bytes=3 * 1064) == [10, 20, 30]
    assert kept(ring, limit_bytes=3 * 1064 - 1) == [10, 20]
    assert kept(ring, limit_bytes=1) == [10]


def test_the_number_of_events_is_bounded() -> None:
    ring = fill(new_ring(limit_events=2), 10, 20, 30, 40)
    assert kept(ring) == [30, 40]
    assert ring.resumable_from == Position(20, 0)


def test_the_age_is_bounded_as_seen_from_the_last_event() -> None:
    ring = fill(new_ring(age_ms=100), 10, 20, 110)
    assert kept(ring) == [10, 20, 110]
    fill(ring, 111)
    assert kept(ring) == [20, 110, 111]
    fill(ring, 1000)
    assert kept(ring) == [1000]
    assert ring.resumable_from == Position(111, 0)


def test_the_bytes_of_data_are_bounded_but_the_last_event_stays() -> None:
    ring = fill(new_ring(limit_bytes=2500), 10, 20, 30, data=b"x" * 1000)
    assert kept(ring) == [20, 30]
    fill(ring, 40, data=b"x" * 9999)
    assert kept(ring) == [40]
    assert ring.resumable_from == Position(30, 0)


def test_the_number_of_events_spares_the_young_ones_but_their_bytes_do_not() -> None:
    ring = fill(new_ring(limit_events=2, spare_ms=100, limit_bytes=6000), 10, 20, 30, 110, 120)
    assert kept(ring) == [20, 30, 110, 120]
    fill(ring, 130)
    assert kept(ring) == [30, 110, 120, 130]
    fill(ring, 1000)
    assert kept(ring) == [130, 1000]
    fill(ring, *range(1001, 1010), data=b"x" * 1000)
    assert kept(ring) == [1004, 1005, 1006, 1007, 1008, 1009]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 8), st.integers(0, 100), st.data())
def test_workers_that_saw_a_part_keep_the_same_as_those_that_saw_all(
    pauses: list[int], limit_events: int, spare_ms: int, data: st.DataObject
) -> None:
    events, ms = list[Event](), 0
    for pause in pauses:
        events.append(event(ms + pause + 1, ms))
        ms += pause + 1
    whole = new_ring(limit_events=limit_events, spare_ms=spare_ms)
    for item in events:
        whole.append(item)
    seen = data.draw(st.integers(0, len(events)))
    begun = events[seen - 1].id if seen else ORIGIN
    late = new_ring(begun, limit_events=limit_events, spare_ms=spare_ms)
    # The store keeps at least what the rule says.
    late.backfill(events[:seen], ORIGIN)
    for item in events[seen:]:
        late.append(item)
    assert kept(late) == kept(whole)
    assert (late.resumable_from, late.last) == (whole.resumable_from, whole.last)


def test_a_ring_that_only_age_bounds_has_no_span() -> None:
    ring = new_ring(age_ms=100)
    ring.complete = True
    assert ring.span_ms(50) is None
    fill(ring, 10, 20, 200)
    assert (kept(ring), ring.span_ms(210)) == ([200], None)


def test_a_ring_that_was_cut_short_spans_what_is_left() -> None:
    ring = fill(new_ring(limit_events=2), 10, 20, 30, 40)
    assert ring.span_ms(100) == 100 - 20
    # Quiet since then, it reaches further back with time.
    assert ring.span_ms(5000) == 5000 - 20
    assert ring.span_ms(5) == 0
    ring.append(event(50, 40, b"", deletion=True))
    assert ring.span_ms(100) is None
    by_bytes = fill(new_ring(limit_bytes=2000), 10, 20, 30, data=b"x" * 1000)
    assert by_bytes.span_ms(100) == 100 - 10


def test_what_was_cut_short_in_the_store_is_known_after_a_backfill() -> None:
    ring = new_ring(Position(30, 0), age_ms=100)
    ring.backfill([event(20, 10), event(30, 20)], Position(10, 0))
    assert ring.span_ms(90) == 80
    whole = new_ring(Position(30, 0), age_ms=100_000)
    whole.backfill([event(20, 0), event(30, 20)], ORIGIN)
    assert whole.span_ms(90) is None
    # What lies before the age has gone by it.
    old = new_ring(Position(300, 0), age_ms=100)
    old.backfill([event(250, 150), event(300, 250)], Position(150, 0))
    assert old.span_ms(350) is None


@pytest.mark.parametrize("complete", [True, False])
def test_a_ring_that_is_not_full_yet_is_told_from_its_pace(complete: bool) -> None:
    ring = new_ring(Position(1000, 0), limit_bytes=10_000, age_ms=60_000)
    ring.complete = complete
    assert ring.span_ms(2000) is None
    fill(ring, 2000, 2500, data=b"x" * 500)
    assert ring.complete is complete
    # A thousand bytes in two seconds: the ring holds what comes in twenty.
    assert ring.span_ms(4000) == 20_000
    assert ring.span_ms(2100) == 10_000
    assert ring.span_ms(10_000) is None


@pytest.mark.parametrize(("spare_ms", "span_ms"), [(0, 10_000), (5000, 10_000), (20_000, 20_000)])
def test_the_number_counts_for_the_pace_beyond_what_it_spares(spare_ms: int, span_ms: int) -> None:
    ring = new_ring(limit_events=100, age_ms=60_000, spare_ms=spare_ms)
    assert fill(ring, *range(1000, 1010)).span_ms(2000) == span_ms


def test_a_ring_keeps_all_that_the_store_does_within_the_same_bytes() -> None:
    # The store counts each event's type, key and 64 bytes too, so it drops no later.
    ring = fill(new_ring(limit_bytes=10 * 1000), *range(1, 11), data=b"x" * 1000)
    assert len(ring) == 10


def test_what_was_dropped_is_let_go_of_in_memory() -> None:
    ring = fill(new_ring(limit_events=3), *range(1, 500))
    assert kept(ring) == [497, 498, 499]
    assert ring.size_bytes == sum(entry.size_bytes for entry in ring.after(ORIGIN, END, PLENTY))
    assert len(ring._entries) < 100


def test_a_deletion_leaves_nothing_to_resume_from_before_it() -> None:
    ring = fill(new_ring(), 10, 20)
    entry = ring.append(event(30, 20, b"", deletion=True))
    assert entry.event.deletion
    assert (len(ring), ring.size_bytes) == (0, 0)
    assert (ring.resumable_from, ring.last, ring.complete) == (
        Position(30, 0),
        Position(30, 0),
        True,
    )
    fill(ring, 40)
    assert kept(ring) == [40]
    assert ring.resumable_from == Position(30, 0)


def test_an_event_that_shows_a_hole_starts_the_ring_again() -> None:
    ring = fill(new_ring(), 10, 20)
    ring.append(event(50, 40))
    assert kept(ring) == [50]
    assert (ring.resumable_from, ring.complete) == (Position(40, 0), False)


def test_a_backfill_puts_the_older_part_of_the_stores_ring_in_front() -> None:
    ring = fill(new_ring(Position(30, 0)), 40, 50)
    stored = [event(20, 10), event(30, 20), event(40, 30), event(50, 40), event(60, 50)]
    ring.backfill(stored, Position(10, 0))
    assert kept(ring) == [20, 30, 40, 50]
    assert (ring.resumable_from, ring.complete) == (Position(10, 0), True)
    assert ring.last == Position(50, 0)
    assert ring.size_bytes == 4 * Entry(event(1, 0)).size_bytes


def test_a_backfill_that_was_read_before_a_trim_leaves_no_hole() -> None:
    ring = fill(new_ring(Position(10, 0), limit_events=3), 20, 30, 40, 50)
    assert (ring.resumable_from, ring.complete) == (Position(20, 0), True)
    ring.backfill([event(10, 0)], ORIGIN)
    assert kept(ring) == [30, 40, 50]
    assert ring.resumable_from == Position(20, 0)


def test_a_backfill_over_the_bounds_is_trimmed() -> None:
    ring = fill(new_ring(Position(30, 0), limit_events=3), 40, 50)
    ring.backfill([event(10, 0), event(20, 10), event(30, 20)], ORIGIN)
    assert kept(ring) == [30, 40, 50]
    assert ring.resumable_from == Position(20, 0)


def test_a_backfill_from_an_empty_store_never_moves_forward() -> None:
    ring = fill(new_ring(Position(30, 0)), 40)
    ring.backfill([], Position(99, 0))
    assert kept(ring) == [40]
    assert (ring.resumable_from, ring.complete) == (Position(30, 0), True)


def test_a_backfill_that_was_read_before_a_deletion_brings_nothing_back() -> None:
    ring = fill(new_ring(Position(10, 0)), 20)
    ring.append(event(30, 20, b"", deletion=True))
    ring.backfill([event(10, 0), event(20, 10)], ORIGIN)
    assert kept(ring) == []
    assert ring.resumable_from == Position(30, 0)


actions = st.sampled_from(["publish", "publish", "publish", "miss", "delete", "read", "backfill"])


@given(
    st.lists(st.tuples(actions, st.integers(1, 40), st.integers(0, 300)), max_size=60),
    st.integers(1, 8),
)
def test_everything_after_resumable_from_is_there_whatever_happens(
    steps: list[tuple[str, int, int]], limit_events: int
) -> None:
    """A model of the store beside the ring: nothing that the ring vouches for may be missing."""
    ring = new_ring(limit_events=limit_events, limit_bytes=1000, age_ms=200)
    last, living, deleted, seen = ORIGIN, list[Event](), ORIGIN, [ORIGIN]
    read: tuple[list[Event], Position] | None = None
    for action, pause_ms, size in steps:
        position = Position(last.ms + pause_ms, 0)
        match action:
            case "publish" | "miss":
                added = Event(position, last, "a", b"x" * size)
                living.append(added)
                last = position
                if action == "publish":
                    ring.append(added)
                else:
                    read = None  # Whoever missed an event reads again.
            case "delete":
                ring.append(Event(position, last, "a", b"", deletion=True))
                living, deleted, last = [], position, position
            case "read":
                stored = living[-limit_events:]
                read = (stored, stored[0].prev if stored else last)
            case "backfill" if read is not None:
                ring.backfill(*read)
        assert len(ring) <= limit_events
        seen.append(last)
        for known in seen:
            if ring.resumable_from <= known <= ring.last:
                assert known >= deleted
                expected = [item for item in living if known < item.id <= ring.last]
                assert [entry.event for entry in ring.after(known, END, PLENTY)] == expected
                assert ring.page(known, len(living) + 1) == expected


@pytest.mark.parametrize("limit_bytes", [1, 200, 500, PLENTY])
@given(sizes=st.lists(st.integers(0, 300), max_size=20))
def test_pieces_in_a_row_are_the_whole(limit_bytes: int, sizes: list[int]) -> None:
    ring = new_ring()
    for ms, size in enumerate(sizes, start=1):
        ring.append(event(ms, ms - 1, b"x" * size))
    position, times = ORIGIN, list[int]()
    while piece := ring.after(position, END, limit_bytes):
        assert len(piece) == 1 or sum(len(e.event.data) + 64 for e in piece) <= limit_bytes
        times += [entry.id.ms for entry in piece]
        position = piece[-1].id
    assert times == list(range(1, len(sizes) + 1))

"""The mirror: verdicts on positions, merged replay in pieces, and its bound."""

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

from gateway.hub.mirror import Mirror, Missing, NeedsRings, Resumable, Verdict
from gateway.protocol.event import Event
from gateway.protocol.life import Cut, Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.store.scripts import ChannelContents, IndexEntry
from tests.hub.following import select

LIFE = Life("e", "1", clock=Position(100, 0), floor=Position(10, 0), last=Position(100, 0))
RULES = Namespace("default", ring_limit_events=3)


def at(ms: int) -> Position:
    return Position(ms, 0)


def event(ms: int, prev: int, channel: str = "a", **more: object) -> Event:
    return Event(at(ms), at(prev), channel, b"1", json=True)._replace(**more)  # type: ignore[arg-type]


def mirror(
    index: dict[str, int] | None = None,
    events: Iterable[Event] = (),
    *,
    life: Life = LIFE,
    limit_bytes: int = 1 << 20,
    rules: Namespace = RULES,
) -> Mirror:
    """Return a mirror that began with this index and then took these events."""
    made = Mirror(rules, limit_bytes)
    made.restart(life, {n: IndexEntry(at(ms), False) for n, ms in (index or {}).items()})
    made.take(events)
    return made


def judge(made: Mirror, ms: int, *selectors: str) -> Verdict:
    return made.judge(select(*(selectors or ("a",))), at(ms))


def test_a_position_past_the_clock_was_never_given_out() -> None:
    made = mirror()
    assert judge(made, 101) == Missing("unknown", at(100))
    assert judge(made, 100) == Resumable()
    made.clock = at(150)
    assert judge(made, 150) == Resumable()
    assert judge(made, 151) == Missing("unknown", at(100))


def test_a_position_below_the_floor_is_gone() -> None:
    assert judge(mirror(), 9) == Missing("evicted", at(10))
    assert judge(mirror(), 10) == Resumable()


def test_a_position_strictly_inside_a_cut_is_gone() -> None:
    made = mirror(life=replace(LIFE, cuts=(Cut(at(50), at(60)),)))
    verdicts = {ms: judge(made, ms) for ms in (50, 51, 59, 60)}
    assert verdicts[50] == verdicts[60] == Resumable()
    assert verdicts[51] == verdicts[59] == Missing("restored", at(100))


def test_a_channel_that_has_not_moved_needs_nothing() -> None:
    made = mirror({"a": 40, "b": 90})
    assert judge(made, 40) == Resumable()
    assert judge(made, 99, "a", "b", "never") == Resumable()
    assert judge(made, 10, "never", "no/*") == Resumable()


def test_a_channel_that_moved_unseen_needs_its_ring() -> None:
    made = mirror({"a": 40, "b/1": 50, "b/2": 60})
    assert judge(made, 39) == NeedsRings(["a"])
    verdict = judge(made, 45, "a", "b/*")
    assert isinstance(verdict, NeedsRings)
    assert sorted(verdict.channels) == ["b/1", "b/2"]


def test_a_ring_that_began_with_the_tail_serves_from_there_on() -> None:
    made = mirror({"a": 40}, [event(101, 40), event(102, 101)])
    assert judge(made, 40) == Resumable()
    assert judge(made, 101) == Resumable()
    assert judge(made, 39) == NeedsRings(["a"])


def test_a_channel_that_is_new_to_the_index_is_whole() -> None:
    made = mirror({}, [event(101, 0)])
    assert judge(made, 10) == Resumable()


def test_a_ring_that_dropped_events_serves_from_the_last_dropped_on() -> None:
    made = mirror({}, [event(101, 0), *(event(ms, ms - 1) for ms in range(102, 106))])
    assert judge(made, 101) == Missing("evicted", at(102))
    assert judge(made, 102) == Resumable()
    # Among several channels the latest of their oldest counts.
    made.take(
        [event(106, 0, "b"), *(event(ms, ms - 1, "b") for ms in range(107, 111))],
    )
    assert judge(made, 101, "a", "b") == Missing("evicted", at(107))
    assert judge(made, 107, "a", "b") == Resumable()


def test_what_is_gone_is_told_before_rings_are_read() -> None:
    made = mirror({"b": 40}, [event(101, 0), *(event(ms, ms - 1) for ms in range(102, 106))])
    assert judge(made, 20, "a", "b") == Missing("evicted", at(102))
    assert judge(made, 20, "b") == NeedsRings(["b"])


def test_a_deletion_is_the_end_of_what_can_be_resumed() -> None:
    end = event(102, 101, deletion=True, data=b"")
    made = mirror({}, [event(101, 0), end])
    assert not made.exists("a")
    assert judge(made, 101) == Missing("deleted", at(102))
    assert judge(made, 102) == Resumable()
    made.take([event(103, 102)])
    assert made.exists("a")
    assert judge(made, 101) == Missing("evicted", at(102))
    assert judge(made, 102) == Resumable()
    assert judge(made, 101, "a", "b") == Missing("evicted", at(102))
    assert judge(made, 101, "b") == Resumable()


def test_a_ring_from_the_store_answers_for_what_was_before() -> None:
    made = mirror({"a": 40}, [event(101, 40)])
    index = IndexEntry(at(101), False)
    contents = ChannelContents(index, [event(30, 20), event(40, 30), event(101, 40)], {})
    assert made.add_ring("a", contents, at(100))
    assert judge(made, 20) == Resumable()
    assert judge(made, 19) == Missing("evicted", at(20))
    entries = made.entries_after(select("a"), at(20), 10_000)
    assert [entry.id for entry in entries] == [at(30), at(40), at(101)]


def test_a_ring_that_expired_leaves_its_channels_last_position() -> None:
    made = mirror({"a": 40})
    assert made.add_ring("a", ChannelContents(IndexEntry(at(40), False), [], {}), at(100))
    assert judge(made, 39) == Missing("evicted", at(40))
    assert judge(made, 40) == Resumable()


def test_a_ring_read_before_the_tail_went_on_is_refused() -> None:
    made = mirror({"a": 40}, [event(101, 40)], limit_bytes=1)
    made.take([event(102, 0, "b")])
    assert made.ring("a") is None
    stale = ChannelContents(IndexEntry(at(40), False), [event(40, 30)], {})
    assert not made.add_ring("a", stale, at(100))
    assert made.add_ring("a", replace(stale, ring=[event(40, 30), event(101, 40)]), at(102))
    assert judge(made, 30) == Resumable()


def test_a_ring_that_was_dropped_and_begun_again_during_its_read_is_refused() -> None:
    made = mirror({"a": 40}, [event(101, 40)], limit_bytes=1)
    stale = ChannelContents(IndexEntry(at(40), False), [event(40, 30)], {})
    made.take([event(102, 0, "b")])
    made.take([event(103, 101)])
    # The read knows nothing of what happened at 101.
    assert not made.add_ring("a", stale, at(100))
    assert judge(made, 40) == NeedsRings(["a"])
    whole = [event(40, 30), event(101, 40), event(103, 101)]
    assert made.add_ring("a", ChannelContents(IndexEntry(at(103), False), whole, {}), at(103))
    entries = made.entries_after(select("a"), at(30), 10_000)
    assert [entry.id for entry in entries] == [at(40), at(101), at(103)]


def test_another_history_drops_rings_and_index() -> None:
    made = mirror({"a": 40}, [event(101, 40)])
    life = replace(LIFE, epoch="f", floor=at(200), clock=at(210), last=at(200))
    made.restart(life, {"b": IndexEntry(at(205), False)})
    assert (made.tailed, made.clock, made.head) == (at(200), at(210), at(210))
    assert made.size_bytes == 0
    assert not made.exists("a")
    assert judge(made, 200, "b") == NeedsRings(["b"])
    assert judge(made, 101) == Missing("evicted", at(200))


def published(channels: int, count: int, seed: int) -> list[Event]:
    """Return events of many sizes, on channels of very different pace."""
    chance = random.Random(seed)
    last: dict[str, Position] = {}
    events = []
    for ms in range(101, 101 + count):
        channel = f"c/{min(int(chance.expovariate(0.4)), channels - 1)}"
        data = b'"%b"' % (b"x" * chance.choice((1, 50, 400, 3000)))
        events.append(Event(at(ms), last.get(channel, ORIGIN), channel, data, json=True))
        last[channel] = at(ms)
    return events


@pytest.mark.parametrize("piece_bytes", [1, 500, 5_000, 10_000_000])
def test_a_merged_replay_is_in_order_whole_and_in_bounded_pieces(piece_bytes: int) -> None:
    rules = replace(RULES, ring_limit_events=10_000)
    events = published(8, 600, seed=piece_bytes)
    made = mirror({}, events, rules=rules, limit_bytes=1 << 30)
    for start in (0, 150, 599, 600):
        position, got = at(100 + start), []
        while piece := made.entries_after(select("c/*"), position, piece_bytes):
            size = sum(len(entry.event.data) + 64 for entry in piece)
            assert size <= piece_bytes or len(piece) == 1
            got += [entry.event for entry in piece]
            position = piece[-1].id
        assert got == events[start:]


def test_a_replay_ends_where_the_tail_is() -> None:
    """The index may know of later events than the tail has brought."""
    made = mirror({"a": 40, "b": 120})
    ring = [event(90, 0, "b"), event(120, 90, "b")]
    assert not made.add_ring("b", ChannelContents(IndexEntry(at(120), False), ring, {}), at(100))
    made.take([event(120, 90, "b")])
    assert made.add_ring("b", ChannelContents(IndexEntry(at(120), False), ring, {}), at(100))
    entries = made.entries_after(select("a", "b"), at(50), 10_000)
    assert [entry.id for entry in entries] == [at(90), at(120)]


def size_of(made: Mirror) -> int:
    rings = (made.ring(name) for name in list(made.index))
    return sum(ring.size_bytes for ring in rings if ring is not None)


def test_rings_stay_within_the_limit_and_those_used_longest_ago_go_first() -> None:
    events = [event(101 + n, 0, f"c/{n}", data=b"x" * 1000) for n in range(100)]
    one = mirror({}, events[:1]).size_bytes
    made = mirror({}, events[:10], limit_bytes=10 * one)
    assert not made.full
    assert made.size_bytes == size_of(made) == 10 * one
    made.ring("c/0")
    made.take(events[10:12])
    assert [made.ring(f"c/{n}") is not None for n in range(4)] == [True, False, False, True]
    for later in events[12:]:
        made.take([later])
        assert made.size_bytes <= 10 * one
    assert made.size_bytes == size_of(made)
    assert judge(made, 100, "c/0") == NeedsRings(["c/0"])


def test_one_ring_is_kept_however_large() -> None:
    made = mirror({}, [event(101, 0, data=b"x" * 1000), event(102, 101)], limit_bytes=1)
    assert judge(made, 100) == Resumable()
    assert made.full
    made.take([event(103, 0, "b")])
    assert made.ring("a") is None
    assert judge(made, 102, "b") == Resumable()


def test_channels_whose_rings_cannot_be_kept_together_are_a_gap() -> None:
    index = {f"c/{n}": 40 + n for n in range(10)}
    contents = {
        name: ChannelContents(IndexEntry(at(ms), False), [event(ms, 0, name)], {})
        for name, ms in index.items()
    }
    made = mirror(index)
    one = made.size_bytes
    assert made.add_ring("c/0", contents["c/0"], at(100))
    one = made.size_bytes - one
    made = mirror(index, limit_bytes=4 * one)
    verdict = judge(made, 30, "c/*")
    rounds = 0
    while isinstance(verdict, NeedsRings):
        rounds += 1
        for name in verdict.channels[:3]:
            assert made.add_ring(name, contents[name], at(100))
        verdict = judge(made, 30, "c/*")
    assert verdict == Missing("too_large", at(100))
    assert rounds <= 4
    # Fewer of them fit, and each alone.
    assert judge(made, 47, "c/*") != verdict
    for name in index:
        assert made.add_ring(name, contents[name], at(100))
        assert judge(made, 30, name) == Resumable()

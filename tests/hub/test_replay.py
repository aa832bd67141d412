"""Replays: shared by all who come back, in order, and never at the cost of everybody else."""

import asyncio
from dataclasses import replace

import pytest

from gateway.hub.hub import Hub, HubOptions
from gateway.hub.mirror import Mirror
from gateway.hub.tail import Tail
from gateway.protocol.event import Event
from gateway.protocol.life import Cut, Life
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.protocol.selector import Selection, parse_selection
from gateway.store.scripts import ChannelContents, IndexEntry
from tests.running import until

CHANNELS = 5000
START = Position(1, 0)
WIDE = replace(parse_selection(["x/*"], ()), enveloped=True)


class Reader:
    """A connection that takes everything, or one chunk at a time."""

    fd = -1

    def __init__(self, *, slow: bool = False) -> None:
        self.chunks: list[bytes] = []
        self.slow = slow

    def write(self, chunk: bytes) -> bool:
        self.chunks.append(chunk)
        return not self.slow

    def keep(self, chunk: bytes, outcome: int) -> None:
        raise AssertionError("it has no socket")

    def count_unsent(self) -> int:
        return 0

    def close(self) -> None:
        self.chunks.append(b"closed")

    def abort(self) -> None:
        self.chunks.append(b"aborted")

    @property
    def ids(self) -> list[str]:
        lines = b"".join(self.chunks).decode().splitlines()
        return [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]


class NoStates:
    """Nobody conflates here."""

    def peek(self, mirror: Mirror, channel: str) -> bytes | None:
        raise AssertionError(channel)

    async def load(self, tail: Tail, channel: str) -> None:
        raise AssertionError(channel)


class CountingMirror(Mirror):
    """A mirror that counts how often rings are merged."""

    merges = 0

    def entries_after(
        self, selection: Selection, position: Position, limit_bytes: int
    ) -> list[Entry]:
        self.merges += 1
        return super().entries_after(selection, position, limit_bytes)


def filled(*cuts: Cut) -> CountingMirror:
    mirror = CountingMirror(Namespace("default"), 1 << 30)
    mirror.restart(Life("e1", "1@1-0", START, START, START, cuts), {})
    mirror.take(Event(Position(2 + at, 0), ORIGIN, f"x/{at}", b"x" * 500) for at in range(CHANNELS))
    return mirror


def read_from_the_store() -> CountingMirror:
    """The same, as a worker has it that was not there when the events came."""
    mirror = CountingMirror(Namespace("default"), 1 << 30)
    events = [Event(Position(2 + n, 0), ORIGIN, f"x/{n}", b"x" * 500) for n in range(CHANNELS)]
    last = events[-1].id
    index = {event.channel: IndexEntry(event.id, deleted=False) for event in events}
    mirror.restart(Life("e1", "1@1-0", last, START, last), index)
    for event in events:
        contents = ChannelContents(index[event.channel], [event], {})
        assert mirror.add_ring(event.channel, contents, last)
    return mirror


def expected() -> list[str]:
    return [str(START), *(f"{2 + at}-0" for at in range(CHANNELS))]


async def test_a_wide_replay_gives_the_loop_to_others_between_its_turns() -> None:
    hub, reader, turns = Hub(HubOptions(), NoStates()), Reader(), 0
    subscriber = hub.join(reader, filled(), WIDE, START)
    while subscriber in subscriber.subscription.behind:
        await asyncio.sleep(0)
        turns += 1
    assert reader.ids == expected()
    # Some 2.8 MB in turns of 256 KiB and a little more.
    assert turns >= 8


async def test_a_crowd_at_one_position_shares_one_merging_of_the_rings() -> None:
    mirror, hub = filled(), Hub(HubOptions(), NoStates())
    readers = [Reader() for _ in range(50)]
    for reader in readers:
        hub.join(reader, mirror, WIDE, START)
    await until(lambda: not hub.count_lagging())
    assert all(reader.ids == expected() for reader in readers)
    # A mebibyte of events to a merging; one more finds the end for each who ends alone.
    assert mirror.merges < 2 * len(readers)


async def test_rings_read_from_the_store_are_merged_as_seldom_as_those_that_were_tailed() -> None:
    merges = []
    for mirror in (filled(), read_from_the_store()):
        hub, reader = Hub(HubOptions(), NoStates()), Reader()
        hub.join(reader, mirror, WIDE, START)
        while hub.count_lagging():
            await asyncio.sleep(0)
        assert reader.ids == expected()
        merges.append(mirror.merges)
    assert merges[0] == merges[1] <= 5


async def test_a_reader_of_one_chunk_at_a_time_has_all_in_order() -> None:
    mirror, hub, slow = filled(), Hub(HubOptions(), NoStates()), Reader(slow=True)
    subscriber = hub.join(slow, mirror, WIDE, START)
    others = [Reader() for _ in range(3)]
    while subscriber in subscriber.subscription.behind:
        hub.writable(subscriber)
        if others:
            hub.join(others.pop(), mirror, WIDE, START)
        await asyncio.sleep(0)
    assert slow.ids == expected()


async def test_a_position_inside_a_cut_is_a_gap_though_a_replay_reaches_over_it() -> None:
    mirror = filled(Cut(Position(100, 0), Position(200, 0)))
    hub, before, inside = Hub(HubOptions(), NoStates()), Reader(slow=True), Reader()
    hub.writable(hub.join(before, mirror, WIDE, Position(50, 0)))
    hub.join(inside, mirror, WIDE, Position(150, 0))
    assert b"event: gap" in b"".join(inside.chunks)
    assert b'"reason":"restored"' in b"".join(inside.chunks)


class States(NoStates):
    """Every state is here, and small."""

    def peek(self, mirror: Mirror, channel: str) -> bytes | None:
        return b'{"state":{}}'


@pytest.mark.parametrize("with_rings", [True, False])
async def test_a_lagging_reader_waits_while_the_index_knows_more_than_was_tailed(
    with_rings: bool,
) -> None:
    """After a break the index is read later than the bus's end: it names events still to come."""
    mirror = Mirror(Namespace("default", Reducer.KEYED, conflate=True), 1 << 28)
    life = Life("e1", "1@1-0", Position(10, 0), START, Position(10, 0))
    mirror.restart(life, {"x": IndexEntry(Position(5000, 0), deleted=False)})
    hub, reader = Hub(HubOptions(), States()), Reader()
    subscriber = hub.join(reader, mirror, parse_selection(["x"], ()), Position(10, 0))
    subscriber.lagging = True
    if with_rings:
        hub.take(mirror, mirror.take([Event(Position(11, 0), Position(10, 0), "x", b"1")]))
    written = len(reader.chunks)
    for _ in range(5):
        hub.writable(subscriber)
        await asyncio.sleep(0)
    # An event that is there may be sent, and no state that is not true yet.
    assert reader.ids[written:] in ([], ["11-0"])
    assert b"reset" not in b"".join(reader.chunks)
    assert not any(chunk in (b"closed", b"aborted") for chunk in reader.chunks)

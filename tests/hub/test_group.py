"""Groups and lanes: everybody in one gets every chunk once, whoever comes and goes."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from gateway.hub.chunk import Chunk
from gateway.hub.group import Group, KeptGroup
from gateway.hub.lane import Lane
from gateway.hub.subscriber import Subscriber
from gateway.protocol.position import Position
from gateway.protocol.stream_coding import STREAM_CODINGS, SYNC_EVENTS, opening_of
from tests.hub.streaming import World, decoder, streaming

PARTS = 20


class Members:
    """Subscribers with readers, for groups that the test itself fills."""

    def __init__(self, world: World, kinds: list[str]) -> None:
        self.world = world
        self.kinds = kinds
        self.subscribers: list[Subscriber] = []

    async def fill(self) -> None:
        for kind in self.kinds:
            if kind == "kept":
                reader = await self.world.join_kept("a")
            else:
                reader = self.world.join("a")
            reader.subscriber.subscription.remove(reader.subscriber)  # Of the hub no more.
            reader.socket.recv(1 << 16)
            reader.reading = False
            self.subscribers.append(reader.subscriber)

    def begin(self) -> None:
        """Forget what an example before this may have left behind."""
        for subscriber in self.subscribers:
            subscriber.group, subscriber.slot = None, -1
        self.received()

    def received(self) -> list[bytes]:
        """Return what has come since this was asked last, by reader."""
        got = []
        for reader in self.world.readers:
            try:
                got.append(reader.socket.recv(1 << 20))
            except BlockingIOError:
                got.append(b"")
        return got


COUNT = 7
_leaves = st.booleans()
_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "discard"]), st.integers(0, COUNT - 1)),
        st.tuples(st.just("pass"), st.integers(1, 4)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", ["pair", "kept"])
async def test_a_pass_reaches_everybody_who_stays_and_nobody_who_left(kind: str) -> None:
    async with streaming() as world:
        members = Members(world, [kind] * COUNT)
        await members.fill()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(steps=_steps, data=st.data())
        def check(steps: list[tuple[str, int]], data: st.DataObject) -> None:
            group = KeptGroup() if kind == "kept" else Group()
            inside: set[int] = set()
            members.begin()
            for name, number in steps:
                subscriber = members.subscribers[number % COUNT]
                if name == "add" and number not in inside:
                    inside.add(number)
                    group.add(subscriber)
                    assert subscriber.group is group
                elif name == "discard" and number in inside:
                    inside.discard(number)
                    group.discard(subscriber)
                    assert (subscriber.group, subscriber.slot) == (None, -1)
                elif name == "pass":
                    walk(group, inside, number, data)
                assert len(group) == len(inside)
            for number in inside:
                group.discard(members.subscribers[number])
            assert group.members == []

        def walk(group: Group, inside: set[int], writes: int, data: st.DataObject) -> None:
            """Write a chunk in parts, and have somebody leave between them."""
            group.hold()
            written, at = set(inside), 0
            while at < len(group.members):
                stop = min(at + writes, len(group.members))
                assert group.write(b"x", at, stop) == []
                at = stop
                leaves: bool = data.draw(_leaves)
                if leaves and inside:
                    leaver = data.draw(st.sampled_from(sorted(inside)))
                    if members.subscribers[leaver].slot >= at:
                        written.discard(leaver)
                    inside.discard(leaver)
                    group.discard(members.subscribers[leaver])
                    assert len(group) == len(inside)
            group.let_go()
            assert [s.slot for s in group.members if s is not None] == list(range(len(inside)))
            got = members.received()
            assert got == [b"x" if number in written else b"" for number in range(COUNT)]

        check()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(0, 45),
    events=st.lists(
        st.tuples(st.integers(0, PARTS - 1), st.booleans(), st.integers(0, 99)), max_size=8
    ),
)
async def test_a_round_of_heartbeats_reaches_everybody_once_part_by_part(
    count: int, events: list[tuple[int, bool, int]]
) -> None:
    async with streaming() as world:
        members = Members(world, ["pair"] * (count + len(events)))
        await members.fill()
        group = Group()
        present, spare = members.subscribers[:count], members.subscribers[count:]
        for subscriber in present:
            group.add(subscriber)
        group.begin_round(PARTS)
        inside, largest = list(present), 0
        for part in range(PARTS):
            for at, comes, number in events:
                if at == part and comes:
                    inside.append(spare.pop())
                    group.add(inside[-1])
                elif at == part and inside:
                    group.discard(inside.pop(number % len(inside)))
            done, full = group.beat(b"x", PARTS - part)
            assert full == []
            largest = max(largest, done)
        beats = dict(zip(members.subscribers, members.received(), strict=True))
        # Whoever came meanwhile, too.
        assert [beats[subscriber] for subscriber in inside] == [b"x"] * len(inside)
        assert all(got in (b"", b"x") for got in beats.values())
        if not any(comes for _, comes, _ in events):
            assert largest <= -(-count // PARTS)


async def test_a_member_that_takes_no_more_is_named() -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        members = Members(world, ["pair"] * 3)
        await members.fill()
        group = Group()
        for subscriber in members.subscribers:
            group.add(subscriber)
        chunk = bytes(range(256)) * 1000
        group.hold()
        assert group.write(chunk, 1, 2) == [members.subscribers[1]]
        assert group.write(b"small", 0, 1) == []
        group.let_go()
        first, second, third = members.received()
        assert (first, third) == (b"small", b"")
        assert 0 < len(second) < len(chunk)
        assert chunk.startswith(second)


# -- lanes ------------------------------------------------------------------------------------


class Coded:
    """A lane and what each of its readers has been sent."""

    def __init__(self, coding: str) -> None:
        self.coding = coding
        self.lane = Lane(coding)
        self.events = 0
        self.bodies: dict[Subscriber, bytes] = {}

    def add(self, subscriber: Subscriber) -> None:
        self.lane.add(subscriber)
        self.bodies[subscriber] = opening_of(self.coding)

    def has_history(self) -> bool:
        return self.lane.open

    def encode(self, events: int = 1) -> int:
        """Encode a chunk; return in how many different bytes."""
        self.events += events
        data = b"data: %d\n\n" % self.events
        legs = self.lane.encode(Chunk(data, Position(self.events, 0), events), 0.0)
        for group, coded in legs:
            for subscriber in filter(None, group.members):
                self.bodies[subscriber] += coded
        self.lane.let_go()
        for subscriber in self.lane:
            assert decoder(self.coding)(self.bodies[subscriber]).endswith(data)
        return len({coded for _, coded in legs})


@pytest.mark.parametrize("coding", STREAM_CODINGS)
async def test_who_joins_an_open_lane_stands_apart_until_its_history_is_cut(coding: str) -> None:
    async with streaming() as world:
        members = Members(world, ["pair", "kept"] * 3)
        await members.fill()
        coded = Coded(coding)
        for subscriber in members.subscribers[:2]:
            coded.add(subscriber)
        assert not coded.has_history()
        assert coded.encode() == 1
        assert coded.has_history()
        for subscriber in members.subscribers[2:]:
            coded.add(subscriber)
        assert len(coded.lane) == 6
        assert set(coded.lane) == set(members.subscribers)
        assert coded.encode() == 2
        coded.encode(SYNC_EVENTS)
        assert not coded.has_history()
        assert coded.encode() == 1
        assert len(coded.lane) == 6


@pytest.mark.parametrize("coding", STREAM_CODINGS)
async def test_those_apart_share_a_history_once_nobody_has_the_old_one(coding: str) -> None:
    async with streaming() as world:
        members = Members(world, ["pair", "kept", "pair", "kept"])
        await members.fill()
        coded = Coded(coding)
        first, *others = members.subscribers
        coded.add(first)
        coded.encode()
        for subscriber in others:
            coded.add(subscriber)
        assert first.group is not None
        first.group.discard(first)
        assert coded.encode() == 1
        assert coded.has_history()
        coded.add(first)  # With a body of its own.
        assert coded.encode() == 2
        assert coded.encode() == 2


async def test_a_plain_lane_never_has_anybody_apart() -> None:
    async with streaming() as world:
        members = Members(world, ["pair", "kept"])
        await members.fill()
        coded = Coded("identity")
        assert not coded.lane.coded
        for subscriber in members.subscribers:
            coded.add(subscriber)
            assert coded.encode() == 1
        assert [len(group) for group in coded.lane.plain_groups()] == [1, 1]

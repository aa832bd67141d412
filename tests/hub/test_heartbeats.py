"""Heartbeats: to the silent alone, to nobody too late, and not to all of them at once."""

import math
import time

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from gateway.hub import heartbeats as heartbeats_module
from gateway.hub.heartbeats import _PARTS, HEARTBEAT
from gateway.hub.subscription import Subscription
from gateway.protocol.stream_coding import STREAM_CODINGS
from tests.hub.streaming import Kind, Reader, World, streaming
from tests.hub.test_passes import KINDS

INTERVAL = 1000.0
STEP = INTERVAL / 2 / _PARTS
"""As often as the timer looks."""


class Clock:
    """Steps through time, which is handed in; each step is one look of the timer."""

    def __init__(self, world: World, *selectors: str) -> None:
        self.world = world
        self.selectors = selectors
        self.now = time.monotonic()
        self.heard: dict[Reader, float] = {}

    @property
    def subscription(self) -> Subscription:
        return self.world.subscription(*self.selectors)

    def begin(self) -> None:
        """Have the silence begin now."""
        self.subscription.silent_since = self.now
        for reader in self.world.readers:
            reader.read()
            self.heard[reader] = self.now

    def look(self, seconds: float = STEP) -> list[Reader]:
        """Let time pass, and return whom the timer wrote to then."""
        self.now += seconds
        self.world.hub._heartbeats._beat(self.subscription, self.now)
        self.world.hub._passes.run()
        return self.hear()

    def publish(self) -> None:
        """Write an event to everybody."""
        self.world.publish((self.selectors[0], b"1"))
        self.subscription.silent_since = self.now
        self.hear()

    def hear(self) -> list[Reader]:
        hearers = []
        for reader in self.world.readers:
            before = len(reader.body)
            reader.read()
            if len(reader.body) > before:
                hearers.append(reader)
                self.heard[reader] = self.now
        return hearers

    def longest_silence(self) -> float:
        return max((self.now - at for at in self.heard.values()), default=0.0)


async def test_readers_get_one_heartbeat_an_interval_spread_over_half_of_it() -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(3 * _PARTS)]
        clock = Clock(world, "a")
        clock.begin()
        for number in range(1, 4):
            looks = [clock.look() for _ in range(2 * _PARTS)]
            assert [reader.beats for reader in readers] == [number] * len(readers)
            at_once = [len(hearers) for hearers in looks]
            # Two parts at the beginning, as one is written early, then one at a time.
            assert max(at_once) <= 2 * len(readers) // _PARTS
            assert sum(count > 0 for count in at_once) >= _PARTS - 2


async def test_nobody_hears_one_before_half_an_interval_of_silence() -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(5)]
        clock = Clock(world, "a")
        clock.begin()
        for _ in range(50):
            for _ in range(_PARTS - 1):
                assert clock.look() == []
            clock.publish()
        assert [reader.beats for reader in readers] == [0] * 5
        assert all(reader.whole for reader in readers)


async def test_an_event_in_the_middle_of_a_round_ends_it() -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(_PARTS)]
        clock = Clock(world, "a")
        clock.begin()
        clock.look(INTERVAL * 0.75)
        beaten = [reader.beats for reader in readers]
        assert 0 < sum(beaten) < _PARTS
        clock.publish()
        for _ in range(_PARTS - 1):
            assert clock.look() == []
        clock.look(INTERVAL)
        # The next round is for all of them again.
        assert [reader.beats for reader in readers] == [count + 1 for count in beaten]


async def test_a_timer_that_comes_late_makes_up_for_it() -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(30)]
        clock = Clock(world, "a")
        clock.begin()
        assert set(clock.look(3 * INTERVAL)) == set(readers)


@pytest.mark.parametrize("seconds", [INTERVAL / 2, INTERVAL * 0.75, INTERVAL, INTERVAL * 1.25])
@pytest.mark.parametrize("leavers", [1, 40])
async def test_those_who_leave_make_nobody_wait(seconds: float, leavers: int) -> None:
    async with streaming() as world:
        for _ in range(4 * _PARTS):
            world.join("a")
        clock = Clock(world, "a")
        clock.begin()
        for _ in range(int(seconds / STEP)):
            clock.look()
        for leaver in world.readers[:leavers]:
            world.hub.leave(leaver.subscriber)
            leaver.subscriber.connection.close()
            leaver.leave()
            del clock.heard[leaver], world.readers[0]
        for _ in range(8 * _PARTS):
            clock.look()
            assert clock.longest_silence() <= INTERVAL + STEP


_moves = st.lists(
    st.one_of(
        st.tuples(st.just("look"), st.integers(1, 30)),
        st.tuples(st.sampled_from(["join", "leave", "publish"]), st.integers(0, 99)),
    ),
    min_size=5,
    max_size=50,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, 60), moves=_moves, kinds=st.sampled_from([("pair",), ("pair", "kept")]))
async def test_nobody_is_silent_for_longer_than_the_interval_whoever_comes_and_goes(
    count: int, moves: list[tuple[str, int]], kinds: tuple[Kind, ...]
) -> None:
    async with streaming() as world:

        async def join(number: int) -> Reader:
            if kinds[number % len(kinds)] == "kept":
                return await world.join_kept("a")
            return world.join("a", coding=("identity", *STREAM_CODINGS)[number % 5 % 3])

        for number in range(count):
            await join(number)
        clock = Clock(world, "a")
        clock.begin()
        for name, number in moves:
            if name == "look":
                for _ in range(number):
                    clock.look()
                    # One look more: the timer may be late by one.
                    assert clock.longest_silence() <= INTERVAL + STEP
            elif name == "publish":
                clock.publish()
            elif name == "join":
                clock.heard[await join(number)] = clock.now
            elif len(world.readers) > 1:
                leaver = world.readers.pop(number % len(world.readers))
                world.hub.leave(leaver.subscriber)
                leaver.subscriber.connection.close()
                leaver.socket.close()
                del clock.heard[leaver]
        beats = [reader.beats for reader in world.readers]
        looks = sum(number for name, number in moves if name == "look")
        # At most one to half an interval, and never more.
        assert max(beats) <= math.ceil(looks * STEP / (INTERVAL / 2)) + 1


@pytest.mark.parametrize("coding", STREAM_CODINGS)
async def test_who_shares_an_encoder_gets_heartbeats_through_it(coding: str) -> None:
    async with streaming() as world:
        plain = [world.join("a") for _ in range(3)]
        coded = [world.join("a", coding=coding) for _ in range(3)]
        clock = Clock(world, "a")
        clock.begin()
        clock.publish()
        late = world.join("a", coding=coding)  # It stands apart: there is a history.
        coded.append(late)
        groups = {reader.subscriber.group for reader in coded}
        assert len(groups) == 2
        clock.look(INTERVAL * 0.6)
        assert [reader.beats for reader in coded] == [1] * 4
        # History ends there, and those apart are apart no longer.
        assert len({reader.subscriber.group for reader in coded}) == 1
        clock.look(INTERVAL * 0.4)
        assert [reader.beats for reader in plain] == [1] * 3
        clock.publish()
        clock.publish()
        assert all(reader.whole for reader in plain + coded)
        sockets = world.hub.counters.delivered_bytes
        clock.look(INTERVAL * 0.6)
        assert world.hub.counters.delivered_bytes > sockets
        assert [reader.beats for reader in coded] == [2] * 4
        assert all(reader.whole for reader in plain + coded)


async def test_one_that_is_behind_gets_none() -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        behind, other = world.join("a"), world.join("a")
        clock = Clock(world, "a")
        clock.begin()
        behind.reading = False
        while not behind.subscriber.full_since:
            world.publish(("a", b'"%b"' % (b"x" * 3000)))
            await world.until(lambda: other.whole)
        await world.until(lambda: other.subscriber not in clock.subscription.behind)
        world.readers.remove(behind)
        clock.begin()
        for _ in range(5):
            clock.look(INTERVAL)
        assert other.beats == 5
        behind.read()
        assert behind.beats == 0
        world.readers.append(behind)


@pytest.mark.parametrize("kind", ["pair", "kept"])
async def test_one_whom_a_heartbeat_fills_is_behind_and_caught_up(kind: Kind) -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        reader = await (world.join_kept("a") if kind == "kept" else _joined(world))
        clock = Clock(world, "a")
        clock.begin()
        reader.reading = False
        world.readers.remove(reader)
        subscription = reader.subscriber.subscription
        beats = 0
        while not reader.subscriber.full_since:
            world.hub._heartbeats._beat(subscription, subscription.silent_since + 2 * INTERVAL)
            beats += 1
            assert beats < 10_000
        assert world.hub.count_lagging() == 1
        world.readers.append(reader)
        reader.reading = True
        await world.until(lambda: reader.beats == beats and not world.hub.count_lagging())
        world.publish(("a", b"1"))
        await world.settle()
        assert reader.whole


async def _joined(world: World) -> Reader:
    return world.join("a")


async def test_the_timer_beats_by_itself_over_all_subscriptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeats_module, "_TURN_SUBSCRIPTIONS", 2)
    async with streaming(heartbeat_seconds=0.2) as world:
        readers = [
            world.join(f"a{number % 7}", coding=("identity", *STREAM_CODINGS)[number % 3])
            for number in range(21)
        ]
        readers.append(await world.join_kept("a1"))
        await world.until(lambda: all(reader.beats >= 5 for reader in readers))
        # Nobody is favoured: as many for each, give or take those of a round that is under way.
        beats = [reader.beats for reader in readers]
        assert max(beats) <= 2 * min(beats) + 2
        assert all(reader.body.endswith(HEARTBEAT) for reader in readers)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_busy_stream_has_no_heartbeats(kind: Kind) -> None:
    async with streaming(heartbeat_seconds=2.0) as world:
        busy = await (world.join_kept("a") if kind == "kept" else _joined(world))
        quiet = world.join("b")

        def go_on() -> bool:
            world.publish(("a", b"1"))
            return quiet.beats >= 1

        await world.until(go_on)
        await world.settle()
        assert busy.beats == 0
        assert busy.whole

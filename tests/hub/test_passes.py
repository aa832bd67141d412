"""Passes: at once or joined, in parts, and exact whoever comes or goes in the middle of one."""

import asyncio
import itertools
import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from gateway.hub import passes
from gateway.hub.chunk import CHUNK_LIMIT_BYTES
from gateway.hub.mirror import Mirror
from gateway.hub.passes import ROOM_BYTES
from gateway.hub.tail import Tail
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position
from gateway.protocol.stream_coding import STREAM_CODINGS
from gateway.store.redis import RedisStore
from tests.hub.streaming import LIFE, Kind, Reader, World, is_readable, streaming
from tests.running import until
from tests.store.opening import new, publish

CODINGS = ("identity", *STREAM_CODINGS)
KINDS: tuple[Kind, ...] = ("pair", "tcp", "kept")


@pytest.fixture
def turn_writes(monkeypatch: pytest.MonkeyPatch) -> int:
    """A turn of few writes: passes over a handful of readers are in parts."""
    monkeypatch.setattr(passes, "TURN_WRITES", 4)
    return 4


async def turns(count: int = 10) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


def event(number: int, size: int = 0) -> tuple[str, bytes]:
    return "a", b'{"number":%d,"pad":"%b"}' % (number, b"x" * size)


def got_something_new(reader: Reader) -> bool:
    before = len(reader.body)
    reader.read()
    return len(reader.body) > before


# -- joining ----------------------------------------------------------------------------------


@pytest.mark.parametrize("join_seconds", [0.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_quiet_subscription_is_written_to_at_once(kind: Kind, join_seconds: float) -> None:
    async with streaming(join_seconds=join_seconds) as world:
        join = world.join_kept("a", kind=kind) if kind == "kept" else None
        reader = await join if join is not None else world.join("a", kind=kind)
        assert got_something_new(reader)
        # Nothing is awaited between these two lines.
        world.publish(event(1))
        assert got_something_new(reader)
        assert reader.whole


async def test_events_that_follow_soon_go_out_in_one_pass() -> None:
    async with streaming(join_seconds=0.5) as world:
        reader = world.join("a")
        for number in range(6):
            world.publish(event(number))
        counters = world.hub.counters
        assert (counters.passes, counters.deliveries) == (1, 1)
        await world.until(lambda: reader.whole)
        assert (counters.passes, counters.deliveries) == (2, 6)


async def test_events_wait_for_their_time() -> None:
    async with streaming(join_seconds=1000.0) as world:
        reader = world.join("a")
        for number in range(6):
            world.publish(event(number))
            await turns()
        assert world.hub.counters.passes == 1
        assert got_something_new(reader)
        assert not reader.whole


async def test_without_a_time_to_join_every_batch_goes_out_at_once() -> None:
    async with streaming(join_seconds=0.0) as world:
        reader = world.join("a")
        for number in range(6):
            world.publish(event(2 * number), event(2 * number + 1))
            assert world.hub.counters.passes == number + 1
            assert got_something_new(reader)
            assert reader.whole


async def test_a_full_chunk_does_not_wait() -> None:
    async with streaming(join_seconds=1000.0) as world:
        reader = world.join("a")
        size = CHUNK_LIMIT_BYTES // 4
        for number in range(4):
            world.publish(event(number, size))
        assert world.hub.counters.passes == 1
        world.publish(event(4, size))
        assert world.hub.counters.passes == 2
        # What was left over waits again.
        world.publish(event(5))
        assert world.hub.counters.passes == 2
        reader.read()
        assert not reader.whole


async def test_subscriptions_that_wait_are_written_to_in_their_turn() -> None:
    async with streaming(join_seconds=0.01) as world:
        readers = [world.join(f"a{number % 4}", kind="pair") for number in range(8)]
        for round in range(20):
            world.publish(*((f"a{number}", b"%d" % round) for number in range(round % 4 + 1)))
            await turns(3)
        await world.settle()
        assert all(reader.whole for reader in readers)


async def test_who_is_alone_behind_finds_what_was_never_passed_in_the_rings() -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        reader = world.join("a")
        reader.reading = False
        while not world.hub.count_lagging():
            world.publish(event(0, 3000))
        done = world.hub.counters.passes
        world.publish(event(1), event(2))
        assert world.hub.counters.passes == done
        reader.reading = True
        await world.until(lambda: reader.whole)
        assert world.hub.counters.passes == done
        world.publish(event(3))
        assert world.hub.counters.passes == done + 1


# -- what waits is bounded --------------------------------------------------------------------


async def test_the_tail_is_held_back_while_more_waits_than_there_is_room_for(
    turn_writes: int,
) -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(turn_writes)]
        assert world.hub.room(world.mirror) is None
        count = 2 * ROOM_BYTES // CHUNK_LIMIT_BYTES
        world.publish(*(event(number, CHUNK_LIMIT_BYTES - 100) for number in range(count)))
        subscription = world.subscription("a")
        assert subscription.waiting_bytes > ROOM_BYTES
        room = world.hub.room(world.mirror)
        assert room is not None
        assert world.hub.room(world.mirror) is room
        while not room.done():
            assert subscription.waiting_bytes > ROOM_BYTES
            await asyncio.sleep(0)
        assert 0 < subscription.waiting_bytes <= ROOM_BYTES
        assert world.hub.room(world.mirror) is None
        await world.settle()
        assert all(reader.whole for reader in readers)


async def test_the_tail_is_held_back_until_the_last_crowded_subscription_has_room(
    turn_writes: int,
) -> None:
    async with streaming() as world:
        narrow = [world.join("a") for _ in range(turn_writes)]
        wide = [world.join("a", "b") for _ in range(4 * turn_writes)]
        count = 2 * ROOM_BYTES // CHUNK_LIMIT_BYTES
        world.publish(*(event(number, CHUNK_LIMIT_BYTES - 100) for number in range(count)))
        room = world.hub.room(world.mirror)
        assert room is not None
        first, last = world.subscription("a"), world.subscription("a", "b")
        await world.until(lambda: first.waiting_bytes <= ROOM_BYTES)
        assert last.waiting_bytes > ROOM_BYTES
        assert not room.done()
        await room
        assert last.waiting_bytes <= ROOM_BYTES
        await world.settle()
        assert all(reader.whole for reader in narrow + wide)


async def test_a_crowded_subscription_that_everybody_leaves_makes_room(turn_writes: int) -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(turn_writes)]
        count = 2 * ROOM_BYTES // CHUNK_LIMIT_BYTES
        world.publish(*(event(number, CHUNK_LIMIT_BYTES - 100) for number in range(count)))
        room = world.hub.room(world.mirror)
        assert room is not None
        for reader in readers:
            world.hub.leave(reader.subscriber)
            reader.subscriber.connection.close()
        assert room.done()
        assert world.hub.room(world.mirror) is None


async def test_a_tail_that_stopped_waiting_for_room_is_no_matter(turn_writes: int) -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(turn_writes)]
        count = 2 * ROOM_BYTES // CHUNK_LIMIT_BYTES
        world.publish(*(event(number, CHUNK_LIMIT_BYTES - 100) for number in range(count)))
        room = world.hub.room(world.mirror)
        assert room is not None
        room.cancel()
        await world.settle()
        assert all(reader.whole for reader in readers)
        assert world.hub.room(world.mirror) is None


async def test_a_tail_reads_no_more_until_there_is_room(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "ROOM_BYTES", 1000)
    async with streaming(join_seconds=1000.0) as world:
        tail = Tail(store, world.mirror, [world.hub], 50)
        running = asyncio.create_task(tail.run())
        await until(lambda: tail.connected)
        reader = world.join("a")
        await publish(store, new("a"))
        first = (await publish(store, new("a", '"%s"' % ("x" * 2000))))[-1]
        await tail.reached(first)
        room = world.hub.room(world.mirror)
        assert room is not None
        last = (await publish(store, new("b")))[-1]
        # It stands still for longer than a read of the bus would have waited.
        await asyncio.sleep(0.2)
        assert world.mirror.tailed == first
        world.hub.leave(reader.subscriber)
        reader.subscriber.connection.close()
        await tail.reached(last)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# -- in parts ---------------------------------------------------------------------------------


async def test_a_pass_over_many_lets_others_have_the_loop(turn_writes: int) -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(5 * turn_writes)]
        for reader in readers:
            reader.read()
        world.publish(event(1))
        written = [sum(is_readable(reader.socket) for reader in readers)]
        while written[-1] < len(readers):
            await asyncio.sleep(0)
            written.append(sum(is_readable(reader.socket) for reader in readers))
        steps = [after - before for before, after in itertools.pairwise(written)]
        assert 0 < written[0] < turn_writes
        assert max(steps) < turn_writes


async def test_a_large_subscription_does_not_keep_small_ones_waiting(turn_writes: int) -> None:
    async with streaming() as world:
        large = [world.join("a") for _ in range(20 * turn_writes)]
        small = [world.join("a", "b"), world.join("a", "c")]
        world.take_turn()
        world.publish(event(1))
        while not all(is_readable(reader.socket) for reader in small):
            await asyncio.sleep(0)
        assert sum(is_readable(reader.socket) for reader in large) < len(large) // 2


async def test_who_comes_in_the_middle_of_a_pass_gets_what_it_lacks_and_no_more(
    turn_writes: int,
) -> None:
    async with streaming(join_seconds=0.5) as world:
        for _ in range(3 * turn_writes):
            world.join("a")
        world.publish(event(1))
        subscription = world.subscription("a")
        assert subscription.passing is not None
        first = world.mirror.head
        # One that has everything so far, and two that lack something of it.
        newest, older, oldest = (
            world.join("a", position=position) for position in (None, first, Position(1, 0))
        )
        assert subscription.newcomers == {r.subscriber for r in (newest, older, oldest)}
        world.publish(event(2))
        assert subscription.passing is not None
        late = world.join("a", position=first)
        await world.until(lambda: subscription.passing is None)
        # Those who have more than the pass brought wait for the next one.
        assert late.subscriber in subscription.newcomers
        world.publish(event(3))
        await world.until(lambda: subscription.at_rest)
        await world.settle()
        assert not subscription.newcomers
        assert all(reader.whole for reader in world.readers)


async def test_a_newcomer_that_takes_no_more_is_behind(turn_writes: int) -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        for _ in range(3 * turn_writes):
            world.join("a", kind="tcp")
        world.publish(event(1))
        world.publish(event(2))
        subscription = world.subscription("a")
        # It has more than the pass brings, so it is served apart before the next one.
        newcomer = world.join("a")
        newcomer.reading = False
        assert newcomer.subscriber in subscription.newcomers
        world.publish(event(3, 30_000))
        assert subscription.passing is not None
        await world.until(lambda: newcomer.subscriber in subscription.behind)
        await world.until(lambda: subscription.at_rest)
        newcomer.reading = True
        await world.settle()
        assert all(reader.whole for reader in world.readers)
        await world.until(lambda: world.hub.count_lagging() == 0)


@pytest.mark.parametrize("seen", [True, False])
async def test_a_number_that_is_used_again_in_the_middle_of_a_pass_gets_nothing_of_it(
    turn_writes: int, seen: bool
) -> None:
    async with streaming() as world:
        readers = [world.join("a") for _ in range(4 * turn_writes)]
        world.keep_spare(1)
        for reader in readers:
            reader.read()
        world.publish(event(1))
        subscription = world.subscription("a")
        assert subscription.passing is not None
        leaver = readers[0] if seen else readers[-1]
        assert is_readable(leaver.socket) is seen
        number = leaver.subscriber.connection.fd
        world.hub.leave(leaver.subscriber)
        leaver.subscriber.connection.close()
        newcomer = world.join("b")
        assert newcomer.subscriber.connection.fd == number
        await world.settle()
        assert subscription.at_rest
        assert newcomer.whole
        assert newcomer.body.count(b"\n\n") == 1
        # And where it follows the same, it gets the next event once.
        world.publish(("b", b"1"), event(2))
        await world.settle()
        assert newcomer.whole


async def test_a_restart_in_the_middle_of_a_pass_repeats_and_loses_nothing(
    turn_writes: int,
) -> None:
    async with streaming() as world:
        codings = [CODINGS[number % 3] for number in range(6 * turn_writes)]
        readers = [world.join("a", coding=coding) for coding in codings]
        for number in range(5):
            world.publish(event(2 * number), event(2 * number + 1))
            await turns(number)
            assert not world.subscription("a").at_rest
            world.begin_anew()
            assert world.hub.count_lagging() == len(readers)
            await world.until(lambda: world.hub.count_lagging() == 0)
        world.publish(event(100))
        await world.settle()
        assert all(reader.whole for reader in readers)


async def test_a_span_of_time_reaches_no_further_back_than_the_namespace() -> None:
    async with streaming() as world:
        world.publish(event(1))
        reader = world.join("a", position=Position(0, 7), since=True)
        await world.until(lambda: not world.hub.count_lagging())
        world.publish(event(2))
        await world.settle()
        assert reader.whole
        assert world.hub.counters.gaps == 0


async def test_a_stream_that_ended_is_not_ended_again() -> None:
    async with streaming() as world:
        reader = world.join("a")
        world.hub.end(reader.subscriber, "store")
        world.hub.end(reader.subscriber, "store")
        world.hub.leave(reader.subscriber)
        await world.until(lambda: reader.ended)
        assert reader.unavailable
        assert world.hub.subscribers == 0


async def test_another_namespace_that_begins_anew_is_no_matter() -> None:
    async with streaming() as world:
        reader = world.join("a")
        other = Mirror(Namespace("other"), 1 << 20)
        other.restart(LIFE, {})
        world.hub.restart(other, LIFE.clock)
        assert world.hub.count_lagging() == 0
        world.publish(event(1))
        await world.settle()
        assert reader.whole


async def test_a_replay_is_shared_from_wherever_one_comes_back() -> None:
    async with streaming(send_buffer_bytes=4096) as world:
        stuck = world.join("a")
        stuck.reading = False
        while not stuck.subscriber.full_since:
            world.publish(event(0, 5000))
        for number in range(60):
            world.publish(event(number, 3000))
        readers = [world.join("a", position=made.id) for made in world.history[:-1]]
        again = [world.join("a", position=made.id) for made in world.history[:-1]]
        assert stuck.subscriber.subscription.replay is not None
        await world.settle()
        assert all(reader.whole for reader in readers + again)
        stuck.reading = True
        await world.settle()
        assert stuck.whole
        await world.until(lambda: not world.hub.count_lagging())
        assert stuck.subscriber.subscription.replay is None


# -- at random --------------------------------------------------------------------------------

SELECTIONS = (("a",), ("a", "b/*"), ("b/*",))
CHANNELS = ("a", "b/1", "b/2", "c")
_number = st.integers(0, 1000)
_steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.lists(
                st.tuples(st.sampled_from(CHANNELS), st.sampled_from([0, 100, 2000, 20_000])),
                min_size=1,
                max_size=6,
            ),
        ),
        st.tuples(
            st.just("join"),
            st.sampled_from(SELECTIONS),
            st.sampled_from(KINDS),
            st.sampled_from(CODINGS),
            st.integers(0, 12),
        ),
        st.tuples(st.sampled_from(["leave", "reset", "pause", "go on", "say", "end"]), _number),
        st.tuples(st.just("return"), _number),
        st.tuples(st.just("turn"), st.integers(1, 4)),
        st.tuples(st.just("restart")),
    ),
    min_size=10,
    max_size=60,
)


class Scene:
    """Lets readers of several subscriptions live as a list of steps says."""

    def __init__(self, world: World) -> None:
        self.world = world

    def any(self, number: int, *, gone: bool = False) -> Reader | None:
        readers = [
            reader
            for reader in self.world.readers
            if reader.ended is gone and (gone or reader.subscriber.open)
        ]
        return readers[number % len(readers)] if readers else None

    async def join(
        self, selectors: tuple[str, ...], kind: Kind, coding: str, position: Position | None
    ) -> None:
        join = self.world.join_kept if kind == "kept" else None
        more = {"kind": kind, "coding": coding, "position": position}
        if join is not None:
            await join(*selectors, **more)
        else:
            self.world.join(*selectors, **more)

    async def step(self, name: str, *arguments: object) -> None:
        match name, arguments:
            case "publish", (list(events),):
                self.world.publish(*((channel, b'"%b"' % (b"x" * n)) for channel, n in events))
            case "join", (tuple(selectors), str(kind), str(coding), int(back)):
                history = self.world.history
                position = history[-min(back, len(history))].id if back and history else None
                await self.join(selectors, kind, coding, position)  # type: ignore[arg-type]
            case "turn", (int(count),):
                for _ in range(count):
                    self.world.take_turn()
                    await asyncio.sleep(0)
            case "restart", ():
                self.world.begin_anew()
            case "return", (int(number),):
                reader = self.any(number, gone=True)
                if reader is not None:
                    selection = reader.selection
                    selectors = selection.channels + tuple(f"{p}*" for p in selection.prefixes)
                    kind, coding = KINDS[number % 3], CODINGS[number % 7 % 3]
                    await self.join(selectors, kind, coding, reader.position)
            case _, (int(number),):
                reader = self.any(number)
                if reader is not None:
                    self._have(reader, name)

    def _have(self, reader: Reader, name: str) -> None:
        match name:
            case "leave":
                reader.leave()
            case "reset":
                reader.leave(reset=True)
            case "pause":
                reader.reading = False
            case "go on":
                reader.reading = True
            case "say":
                reader.say(b"x" * 1000)
            case "end":
                self.world.hub.end(reader.subscriber, "store")


async def live(seed_steps: list[tuple[object, ...]], join_seconds: float) -> None:
    async with streaming(join_seconds=join_seconds, send_buffer_bytes=4096) as world:
        scene = Scene(world)
        for number in range(24):
            kind: Kind = ("pair", "pair", "tcp", "kept")[number % 4]
            await scene.join(SELECTIONS[number % 3], kind, CODINGS[number % 5 % 3], None)
        world.keep_spare(12)
        for name, *arguments in seed_steps:
            await scene.step(str(name), *arguments)
        for reader in world.readers:
            reader.reading = not reader.ended
        await world.settle()
        # Whoever was ended has read so, and whoever left has been noticed.
        await world.until(
            lambda: all(reader.ended is not reader.subscriber.open for reader in world.readers)
        )
        open_readers = [reader for reader in world.readers if not reader.ended]
        await world.until(lambda: world.hub.count_lagging() == 0)
        world.publish(*((channel, b"1") for channel in CHANNELS))
        await world.settle()
        await world.until(lambda: world.hub.count_lagging() == 0)
        world.hub.drain()
        await world.until(lambda: all(reader.ended for reader in open_readers))
        wrong = [reader for reader in open_readers if not (reader.whole and reader.unavailable)]
        assert not wrong, [(reader.body[-300:], reader.expected[-300:]) for reader in wrong]
        assert world.hub.subscribers == 0
        await world.until(lambda: len(world.sockets) == 0 and not world.kept)


@settings(
    max_examples=int(os.environ.get("PASSES_EXAMPLES", "150")),
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps, join_seconds=st.sampled_from([0.0, 0.002]))
@pytest.mark.usefixtures("turn_writes")
async def test_everybody_gets_every_event_once_and_in_order_whatever_happens_meanwhile(
    steps: list[tuple[object, ...]], join_seconds: float
) -> None:
    await live(steps, join_seconds)

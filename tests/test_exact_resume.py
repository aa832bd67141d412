"""The first law, shown: whatever happens, a subscriber gets every event after its position,
once, in order, or a gap where, and only where, events are gone.

A model of the store says after every step what each subscriber must have got. Everything else
is real: Valkey, the gateway, HTTP.
"""

import asyncio
import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.selector import Selection, parse_selection
from tests.running import Stream, Valkey, Worker, until, worker

RING = 5
FOLLOWED = ("board/a", "board/b", "board/c/d", "left", "right")
CHANNELS = (*FOLLOWED, "noise/a", "noise/b", "noise/c", "noise/d")
SELECTIONS = (("left",), ("board/*",), ("left", "right", "board/*"), ("right", "board/a"))
SETTINGS: dict[str, Any] = {
    "namespaces": {
        "default": {
            "ring_limit_events": RING,
            "ring_spares_young": False,
            "stream_codings": ["gzip"],
        }
    },
    "store": {"block_ms": 100},
    # All that is followed fits in, but not the noise too: rings are dropped and read again.
    "mirror": {"limit_bytes": 12_500},
}
Published = tuple[Position, str, int]


@dataclass
class History:
    """What the store must hold: the model's own account of it."""

    events: list[Published] = field(default_factory=list)
    deletions: dict[str, Position] = field(default_factory=dict)
    floor: Position = ORIGIN
    clock: Position = ORIGIN
    cuts: list[tuple[Position, Position]] = field(default_factory=list)

    def of(self, channel: str) -> list[Published]:
        ended = self.deletions.get(channel, ORIGIN)
        return [event for event in self.events if event[1] == channel and event[0] > ended]

    def last(self, channel: str) -> Position:
        events = self.of(channel)
        return events[-1][0] if events else self.deletions.get(channel, ORIGIN)

    def resumable(self, selection: Selection, position: Position) -> bool:
        if position < self.floor or any(r < position < s for r, s in self.cuts):
            return False
        for channel in filter(selection.matches, CHANNELS):
            events = self.of(channel)
            if self.last(channel) > position:
                oldest = self.deletions.get(channel, ORIGIN)
                if len(events) > RING:
                    oldest = events[-RING - 1][0]
                if position < oldest:
                    return False
        return True

    def after(self, selection: Selection, position: Position) -> list[Published]:
        return [e for e in self.events if e[0] > position and selection.matches(e[1])]


class Subscriber:
    """One reader, by its own account: where it is and what it got since the last check."""

    def __init__(self, selectors: tuple[str, ...], coding: str = "identity") -> None:
        self.coding = coding
        self.selection = parse_selection(selectors, ())
        self.query = "&".join(f"channel={selector}" for selector in selectors)
        self.position: Position | None = None
        self.got: list[Published | str] = []
        self.reading: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        return self.reading is not None and not self.reading.done()

    async def connect(self, session: aiohttp.ClientSession, url: str) -> None:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": self.coding}
        if self.position is not None:
            headers["Last-Event-ID"] = str(self.position)
        response = await session.get(
            f"{url}/events?{self.query}", headers=headers, timeout=aiohttp.ClientTimeout(None)
        )
        assert response.status == 200
        assert response.headers.get("Content-Encoding", "identity") == self.coding
        stream = Stream(response)
        first = await stream.next()
        assert first is not None
        assert first.data is None, "the first block carries only an id"
        if self.position is None:
            self.position = Position.parse(first.id)
        else:
            assert first.id == str(self.position), "the first block is the requested position"
        self.reading = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Stream) -> None:
        async with stream.response:
            while (block := await stream.next(seconds=3600)) is not None:
                assert block.data is not None
                if block.type == "unavailable":
                    return
                position = Position.parse(block.id)
                assert self.position is not None
                assert position >= self.position, "positions never go back"
                if block.type == "gap":
                    self.got.append(orjson.loads(block.data)["reason"])
                else:
                    assert position > self.position, "nothing comes twice"
                    data = orjson.loads(block.data)
                    self.got.append((position, data["channel"], data["data"]))
                self.position = position

    async def disconnect(self) -> None:
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.gather(self.reading, return_exceptions=True)
            self.reading = None


class ExactResume(RuleBasedStateMachine):
    """Random lives of two channels and a wildcard on one connection, and of what can go wrong."""

    transport = "socket"

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.redis = Valkey(self.folder / "redis")
        self.stack = AsyncExitStack()
        self.worker: Worker | None = None
        self.history = History()
        self.older: History | None = None
        self.subscribers: list[Subscriber] = []
        self.published = 0

    @initialize()
    def begin(self) -> None:
        self.runner.run(self._begin())

    async def _begin(self) -> None:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True)
        )
        await self.redis.start()
        await self._start_worker()
        await self._read_meta()
        self.history.floor = self.history.clock

    async def _start_worker(self) -> None:
        self.stack = AsyncExitStack()
        settings = {**SETTINGS, "streams": {"transport": self.transport}}
        self.worker = await self.stack.enter_async_context(worker(self.redis.url, settings))

    async def _read_meta(self) -> dict[str, str]:
        async with self.redis.client() as client:
            raw = await client.hgetall("sg:{default}:meta")
        meta = {name.decode(): value.decode() for name, value in raw.items()}
        self.history.clock = Position.parse(meta["clock"])
        return meta

    @property
    def url(self) -> str:
        assert self.worker is not None
        return self.worker.url

    # -- what publishers do ---------------------------------------------------------------

    async def _publish(self, channels: list[str]) -> None:
        numbers = range(self.published, self.published + len(channels))
        self.published += len(channels)
        if len(channels) == 1:
            path, body = f"/publish/{channels[0]}", orjson.dumps(numbers[0])
            kind = "application/json"
        else:
            lines = [
                orjson.dumps({"channel": channel, "data": number})
                for channel, number in zip(channels, numbers, strict=True)
            ]
            path, body, kind = "/publish", b"\n".join(lines), "application/x-ndjson"
        headers = {"Content-Type": kind}
        async with self.session.post(self.url + path, data=body, headers=headers) as response:
            answer = await response.json()
            assert response.status == 200, answer
        ids = [Position.parse(id) for id in answer.get("ids", [answer.get("id")])]
        self.history.events += zip(ids, channels, numbers, strict=True)
        self.history.clock = ids[-1]

    @rule(channels=st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=4))
    def publish(self, channels: list[str]) -> None:
        self.runner.run(self._publish_and_check(channels))

    @rule(channel=st.sampled_from(CHANNELS))
    def publish_more_than_the_ring_holds(self, channel: str) -> None:
        self.runner.run(self._publish_and_check([channel] * (RING + 2)))

    async def _publish_and_check(self, channels: list[str]) -> None:
        before = len(self.history.events)
        await self._publish(channels)
        fresh = self.history.events[before:]
        for subscriber in filter(lambda s: s.connected, self.subscribers):
            await self._expect(subscriber, [e for e in fresh if subscriber.selection.matches(e[1])])

    @rule(channel=st.sampled_from(CHANNELS))
    def delete(self, channel: str) -> None:
        self.runner.run(self._delete(channel))

    async def _delete(self, channel: str) -> None:
        async with self.session.delete(f"{self.url}/channels/{channel}") as response:
            answer = await response.json()
        if not self.history.of(channel):
            assert response.status == 404
            return
        assert response.status == 200
        self.history.deletions[channel] = self.history.clock = Position.parse(answer["id"])
        for subscriber in self.subscribers:
            if subscriber.connected and subscriber.selection.matches(channel):
                await self._expect(subscriber, ["deleted"])

    # -- what subscribers do --------------------------------------------------------------

    @precondition(lambda self: len(self.subscribers) < 6)
    @rule(selectors=st.sampled_from(SELECTIONS), coding=st.sampled_from(("identity", "gzip")))
    def subscribe(self, selectors: tuple[str, ...], coding: str = "identity") -> None:
        self.runner.run(self._subscribe(selectors, coding))

    async def _tailed(self) -> None:
        """Wait until the worker knows all that was published."""
        assert self.worker is not None
        mirror = self.worker.gateway.tails["default"].mirror
        await until(lambda: mirror.tailed >= max(self.history.last(c) for c in CHANNELS))

    async def _subscribe(self, selectors: tuple[str, ...], coding: str) -> None:
        subscriber = Subscriber(selectors, coding)
        self.subscribers.append(subscriber)
        await self._tailed()
        await subscriber.connect(self.session, self.url)
        await self._expect(subscriber, [])

    @precondition(lambda self: any(s.connected for s in self.subscribers))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        connected = [s for s in self.subscribers if s.connected]
        self.runner.run(data.draw(st.sampled_from(connected)).disconnect())

    @precondition(lambda self: any(not s.connected for s in self.subscribers))
    @rule(data=st.data(), channels=st.lists(st.sampled_from(CHANNELS), max_size=3))
    def reconnect(self, data: st.DataObject, channels: list[str]) -> None:
        """Come back, now and then while events are being published."""
        gone = [s for s in self.subscribers if not s.connected]
        self.runner.run(self._reconnect(data.draw(st.sampled_from(gone)), channels))

    async def _reconnect(self, subscriber: Subscriber, channels: list[str]) -> None:
        position = subscriber.position
        assert position is not None
        selection = subscriber.selection
        counts = {c: len(self.history.of(c)) for c in CHANNELS}
        whole = self.history.resumable(selection, position)
        await self._tailed()
        # What is published meanwhile must not decide whether the position can be resumed.
        racing = [c for c in channels if whole and counts[c] + channels.count(c) <= RING]
        if racing:
            others = [s for s in self.subscribers if s.connected]
            before = len(self.history.events)
            await asyncio.gather(
                subscriber.connect(self.session, self.url),
                *(self._publish([channel]) for channel in racing),
            )
            self.history.events.sort()
            self.history.clock = self.history.events[-1][0]
            fresh = self.history.events[before:]
            for other in others:
                await self._expect(other, [e for e in fresh if other.selection.matches(e[1])])
        else:
            await subscriber.connect(self.session, self.url)
        if whole:
            await self._expect(subscriber, self.history.after(selection, position))
        else:
            await self._expect_gap(subscriber)

    # -- what goes wrong ------------------------------------------------------------------

    @rule()
    def restart_the_gateway(self) -> None:
        self.runner.run(self._restart_the_gateway())

    async def _restart_the_gateway(self) -> None:
        await self.stack.aclose()
        for subscriber in self.subscribers:
            await subscriber.disconnect()
        await self._start_worker()

    @rule()
    def restart_the_store(self) -> None:
        self.runner.run(self._restart_the_store())

    async def _restart_the_store(self) -> None:
        recovered = self.history.clock
        await self.redis.restart()
        await self._meet_the_store()
        self.history.cuts.append((recovered, self.history.clock))

    @rule()
    def copy_the_store(self) -> None:
        self.runner.run(self.redis.copy_data(self.folder / "copy"))
        self.older = copy.deepcopy(self.history)

    @precondition(lambda self: self.older is not None)
    @rule(workers_alive=st.booleans())
    def restart_the_store_from_an_older_copy(self, workers_alive: bool) -> None:
        self.runner.run(self._restore(workers_alive))

    async def _restore(self, workers_alive: bool) -> None:
        assert self.older is not None
        if not workers_alive:
            await self.stack.aclose()
            for subscriber in self.subscribers:
                await subscriber.disconnect()
        await self.redis.restart_from(self.folder / "copy")
        self.history = copy.deepcopy(self.older)
        recovered = self.history.clock
        if not workers_alive:
            await self._start_worker()
        await self._meet_the_store()
        self.history.cuts.append((recovered, self.history.clock))
        await self._check_connected_anew()

    @rule()
    def flush_the_store(self) -> None:
        self.runner.run(self._flush())

    async def _flush(self) -> None:
        async with self.redis.client() as client:
            await client.flushall()
        self.history = History()
        await self._meet_the_store()
        self.history.floor = self.history.clock
        await self._check_connected_anew()

    async def _meet_the_store(self) -> None:
        """Wait until the worker follows the store's present life."""
        assert self.worker is not None
        tail = self.worker.gateway.tails["default"]

        async def same() -> bool:
            async with self.redis.client() as client:
                epoch, generation, run, stored = await client.hmget(
                    "sg:{default}:meta", ["epoch", "generation", "run", "clock"]
                )
                info = await client.info("server")
            life = tail.mirror.life
            if epoch is None or life is None or run.decode() != info["run_id"]:
                return False
            self.history.clock = Position.parse(stored.decode())
            return tail.connected and (life.epoch, life.generation) == (
                epoch.decode(),
                generation.decode(),
            )

        async with asyncio.timeout(20):
            while not await same():
                await asyncio.sleep(0.01)

    async def _check_connected_anew(self) -> None:
        for subscriber in self.subscribers:
            if not subscriber.connected:
                continue
            position = subscriber.position
            assert position is not None
            if self.history.resumable(subscriber.selection, position) and not subscriber.got:
                await self._expect(subscriber, [])
            else:
                await self._expect_gap(subscriber)

    # -- what must be true ----------------------------------------------------------------

    async def _expect(self, subscriber: Subscriber, expected: list[Any]) -> None:
        await until(lambda: len(subscriber.got) >= len(expected) or not subscriber.connected)
        assert subscriber.got == expected
        subscriber.got = []

    async def _expect_gap(self, subscriber: Subscriber) -> None:
        try:
            await until(lambda: subscriber.got or not subscriber.connected, seconds=10)
        except TimeoutError as error:
            assert self.worker is not None
            self.worker.check()
            raise AssertionError(
                f"no gap for {subscriber.selection} at {subscriber.position}: {self.history}"
            ) from error
        assert len(subscriber.got) == 1
        assert isinstance(subscriber.got[0], str), "a gap, not an event"
        subscriber.got = []

    @invariant()
    def nobody_got_what_was_not_expected(self) -> None:
        if self.worker is not None:
            self.worker.check()
        for subscriber in self.subscribers:
            assert not subscriber.got
            if subscriber.reading is not None and subscriber.reading.done():
                subscriber.reading.result()

    def teardown(self) -> None:
        self.runner.run(self._end())
        self.runner.close()
        shutil.rmtree(self.folder)

    async def _end(self) -> None:
        for subscriber in self.subscribers:
            await subscriber.disconnect()
        await self.stack.aclose()
        await self.session.close()
        await self.redis.stop()


class OnAiohttpsTransport(ExactResume):
    """The same where sockets are not taken over."""

    transport = "response"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("machine", "share"), [(ExactResume, 1.0), (OnAiohttpsTransport, 0.5)])
def test_every_subscriber_gets_every_event_once_in_order_or_a_gap(
    machine: type[ExactResume], share: float
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(share * int(os.environ.get("RESUME_EXAMPLES", "50"))),
            stateful_step_count=40,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def machine() -> Iterator[ExactResume]:
    """The state machine, to be driven by hand."""
    machine = ExactResume()
    machine.begin()
    try:
        yield machine
        machine.nobody_got_what_was_not_expected()
    finally:
        machine.teardown()


def test_a_copy_restored_twice_is_another_history_each_time(machine: ExactResume) -> None:
    machine.subscribe(("left", "right", "board/*"))
    machine.copy_the_store()
    for _ in range(3):
        machine.publish(["left", "right"])
        machine.restart_the_store_from_an_older_copy(workers_alive=True)
    assert machine.subscribers[0].position == machine.history.clock


def test_a_flush_right_after_a_restart_is_a_gap(machine: ExactResume) -> None:
    machine.subscribe(("board/*",))
    for _ in range(3):
        machine.restart_the_store()
        machine.flush_the_store()
    assert machine.subscribers[0].position == machine.history.floor

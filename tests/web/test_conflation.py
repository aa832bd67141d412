"""Conflation: who reads slower than a keyed channel changes gets its state, never a wrong one."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from gateway.protocol.position import Position
from tests.running import until
from tests.web.client import Client, event, first_id, gap_of, open_raw
from tests.web.conftest import Start
from tests.web.transports import transport

__all__ = ["transport"]

KEYS = [f"stock-{number}" for number in range(200)]
CHANGES_A_SECOND = 50
READ_BYTES_A_SECOND = 2000
SETTINGS: dict[str, Any] = {
    # The kernel's buffers are as small as they get: what a train's modem holds is not ours.
    "streams": {"send_buffer_bytes": 4096, "buffer_limit_bytes": 4096},
    "namespaces": {
        "prices": {
            "reducer": "keyed",
            "conflate": True,
            "ring_limit_events": 500,
            "ring_spares_young": False,
        }
    },
}

State = dict[str, object]


class Board:
    """Publishes to one channel and remembers its state at every position."""

    def __init__(self, client: Client) -> None:
        self.states: dict[Position, State] = {}
        self.newest: State = {}
        self._client = client
        self._random = random.Random(7)

    def _change(self) -> dict[str, object]:
        key = self._random.choice(KEYS)
        # Now and then a key is deleted, and comes again with its next change.
        gone = key in self.newest and self._random.random() < 0.1
        data = "" if gone else {"price": self._random.randrange(10**6)}
        return {"channel": "prices/board", "key": key, "data": data}

    async def publish(self, lines: list[dict[str, Any]]) -> None:
        for id, line in zip(await self._client.publish_lines(lines), lines, strict=True):
            state = dict(self.newest)
            if line["data"] == "":
                state.pop(line["key"], None)
            else:
                state[line["key"]] = line["data"]
            self.states[Position.parse(id)] = self.newest = state

    async def fill(self) -> None:
        """Give every key a value."""
        await self.publish(
            [{"channel": "prices/board", "key": key, "data": {"price": 0}} for key in KEYS]
        )

    async def change(self, times: int) -> None:
        """Change keys, each time any one."""
        await self.publish([self._change() for _ in range(times)])

    async def change_for(self, seconds: float, changes_a_second: int) -> None:
        """Change keys at a steady pace."""
        loop = asyncio.get_running_loop()
        began, done = loop.time(), 0
        while (passed := loop.time() - began) < seconds:
            due = int(passed * changes_a_second) - done
            if due:
                await self.change(due)
                done += due
            await asyncio.sleep(0.02)


def blocks(body: bytes) -> Iterator[tuple[Position | None, str, Any]]:
    """Yield the position, type and data of every complete block that has data."""
    for text in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in text.split("\n") if line[:1] != ":")
        if "data" in fields:
            id = Position.parse(fields["id"]) if "id" in fields else None
            yield id, fields.get("event", ""), orjson.loads(fields["data"])


def fold(body: bytes, board: Board, start: State) -> tuple[State, int]:
    """Return a reader's state after all that came, right at every step, and its resets."""
    state, resets, last = dict(start), 0, Position(0, 0)
    for id, type, data in blocks(body):
        assert id is not None
        assert id > last, "positions go up"
        last = id
        if type == "reset":
            resets += 1
            assert data["channel"] == "prices/board"
            state = dict(data["state"])
        else:
            assert type == "", type
            if data["data"] == "":
                state.pop(data["key"], None)
            else:
                state[data["key"]] = data["data"]
        assert state == board.states[id]
    return state, resets


async def test_a_price_board_on_a_train_is_right_at_every_moment(start: Start) -> None:
    client = await start(SETTINGS)
    board = Board(client)
    await board.fill()
    async with open_raw(client.worker, "/events/prices/board", receive_buffer_bytes=2048) as train:
        await train.read_until(b"\n\n")
        before = board.newest
        reading = asyncio.create_task(train.read_slowly(READ_BYTES_A_SECOND))
        hub = client.gateway.hub
        while hub.counters.conflations < 2:
            await board.change_for(0.5, CHANGES_A_SECOND)
        # Now all of them in every moment, so that the ring holds but a fraction of a second.
        await board.change_for(1, CHANGES_A_SECOND * len(KEYS))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        train.widen()
        newest = max(board.states)
        while fold(train.body, board, before)[0] != board.newest:
            await train.read_more()
        assert f"id: {newest}\n".encode() in train.body
        _, resets = fold(train.body, board, before)
        assert resets == hub.counters.conflations
        assert hub.counters.gaps == 0
        # And then it is one of many again.
        await until(lambda: client.gateway.hub.count_lagging() == 0)
        await board.publish([{"channel": "prices/board", "key": KEYS[0], "data": 1}])
        while fold(train.body, board, before)[0] != board.newest:
            await train.read_more()
        assert fold(train.body, board, before)[1] == resets


async def test_who_lacks_less_than_the_state_gets_the_events(start: Start) -> None:
    client = await start(SETTINGS)
    board = Board(client)
    await board.fill()
    async with open_raw(client.worker, "/events/prices/board", receive_buffer_bytes=2048) as slow:
        await slow.read_until(b"\n\n")
        before = board.newest
        while not client.gateway.hub.counters.lags:
            await board.publish([{"channel": "prices/board", "key": KEYS[0], "data": "x" * 2000}])
            await client.settle()
        await board.publish([{"channel": "prices/board", "key": KEYS[1], "data": "last"}])
        await client.settle()
        slow.widen()
        await slow.read_until(b'"last"}\n\n')
        state, resets = fold(slow.body, board, before)
        assert state == board.newest
        assert resets == client.gateway.hub.counters.conflations == 0


async def test_a_deleted_channel_is_an_empty_state_among_others_at_one_position(
    start: Start,
) -> None:
    client = await start(SETTINGS)
    await client.publish_lines(
        [{"channel": f"prices/{name}", "key": "k", "data": "old"} for name in ("a", "b", "c")]
    )
    async with open_raw(client.worker, "/events/prices/*", receive_buffer_bytes=2048) as slow:
        await slow.read_until(b"\n\n")
        lines = [
            {"channel": "prices/a", "key": "k", "data": f"{number}".ljust(1000, "x")}
            for number in range(20)
        ]
        hub, idle = client.gateway.hub, 0
        while idle < 5:  # Until every buffer on the way is full.
            written = hub.counters.delivered_bytes
            await client.publish_lines(lines)
            await client.settle()
            full = hub.count_lagging() and hub.counters.delivered_bytes == written
            idle = idle + 1 if full else 0
        await client.publish("prices/b", b'"new"', "?key=k")
        await client.ask("DELETE", "/channels/prices/b")
        last = (await client.publish_lines([{"channel": "prices/a", "key": "k", "data": "end"}]))[0]
        await client.settle()
        slow.widen()
        await slow.read_until(b'"end"}}\n\n')
    resets = [(id, data) for id, type, data in blocks(slow.body) if type == "reset"][-2:]
    states = {data["channel"]: data["state"] for _, data in resets}
    assert states == {"prices/a": {"k": "end"}, "prices/b": {}}
    # Only the last one moves the reader: it has all of them, or none.
    assert [id for id, _ in resets] == [None, Position.parse(last)]


async def test_who_comes_back_too_late_is_told_of_its_gap(start: Start) -> None:
    client = await start(SETTINGS)
    board = Board(client)
    await board.fill()
    first = str(min(board.states))
    await board.change(600)
    await client.settle()
    async with client.follow("/events/prices/board", first) as stream:
        assert await first_id(stream) == first
        assert gap_of(await stream.next())["reason"] == "evicted"
        await board.publish([{"channel": "prices/board", "key": KEYS[0], "data": 1}])
        assert (await event(stream))[0] == str(max(board.states))


@pytest.mark.parametrize("reducer", ["last", "merge", "none"])
def test_only_keyed_states_can_stand_for_events(reducer: str) -> None:
    """Of others the last event or a patch says nothing about what came before it."""
    from gateway.settings import Settings

    with pytest.raises(ValueError, match="is for the reducer keyed"):
        Settings(namespaces={"prices": {"reducer": reducer, "conflate": True}})

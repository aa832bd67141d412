"""What a publisher knows of its own events: the state of every channel at every position."""

import json
import random
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import aiohttp

ABSENT = "(absent)"
"""The state of a channel that was never published to, or was deleted last."""


def order(position: str) -> tuple[int, int]:
    """Return a position as something that sorts."""
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence)


def canonical(state: object) -> str:
    """Return a state as text that is equal when the states are."""
    return state if state is ABSENT else json.dumps(state, sort_keys=True)


def fold_merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch as RFC 7396 section 2 writes it down."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = fold_merge(result.get(name), value)
    return result


def fold(reducer: str, state: Any, key: str, data: Any) -> Any:
    """Return the state after one more event; never changes `state`."""
    known = {} if state is ABSENT else state
    if reducer == "last":
        return data
    if reducer == "merge":
        return fold_merge(known, data)
    rest = {name: value for name, value in known.items() if name != key}
    return rest if data == "" else {**rest, key: data}


class History:
    """One channel's events and states, as the publish answers tell."""

    def __init__(self, reducer: str) -> None:
        self.reducer = reducer
        self.positions: list[tuple[int, int]] = [(0, 0)]
        self.states: list[Any] = [ABSENT]
        self.deletions: list[tuple[int, int]] = []

    @property
    def first(self) -> str:
        """The first event's position."""
        return "-".join(map(str, self.positions[1]))

    @property
    def last(self) -> str:
        """The last event's position."""
        return "-".join(map(str, self.positions[-1]))

    def add(self, position: str, key: str, data: Any) -> None:
        """An event was stored."""
        self._append(position, fold(self.reducer, self.states[-1], key, data))

    def delete(self, position: str) -> None:
        """The channel was deleted."""
        self._append(position, ABSENT)
        self.deletions.append(order(position))

    def _append(self, position: str, state: Any) -> None:
        assert order(position) > self.positions[-1]
        self.positions.append(order(position))
        self.states.append(state)

    def state_at(self, position: str) -> Any:
        """Return the state that every reader must have once it is at `position`."""
        return self.states[bisect_right(self.positions, order(position)) - 1]

    def between(self, after: str, until: str) -> list[tuple[int, int]]:
        """Return the positions of events and deletions in (after, until]."""
        begin = bisect_right(self.positions, order(after))
        return self.positions[begin : bisect_right(self.positions, order(until))]

    def deleted_within(self, after: str, until: str) -> bool:
        """Tell whether the channel was deleted in (after, until]."""
        return any(order(after) < position <= order(until) for position in self.deletions)


class Publisher:
    """Writes random events of two namespaces, one request at a time, and keeps their model.

    `url` is asked before each request where it goes to.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: Callable[[], str],
        channels: dict[str, str],
        chance: random.Random,
    ) -> None:
        self.histories = {name: History(reducer) for name, reducer in channels.items()}
        self.ids: list[str] = []
        self._session = session
        self._url = url
        self._chance = chance

    async def write(self, events: int) -> None:
        """Write that many events: singly, in batches, and deletions of channels."""
        end = len(self.ids) + events
        while len(self.ids) < end:
            channel = self._chance.choice(list(self.histories))
            action = self._chance.random()
            if action < 0.03 and self.histories[channel].states[-1] is not ABSENT:
                await self.delete(channel)
            elif action < 0.2:
                await self.publish_batch(channel, min(5, end - len(self.ids)))
            else:
                await self.publish(channel)

    def _event(self, channel: str) -> tuple[str, Any]:
        chance, number = self._chance, len(self.ids)
        if self.histories[channel].reducer == "keyed":
            gone = chance.random() < 0.25
            return f"k{chance.randrange(6)}", "" if gone else {"n": number}
        if self.histories[channel].reducer == "last":
            return "", {"n": number}
        name, value = f"m{chance.randrange(4)}", chance.choice([None, number, {"deep": number}])
        return "", {name: value, "n": {"last": number}}

    async def publish(self, channel: str) -> None:
        """Publish one event."""
        key, data = self._event(channel)
        body = b"" if data == "" else json.dumps(data).encode()
        kind = "text/plain" if data == "" else "application/json"
        async with self._session.post(
            f"{self._url()}/publish/{channel}",
            params={"key": key} if key else {},
            data=body,
            headers={"Content-Type": kind},
        ) as response:
            assert response.status == 200, await response.text()
            self._stored(channel, (await response.json())["id"], key, data)

    async def publish_batch(self, channel: str, events: int) -> None:
        """Publish several events of the channel's namespace with one request."""
        namespace = channel.partition("/")[0]
        siblings = [name for name in self.histories if name.startswith(f"{namespace}/")]
        lines: list[tuple[str, str, Any]] = []
        for _ in range(events):
            sibling = self._chance.choice(siblings)
            lines.append((sibling, *self._event(sibling)))
        body = "\n".join(
            json.dumps({"channel": name, "data": data} | ({"key": key} if key else {}))
            for name, key, data in lines
        )
        async with self._session.post(
            f"{self._url()}/publish", data=body, headers={"Content-Type": "application/x-ndjson"}
        ) as response:
            assert response.status == 200, await response.text()
            ids = (await response.json())["ids"]
        for id, (name, key, data) in zip(ids, lines, strict=True):
            self._stored(name, id, key, data)

    async def delete(self, channel: str) -> None:
        """Delete the channel."""
        async with self._session.delete(f"{self._url()}/channels/{channel}") as response:
            assert response.status == 200, await response.text()
            id = (await response.json())["id"]
        self.ids.append(id)
        self.histories[channel].delete(id)

    def _stored(self, channel: str, id: str, key: str, data: Any) -> None:
        self.ids.append(id)
        self.histories[channel].add(id, key, data)

"""States: what a channel's events add up to, by its namespace's reducer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import orjson

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import Event, NewEvent
from gateway.protocol.json_value import dump_json, parse_json
from gateway.protocol.namespace import Reducer

_OVERHEAD_BYTES = 120  # Of one value in memory, on top of its bytes.


class State(ABC):
    """A channel's state in memory. `size_bytes` is an estimate for bounding caches."""

    size_bytes: int = _OVERHEAD_BYTES

    @abstractmethod
    def fold(self, event: Event) -> None:
        """Take in the channel's next event."""

    @abstractmethod
    def value(self) -> object:
        """Return the state as a JSON-ready value; JSON data stands in it byte for byte."""


class LastState(State):
    """The latest event's data: a JSON value, or text as a string; null when there is none."""

    def __init__(self, stored: bytes | None = None) -> None:
        self._json, self._data = _split(stored) if stored else (True, b"null")
        self.size_bytes = _OVERHEAD_BYTES + len(self._data)

    def fold(self, event: Event) -> None:
        self._json, self._data = event.json, event.data
        self.size_bytes = _OVERHEAD_BYTES + len(event.data)

    def value(self) -> object:
        return _json_ready(self._json, self._data)


class MergeState(State):
    """A JSON document changed by merge patches (RFC 7396); `{}` before the first."""

    def __init__(self, stored: bytes | None = None) -> None:
        self._document: object = parse_json(_split(stored)[1]) if stored else {}
        self.size_bytes = _OVERHEAD_BYTES + 4 * len(stored or b"")

    def fold(self, event: Event) -> None:
        self._document = merge_patch(self._document, parse_json(event.data))
        self.size_bytes += 4 * len(event.data)

    def value(self) -> object:
        document = dump_json(self._document, sort_keys=True)
        self.size_bytes = _OVERHEAD_BYTES + 4 * len(document)
        return orjson.Fragment(document)


class KeyedState(State):
    """The latest data of each key, as an object; an event with empty data deletes its key."""

    def __init__(self, values: Mapping[str, tuple[bool, bytes]] | None = None) -> None:
        self._values = dict(values or {})
        self.size_bytes = _OVERHEAD_BYTES + sum(map(self._size, self._values))

    def _size(self, key: str) -> int:
        return _OVERHEAD_BYTES + len(key) + len(self._values[key][1])

    def fold(self, event: Event) -> None:
        if event.key in self._values:
            self.size_bytes -= self._size(event.key)
        if event.data:
            self._values[event.key] = (event.json, event.data)
            self.size_bytes += self._size(event.key)
        else:
            self._values.pop(event.key, None)

    def value(self) -> object:
        # Sorted, so that every worker renders the same bytes of the same state.
        return {key: _json_ready(*self._values[key]) for key in sorted(self._values)}


class NoState(State):
    """The state of a namespace that keeps none."""

    def fold(self, event: Event) -> None:
        pass

    def value(self) -> object:
        return None


def load_state(reducer: Reducer, stored: Mapping[bytes, bytes]) -> State:
    """Return the state that the store's fields hold: `v`, or `k<key>` for each key.

    A value is one byte of format (`j` JSON, `t` text) and the data.
    """
    match reducer:
        case Reducer.LAST:
            return LastState(stored.get(b"v"))
        case Reducer.MERGE:
            return MergeState(stored.get(b"v"))
        case Reducer.KEYED:
            return KeyedState(
                {
                    name[1:].decode(): _split(value)
                    for name, value in stored.items()
                    if name.startswith(b"k")
                }
            )
        case Reducer.NONE:  # pragma: no branch (mypy proves that there is no other)
            return NoState()


def merge_patch(target: object, patch: object) -> object:
    """Return `target` changed by `patch`; objects in `target` are altered in place.

    Source: RFC 7396 2.
    """
    if not isinstance(patch, dict):
        return patch
    result = target if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def check_foldable(event: NewEvent, reducer: Reducer) -> None:
    """Raise InvalidField when the reducer cannot take the event."""
    if reducer is Reducer.KEYED and not event.key:
        raise InvalidField("key", event.key, "is needed: the namespace's state is keyed")
    if reducer is Reducer.KEYED and event.json and event.data.strip() == b'""':
        # In an envelope it would look like the empty data of a deletion.
        rule = 'must not be the JSON string "" in a keyed namespace: empty data deletes the key'
        raise InvalidField("data", '""', rule)
    if reducer is Reducer.MERGE and not event.json:
        raise InvalidField("data", None, "must be JSON: the namespace's state is merged (RFC 7396)")


def _split(stored: bytes) -> tuple[bool, bytes]:
    return stored[:1] == b"j", stored[1:]


def _json_ready(json: bool, data: bytes) -> object:
    return orjson.Fragment(data) if json else data.decode()

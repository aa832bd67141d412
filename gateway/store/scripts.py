"""The store's Lua scripts and how their arguments and replies are laid out; sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha1
from importlib.resources import files
from typing import Any, NamedTuple

from gateway.protocol.event import Event, NewEvent
from gateway.protocol.life import Cut, Life
from gateway.protocol.position import ORIGIN, Position

JSON, TEXT = b"j", b"t"


class Script(NamedTuple):
    """One Lua script with its common opening, and the digest that EVALSHA wants."""

    source: str
    sha: str


def _load(name: str) -> Script:
    folder = files("gateway.store") / "lua"
    opening = (folder / "settle.lua").read_text()
    source = f"{opening}\n{(folder / name).read_text()}"
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


GREET, PUBLISH, DELETE = _load("greet.lua"), _load("publish.lua"), _load("delete.lua")
READ, SEAL, SWEEP = _load("read.lua"), _load("seal.lua"), _load("sweep.lua")
HOLD = _load("hold.lua")


class Keys:
    """Names of a namespace's keys; the hash tag keeps them in one slot of a cluster."""

    def __init__(self, namespace: str) -> None:
        self._tag = f"sg:{{{namespace}}}:"
        self.channels = f"{self._tag}channels"
        self.bus = f"{self._tag}bus"
        self.common = [f"{self._tag}meta", self.channels, self.bus]

    def ring(self, channel: str) -> str:
        return f"{self._tag}ring:{channel}"

    def state(self, channel: str) -> str:
        return f"{self._tag}state:{channel}"

    def idempotency(self, publisher: str, key: str) -> str:
        return f"{self._tag}idem:{publisher}:{key}"

    def lease(self, name: str) -> str:
        return f"{self._tag}lease:{name}"

    def of_channels(self, channels: Sequence[str]) -> list[str]:
        """Return the ring's and the state's key of each channel, in turn."""
        return [key for channel in channels for key in (self.ring(channel), self.state(channel))]


class IndexEntry(NamedTuple):
    """What the index remembers of a channel; `deleted` when its history ended there."""

    last: Position
    deleted: bool


class BusEntry(NamedTuple):
    """One entry of the bus: the event, the namespace's position before it, and whose history."""

    event: Event
    prev: Position
    history: str


@dataclass(frozen=True, slots=True)
class ChannelContents:
    """A channel as the store held it at one moment."""

    index: IndexEntry | None
    ring: list[Event]
    state: dict[bytes, bytes]


def digest_event(event: NewEvent) -> str:
    """Return what an idempotency key stands for: 32 hex digits over all that is published."""
    digest = blake2b(digest_size=16)
    for part in (event.channel.encode(), event.type.encode(), event.key.encode()):
        digest.update(b"%d:%b" % (len(part), part))
    digest.update((JSON if event.json else TEXT) + event.data)
    return digest.hexdigest()


def parse_position(raw: bytes) -> Position:
    """Return a position as the store writes it; it was checked when it was made."""
    ms, _, seq = raw.partition(b"-")
    return Position(int(ms), int(seq))


def parse_life(raw: Sequence[Any]) -> Life:
    """Return the namespace's life, the first part of every script's reply."""
    epoch, generation, clock, floor, last, cuts = raw
    return Life(
        epoch=epoch.decode(),
        generation=generation.decode(),
        clock=parse_position(clock),
        floor=parse_position(floor),
        last=parse_position(last),
        cuts=tuple(Cut(*map(parse_position, cut.split(b" "))) for cut in cuts.split(b",") if cut),
    )


def parse_index(raw: bytes) -> IndexEntry:
    """Return the index's value `<position> <bytes put> <bytes dropped>[ x]`."""
    position, _, rest = raw.partition(b" ")
    return IndexEntry(parse_position(position), rest.endswith(b" x"))


def parse_ring(channel: str, entries: Sequence[Any]) -> list[Event]:
    """Return a ring's events, oldest first. Fields stand in the order of publish.lua."""
    return [
        Event(
            id=parse_position(entry_id),
            prev=parse_position(values[9]),
            channel=channel,
            data=values[7],
            json=values[5] == JSON,
            type=values[1].decode(),
            key=values[3].decode(),
        )
        for entry_id, values in entries
    ]


class _Positions(dict[bytes, Position]):
    """Positions by their text: nearly every one that an entry names is that of one before it."""

    def __missing__(self, raw: bytes) -> Position:
        position = self[raw] = parse_position(raw)
        return position


class _Texts(dict[bytes, str]):
    """Texts by their bytes: channels and types come again, and then take no more memory."""

    def __missing__(self, raw: bytes) -> str:
        text = self[raw] = raw.decode()
        return text


def parse_bus(entries: Sequence[Any]) -> list[BusEntry]:
    """Return entries of the bus, oldest first. Fields stand in the order of settle.lua."""
    positions, texts = _Positions(), _Texts()
    return [
        BusEntry(
            # Not by name, which takes twice as long: all events pass here.
            Event(
                positions[entry_id], positions[values[11]], texts[values[1]], values[9],
                values[7] == JSON, texts[values[3]], texts[values[5]], bool(values[17]),
            ),
            positions[values[13]],
            texts[values[15]],
        )
        for entry_id, values in entries
    ]  # fmt: skip


def parse_contents(channel: str, raw: Sequence[Any]) -> ChannelContents:
    """Return one channel of read.lua's reply."""
    index, ring, state = raw
    return ChannelContents(
        parse_index(index) if index else None,
        parse_ring(channel, ring),
        dict(zip(state[::2], state[1::2], strict=True)),
    )


def history_of(life: Life) -> str:
    """Return the token that bus entries of this life carry."""
    return f"{life.epoch}:{life.generation}"


def last_of(contents: ChannelContents) -> Position:
    """Return the channel's last position, `0-0` when the store does not know it."""
    return contents.index.last if contents.index else ORIGIN

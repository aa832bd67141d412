"""The store's one door: every read and write of a namespace in Redis; keeps no events itself."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, ParamSpec, TypeVar

from hiredis import pack_command

from gateway.protocol.channel import DEFAULT_NAMESPACE
from gateway.protocol.errors import (
    GatewayError,
    IdempotencyConflict,
    LimitExceeded,
    PositionMismatch,
    StoreRefused,
    UnknownChannel,
)
from gateway.protocol.event import NewEvent
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.store.commands import Commands
from gateway.store.connection import Server, parse_info
from gateway.store.scripts import (
    DELETE,
    GREET,
    HOLD,
    JSON,
    PUBLISH,
    READ,
    SEAL,
    SWEEP,
    TEXT,
    BusEntry,
    ChannelContents,
    IndexEntry,
    digest_event,
    parse_bus,
    parse_contents,
    parse_index,
    parse_life,
    parse_position,
)

_OLDEST_VERSION = (6, 2)  # Exclusive ranges "(id" and XTRIM MINID.
_PAGE = 1000  # Index entries to a step of HSCAN.
_ANYBODY = "-"
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds of the store that are not a namespace's own.

    The bus holds at least four batches of the largest size, so that a worker has time to
    read them.
    """

    batch_limit_events: int = 10_000
    batch_limit_bytes: int = 8 * 1024 * 1024
    idempotency_ms: int = 24 * 3600 * 1000
    cut_margin_ms: int = 1000
    command_timeout_seconds: float = 10.0

    @property
    def bus_events(self) -> int:
        return 4 * self.batch_limit_events

    @property
    def bus_bytes(self) -> int:
        # An entry counts 100 bytes and its name on top of its data.
        return 4 * (self.batch_limit_bytes + 400 * self.batch_limit_events)


class Stored(NamedTuple):
    """Where an event stands; `replayed` when its idempotency key had stored it before."""

    position: Position
    replayed: bool


@dataclass(slots=True)
class PublishCall:
    """What one atomic publish is made of. `states` are merged states and what they rest on."""

    events: Sequence[NewEvent]
    if_match: str = ""
    publisher: str = _ANYBODY
    states: Mapping[str, tuple[Position, bytes]] = field(default_factory=dict)


class StateMoved(GatewayError):
    """A merged state changed since it was read; nothing was stored."""


class RedisStore:
    """All namespaces' rings, buses, states and indexes.

    Every method raises StoreUnavailable when Redis does not answer (OutcomeUnknown when a
    write may have happened) and StoreRefused when the stored data cannot be built on.
    """

    def __init__(
        self, server: Server, namespaces: Mapping[str, Namespace], limits: StoreLimits
    ) -> None:
        self.namespaces = namespaces
        self.limits = limits
        self.published = 0
        self._commands = Commands(
            server,
            namespaces,
            timeout_seconds=limits.command_timeout_seconds,
            cut_margin_ms=limits.cut_margin_ms,
        )
        self._keys = self._commands.keys

    @property
    def errors(self) -> int:
        """How many commands failed: the server did not answer, or not as it should."""
        return self._commands.errors

    async def aclose(self) -> None:
        """Close every connection."""
        await self._commands.aclose()

    def observe(self, namespace: str, position: Position) -> None:
        """Remember the highest position tailed; a store that lost it must not give it again."""
        self._commands.observe(namespace, position)

    # -- start-up -----------------------------------------------------------------------------

    async def check(self) -> None:
        """Refuse a server or data that the guarantees cannot stand on; raises StoreRefused."""
        for name in self.namespaces:
            async with self._commands.connection(name) as connection:
                await connection.send_command("INFO")
                info = parse_info(await connection.read_response())
            version = info.get("redis_version", "0.0")
            if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_VERSION:
                raise StoreRefused(f"redis {version} is too old: 6.2 or newer is needed")
            policy = info.get("maxmemory_policy", "noeviction")
            if policy != "noeviction":
                raise StoreRefused(
                    f"redis evicts keys (maxmemory-policy {policy}): events would vanish unseen; "
                    "set maxmemory-policy noeviction"
                )
            await self.greet(name)
        if len(self.namespaces) > 1:
            await self._check_nothing_taken_over()

    async def _check_nothing_taken_over(self) -> None:
        async for channel, entry in self.scan_index(DEFAULT_NAMESPACE):
            name = channel.partition("/")[0]
            if name in self.namespaces and name != DEFAULT_NAMESPACE and not entry.deleted:
                raise StoreRefused(
                    f"namespaces.{name}: would take over channel {channel} of namespace default. "
                    f"Start without it and move its channels: `sse-gateway tail {name} '{name}/*' "
                    f"--since 3650d --no-follow --json > {name}.ndjson`, delete each of them "
                    f"(`curl -X DELETE …/channels/{channel}`), declare the namespace, then "
                    f"`sse-gateway publish --from {name}.ndjson`"
                )

    # -- reads --------------------------------------------------------------------------------

    async def greet(self, namespace: str) -> Life:
        """Return the namespace's life now; a new run of the server is noticed here."""
        return parse_life((await self._commands.run(namespace, GREET, [], []))[0])

    async def read(
        self,
        namespace: str,
        channels: Sequence[str],
        what: str,
        idempotency_keys: Sequence[str] = (),
        publisher: str = _ANYBODY,
    ) -> tuple[Life, list[ChannelContents], list[bytes | None]]:
        """Return channels as they are at one moment. `what` is `ring`, `state` or `both`."""
        keys = self._keys[namespace]
        names = keys.of_channels(channels)
        names += [keys.idempotency(publisher, key) for key in idempotency_keys]
        reply = await self._commands.run(namespace, READ, names, [len(channels), what, *channels])
        contents = [
            self._parse(namespace, keys.ring(channel), parse_contents, channel, raw)
            for channel, raw in zip(channels, reply[1], strict=True)
        ]
        return parse_life(reply[0]), contents, reply[2]

    async def scan_index(self, namespace: str) -> AsyncIterator[tuple[str, IndexEntry]]:
        """Yield every channel that the index knows."""
        cursor = b"0"
        while True:
            async with self._commands.connection(namespace) as connection:
                await connection.send_command(
                    "HSCAN", self._keys[namespace].channels, cursor, "COUNT", _PAGE
                )
                cursor, flat = await connection.read_response()
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                entry = self._parse(namespace, self._keys[namespace].channels, parse_index, value)
                yield name.decode(), entry
            if cursor == b"0":
                return

    async def read_bus(
        self, namespace: str, after: Position, count: int, block_ms: int
    ) -> list[BusEntry]:
        """Return the bus's entries after a position, waiting up to `block_ms` for the first."""
        async with self._commands.connection(
            namespace, block_seconds=block_ms / 1000
        ) as connection:
            await connection.send_command(
                "XREAD", "COUNT", count, "BLOCK", block_ms,
                "STREAMS", self._keys[namespace].bus, str(after),
            )  # fmt: skip
            reply = await connection.read_response()
        entries = reply[0][1] if reply else []
        return self._parse(namespace, self._keys[namespace].bus, parse_bus, entries)

    async def ring_lengths(self, namespace: str, channels: Sequence[str]) -> list[int]:
        """Return how many events each channel's ring holds, in one round trip."""
        keys = self._keys[namespace]
        async with self._commands.connection(namespace) as connection:
            commands: list[tuple[Any, ...]] = [("XLEN", keys.ring(name)) for name in channels]
            await connection.send_packed_command(b"".join(map(pack_command, commands)))
            return [int(await connection.read_response()) for _ in channels]

    @staticmethod
    def _parse(
        namespace: str, key: str, parse: Callable[_P, _T], *args: _P.args, **named: _P.kwargs
    ) -> _T:
        """Return what a key holds; raises StoreRefused when another than this gateway wrote it."""
        try:
            return parse(*args, **named)
        except (IndexError, ValueError) as error:
            raise StoreRefused(
                f"namespace {namespace} holds unexpected data in {key}: {error}"
            ) from error

    # -- writes -------------------------------------------------------------------------------

    async def publish(self, namespace: str, call: PublishCall) -> list[Stored]:
        """Store the events of one namespace, all or nothing, and return where each stands.

        Raises IdempotencyConflict, PositionMismatch, LimitExceeded (their `line` counts the
        call's events from 1) or StateMoved; nothing is stored then. Never retries by itself.
        """
        rules, keys = self.namespaces[namespace], self._keys[namespace]
        channels = list(dict.fromkeys([event.channel for event in call.events]))
        arguments: list[Any] = [
            rules.ring_limit_events, rules.ring_limit_bytes, rules.ring_age_seconds * 1000,
            self.limits.bus_events, self.limits.bus_bytes, rules.channels_limit,
            rules.keys_limit, rules.state_limit_bytes, self.limits.idempotency_ms,
            len(channels), len(call.events), rules.ring_spare_seconds * 1000,
        ]  # fmt: skip
        for channel in channels:
            arguments += (channel, call.if_match, *self._folded(call.states.get(channel)))
        number = {channel: b"%d" % at for at, channel in enumerate(channels, 1)}
        idempotency: dict[str, int] = {}
        for event in call.events:
            channel, data, is_json, type, key, token = event
            idem, digest = b"0", ""
            if token:
                idem = b"%d" % idempotency.setdefault(token, len(idempotency) + 1)
                digest = digest_event(event)
            kind = JSON if is_json else TEXT
            arguments += (number[channel], type, key, kind, data, idem, digest)
        names = keys.of_channels(channels)
        names += [keys.idempotency(call.publisher, token) for token in idempotency]
        _, outcome, *rest = await self._commands.run(
            namespace, PUBLISH, names, arguments, writes=True
        )
        if outcome != b"ok":
            raise _refusal(outcome, int(rest[0]), rest[1], call, rules)
        replayed = set(rest[1])
        self.published += len(call.events) - len(replayed)
        return [
            Stored(parse_position(position), at in replayed)
            for at, position in enumerate(rest[0], 1)
        ]

    @staticmethod
    def _folded(state: tuple[Position, bytes] | None) -> tuple[str, bytes]:
        return ("", b"") if state is None else (str(state[0]), JSON + state[1])

    async def delete(self, namespace: str, channel: str, if_match: str = "") -> Position:
        """End a channel's history and return the position of its end.

        Raises UnknownChannel, or PositionMismatch when `if_match` names another last position.
        """
        names = self._keys[namespace].of_channels([channel])
        limits = self.limits
        arguments = [channel, if_match, limits.bus_events, limits.bus_bytes]
        _, outcome, detail = await self._commands.run(
            namespace, DELETE, names, arguments, writes=True
        )
        if outcome == b"unknown":
            raise UnknownChannel(channel)
        if outcome == b"mismatch":
            raise PositionMismatch(channel, if_match, parse_position(detail))
        return parse_position(detail)

    async def seal(self, namespace: str, boundary: Position) -> tuple[Life, int]:
        """Let no later event stand before a boundary that the server's time has come to.

        Returns the namespace's life, whose clock tells whether it was sealed, and the server's
        time in milliseconds; every event before the boundary is at most the life's last.
        """
        reply = await self._commands.run(namespace, SEAL, [], [boundary.ms])
        life = parse_life(reply[0])
        # A store that comes back without the seal must not give out positions before it.
        self.observe(namespace, min(boundary, life.clock))
        return life, int(reply[1])

    async def hold(
        self,
        namespace: str,
        lease: str,
        token: str,
        seconds: float,
        due_from: Position | None = None,
    ) -> tuple[bool, Position]:
        """Take a lease, or keep it for longer; False when another token holds it.

        With 0 seconds it is let go of. `due_from`, from where on its work is still to be done, is
        noted unless another token holds it. Returned is what was noted last, ORIGIN for nothing.
        """
        key = self._keys[namespace].lease(lease)
        note = f"{key}:due_from"
        given = "" if due_from is None else str(due_from)
        held, noted = await self._commands.run(
            namespace, HOLD, [key, note], [token, int(seconds * 1000), given]
        )
        return bool(held), self._parse(namespace, note, parse_position, noted) if noted else ORIGIN

    async def sweep(self, namespace: str, channels: Sequence[str]) -> int:
        """Drop index entries of channels without ring and state; return how many went.

        The namespace's floor rises to the highest of them.
        """
        async with self._commands.connection(namespace) as connection:
            await connection.send_command("HMGET", self._keys[namespace].channels, *channels)
            values = await connection.read_response()
        listed = [(name, value) for name, value in zip(channels, values, strict=True) if value]
        names = self._keys[namespace].of_channels([name for name, _ in listed])
        reply = await self._commands.run(namespace, SWEEP, names, list(chain.from_iterable(listed)))
        return int(reply[1])


def _refusal(
    outcome: bytes, number: int, detail: bytes, call: PublishCall, rules: Namespace
) -> GatewayError:
    event = call.events[number - 1]
    if outcome == b"conflict":
        return IdempotencyConflict(event.idempotency_key, line=number)
    if outcome == b"mismatch":
        current = parse_position(detail) if detail else None
        return PositionMismatch(event.channel, call.if_match, current)
    if outcome == b"retry":
        return StateMoved(event.channel)
    field_name, rule = {
        b"channels": ("channel", f"the namespace holds at most {rules.channels_limit} channels"),
        b"keys": ("key", f"a channel's state holds at most {rules.keys_limit} keys"),
        b"state": ("data", f"a channel's state is at most {rules.state_limit_bytes} bytes"),
    }[detail]
    value = event.key if field_name == "key" else event.channel
    return LimitExceeded(field_name, value, rule, line=number)

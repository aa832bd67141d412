"""The store's one door: every read and write of a namespace in Redis; keeps no events itself."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, ParamSpec, TypeVar

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.protocol.channel import DEFAULT_NAMESPACE
from gateway.protocol.errors import (
    GatewayError,
    IdempotencyConflict,
    LimitExceeded,
    OutcomeUnknown,
    PositionMismatch,
    StoreRefused,
    StoreUnavailable,
    UnknownChannel,
)
from gateway.protocol.event import NewEvent
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.store.connection import Server, borrow, parse_info, run_id
from gateway.store.scripts import (
    DELETE,
    GREET,
    JSON,
    PUBLISH,
    READ,
    SWEEP,
    TEXT,
    BusEntry,
    ChannelContents,
    IndexEntry,
    Keys,
    Script,
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
_ELSEWHERE = (ReadOnlyError, ClusterDownError, BusyLoadingError)


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


class _Moved(StoreUnavailable):
    """The namespace's slot is served by another node now; nothing ran."""


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
        self.errors = 0
        self._server = server
        self._keys = {name: Keys(name) for name in namespaces}
        self._tailed = dict.fromkeys(namespaces, ORIGIN)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._server.aclose()

    def observe(self, namespace: str, position: Position) -> None:
        """Remember the highest position tailed; a store that lost it must not give it again."""
        self._tailed[namespace] = max(self._tailed[namespace], position)

    # -- start-up -----------------------------------------------------------------------------

    async def check(self) -> None:
        """Refuse a server or data that the guarantees cannot stand on; raises StoreRefused."""
        for name in self.namespaces:
            async with self._connection(name) as connection:
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
        taken = [name for name in self.namespaces if name != DEFAULT_NAMESPACE]
        for name in taken:
            await self._check_not_taken_over(name)

    async def _check_not_taken_over(self, name: str) -> None:
        async for channel, entry in self.scan_index(DEFAULT_NAMESPACE, f"{name}*"):
            if not entry.deleted and channel.partition("/")[0] == name:
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
        return parse_life((await self._run(namespace, GREET, [], []))[0])

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
        reply = await self._run(namespace, READ, names, [len(channels), what, *channels])
        contents = [
            self._parse(namespace, keys.ring(channel), parse_contents, channel, raw)
            for channel, raw in zip(channels, reply[1], strict=True)
        ]
        return parse_life(reply[0]), contents, reply[2]

    async def scan_index(
        self, namespace: str, pattern: str = "*"
    ) -> AsyncIterator[tuple[str, IndexEntry]]:
        """Yield every channel that the index knows and that `pattern` matches."""
        cursor = b"0"
        while True:
            async with self._connection(namespace) as connection:
                await connection.send_command(
                    "HSCAN", self._keys[namespace].channels, cursor, "MATCH", pattern,
                    "COUNT", _PAGE,
                )  # fmt: skip
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
        async with self._connection(namespace, block_seconds=block_ms / 1000) as connection:
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
        async with self._connection(namespace) as connection:
            commands = [("XLEN", keys.ring(channel)) for channel in channels]
            await connection.send_packed_command(connection.pack_commands(commands))
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
        channels = {event.channel: None for event in call.events}
        number = {channel: at for at, channel in enumerate(channels, 1)}
        idempotency: dict[str, int] = {}
        rows: list[tuple[object, ...]] = []
        for event in call.events:
            token = event.idempotency_key
            idem = idempotency.setdefault(token, len(idempotency) + 1) if token else 0
            digest = digest_event(event) if token else ""
            kind = JSON if event.json else TEXT
            rows.append(
                (number[event.channel], event.type, event.key, kind, event.data, idem, digest)
            )
        heads = [
            (channel, call.if_match, *self._folded(call.states.get(channel)))
            for channel in channels
        ]
        names = keys.of_channels(list(channels))
        names += [keys.idempotency(call.publisher, key) for key in idempotency]
        arguments = [
            rules.ring_limit_events, rules.ring_limit_bytes, rules.ring_age_seconds * 1000,
            self.limits.bus_events, self.limits.bus_bytes, rules.channels_limit,
            rules.keys_limit, rules.state_limit_bytes, self.limits.idempotency_ms,
            len(channels), len(rows), *chain.from_iterable(heads), *chain.from_iterable(rows),
        ]  # fmt: skip
        _, outcome, *rest = await self._run(namespace, PUBLISH, names, arguments, writes=True)
        if outcome != b"ok":
            raise _refusal(outcome, int(rest[0]), rest[1], call, rules)
        replayed = set(rest[1])
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
        _, outcome, detail = await self._run(namespace, DELETE, names, arguments, writes=True)
        if outcome == b"unknown":
            raise UnknownChannel(channel)
        if outcome == b"mismatch":
            raise PositionMismatch(channel, if_match, parse_position(detail))
        return parse_position(detail)

    async def sweep(self, namespace: str, channels: Sequence[str]) -> int:
        """Drop index entries of channels without ring and state; return how many went.

        The namespace's floor rises to the highest of them.
        """
        async with self._connection(namespace) as connection:
            await connection.send_command("HMGET", self._keys[namespace].channels, *channels)
            values = await connection.read_response()
        listed = [(name, value) for name, value in zip(channels, values, strict=True) if value]
        names = self._keys[namespace].of_channels([name for name, _ in listed])
        reply = await self._run(namespace, SWEEP, names, list(chain.from_iterable(listed)))
        return int(reply[1])

    # -- the one way to Redis -----------------------------------------------------------------

    async def _run(
        self,
        namespace: str,
        script: Script,
        keys: list[str],
        arguments: Sequence[Any],
        *,
        writes: bool = False,
    ) -> Any:
        try:
            return await self._run_once(namespace, script, keys, arguments, writes)
        except _Moved:
            # Redis ran nothing, and the topology was dropped: ask the new owner.
            return await self._run_once(namespace, script, keys, arguments, writes)

    async def _run_once(
        self,
        namespace: str,
        script: Script,
        keys: list[str],
        arguments: Sequence[Any],
        writes: bool,
    ) -> Any:
        all_keys = [*self._keys[namespace].common, *keys]
        async with self._connection(namespace, writes=writes) as connection:
            common = (
                run_id(connection),
                str(self._tailed[namespace]),
                secrets.token_hex(8),
                self.limits.cut_margin_ms,
                str(self.namespaces[namespace].reducer),
            )
            rest = (len(all_keys), *all_keys, *common, *arguments)
            # hiredis packs ten thousand events several times as fast as the connection's own way.
            await connection.send_packed_command(pack_command(("EVALSHA", script.sha, *rest)))
            try:
                return await connection.read_response()
            except NoScriptError:  # Nothing ran yet: this server has not seen the script.
                await connection.send_packed_command(pack_command(("EVAL", script.source, *rest)))
                return await connection.read_response()

    @asynccontextmanager
    async def _connection(
        self, namespace: str, *, block_seconds: float = 0.0, writes: bool = False
    ) -> AsyncIterator[AbstractConnection]:
        """Lend a connection for commands that Redis may hold for `block_seconds`.

        Its errors become ours: when it breaks, what `writes` has an unknown outcome.
        """
        seconds = self.limits.command_timeout_seconds
        try:
            async with (
                borrow(self._server, namespace, seconds) as connection,
                asyncio.timeout(block_seconds + seconds),
            ):
                yield connection
        except MovedError as error:
            await self._server.forget()
            raise _Moved(f"redis: {error}") from error
        except StoreUnavailable:
            self.errors += 1
            raise
        except _ELSEWHERE as error:
            self.errors += 1
            await self._server.forget()
            raise StoreUnavailable(f"redis: {error}") from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            self.errors += 1
            kind = OutcomeUnknown if writes else StoreUnavailable
            raise kind(f"redis: {str(error) or type(error).__name__}") from error
        except OutOfMemoryError as error:
            self.errors += 1
            raise StoreUnavailable(f"redis is full: {error}") from error
        except ResponseError as error:
            self.errors += 1
            if "-READONLY " in str(error):  # Redis 6.2 wraps what a script runs into.
                await self._server.forget()
            raise self._response_error(namespace, str(error)) from error
        except RedisError as error:
            self.errors += 1
            raise StoreUnavailable(f"redis: {error}") from error

    def _response_error(self, namespace: str, text: str) -> GatewayError:
        if "REDUCER " in text:
            stored = text.partition("REDUCER ")[2].split()[0]
            return StoreRefused(
                f"namespaces.{namespace}.reducer = {self.namespaces[namespace].reducer}: its "
                f"channels were folded by {stored}; keep {stored}, or use another namespace"
            )
        if "SCHEMA " in text:
            return StoreRefused(f"namespace {namespace} was written by another version: {text}")
        if "CORRUPT " in text or "WRONGTYPE" in text:
            return StoreRefused(f"namespace {namespace} holds unexpected data: {text}")
        if "-OOM " in text:
            return StoreUnavailable(f"redis is full: {text}")
        return StoreUnavailable(f"redis: {text}")


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

"""The one way to Redis: runs scripts, lends connections, and makes Redis's errors ours."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

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

from gateway.protocol.errors import GatewayError, OutcomeUnknown, StoreRefused, StoreUnavailable
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.store.connection import Server, borrow, run_id
from gateway.store.scripts import Keys, Script

_ELSEWHERE = (ReadOnlyError, ClusterDownError, BusyLoadingError)
_UNEXPECTED = ("CORRUPT ", "WRONGTYPE", "equal or smaller")  # The last is XADD's.


class _Moved(StoreUnavailable):
    """The namespace's slot is served by another node now; nothing ran."""


class Commands:
    """Commands to the server that owns a namespace; never repeats one that may have run.

    Every method raises StoreUnavailable when Redis does not answer (OutcomeUnknown when a
    write may have happened) and StoreRefused when the stored data cannot be built on.
    """

    def __init__(
        self,
        server: Server,
        namespaces: Mapping[str, Namespace],
        *,
        timeout_seconds: float,
        cut_margin_ms: int,
    ) -> None:
        self.errors = 0
        self.keys = {name: Keys(name) for name in namespaces}
        self._server = server
        self._reducers = {name: str(rules.reducer) for name, rules in namespaces.items()}
        self._tailed = dict.fromkeys(namespaces, ORIGIN)
        self._timeout_seconds = timeout_seconds
        self._cut_margin_ms = cut_margin_ms

    async def aclose(self) -> None:
        """Close every connection."""
        await self._server.aclose()

    def observe(self, namespace: str, position: Position) -> None:
        """Tell every later script the highest position that was tailed."""
        self._tailed[namespace] = max(self._tailed[namespace], position)

    async def run(
        self,
        namespace: str,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        *,
        writes: bool = False,
    ) -> Any:
        """Return what a script replies; `keys` and `arguments` are those of its own."""
        try:
            return await self._run_once(namespace, script, keys, arguments, writes)
        except _Moved:
            # Redis ran nothing, and the topology was dropped: ask the new owner.
            return await self._run_once(namespace, script, keys, arguments, writes)

    async def _run_once(
        self,
        namespace: str,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        writes: bool,
    ) -> Any:
        all_keys = [*self.keys[namespace].common, *keys]
        async with self.connection(namespace, writes=writes) as connection:
            common = (
                run_id(connection),
                str(self._tailed[namespace]),
                secrets.token_hex(8),
                self._cut_margin_ms,
                self._reducers[namespace],
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
    async def connection(
        self, namespace: str, *, block_seconds: float = 0.0, writes: bool = False
    ) -> AsyncIterator[AbstractConnection]:
        """Lend a connection for commands that Redis may hold for `block_seconds`.

        Its errors become ours: when it breaks, what `writes` has an unknown outcome.
        """
        seconds = self._timeout_seconds
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
                f"namespaces.{namespace}.reducer = {self._reducers[namespace]}: its "
                f"channels were folded by {stored}; keep {stored}, or use another namespace"
            )
        if "SCHEMA " in text:
            return StoreRefused(f"namespace {namespace} was written by another version: {text}")
        if any(mark in text for mark in _UNEXPECTED):
            return StoreRefused(f"namespace {namespace} holds unexpected data: {text}")
        if "-OOM " in text:
            return StoreUnavailable(f"redis is full: {text}")
        return StoreUnavailable(f"redis: {text}")

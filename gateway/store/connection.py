"""Connections to Redis that know which run of the server they reached; no commands of ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from gateway.protocol.errors import StoreRefused, StoreUnavailable

_run_ids: WeakKeyDictionary[AbstractConnection, bytes] = WeakKeyDictionary()


async def _on_connect(connection: AbstractConnection) -> None:
    await connection.on_connect()
    # The run id belongs to the connection: a pool may hold connections to two lives of a server.
    await connection.send_command("INFO", "server")
    info = await connection.read_response()
    _run_ids[connection] = parse_info(info).get("run_id", "").encode()


def run_id(connection: AbstractConnection) -> bytes:
    """Return the run id of the server that `connection` reached when it connected."""
    return _run_ids.get(connection, b"")


def parse_info(reply: bytes | str) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    text = reply.decode() if isinstance(reply, bytes) else reply
    fields = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value for name, _, value in fields}


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Limits of the connections to Redis."""

    connect_timeout_seconds: float = 5.0
    command_timeout_seconds: float = 10.0
    connections_limit: int = 64

    def keywords(self) -> dict[str, Any]:
        """Return redis-py's names for them. It never retries: a publish must not run twice."""
        return {
            "socket_connect_timeout": self.connect_timeout_seconds,
            "socket_timeout": self.command_timeout_seconds,
            "retry": Retry(NoBackoff(), 0),
            "redis_connect_func": _on_connect,
            "protocol": 2,
        }


class Server(Protocol):
    """Where a namespace's keys live: hands out connections to the master that owns them."""

    async def pool(self, namespace: str) -> ConnectionPool:
        """Return the pool of the namespace's shard."""

    async def forget(self) -> None:
        """Look the masters up anew before the next connection."""

    async def aclose(self) -> None:
        """Close every connection."""


class SingleServer:
    """One Redis, by URL, or the master that a sentinel names."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def pool(self, namespace: str) -> ConnectionPool:
        return self._pool

    async def forget(self) -> None:
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        await self._pool.aclose()


class ClusterServer:
    """A Redis Cluster: a namespace is one slot, so one node at a time."""

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        self._url = url
        self._options = options
        self._cluster: RedisCluster | None = None
        self._pools: dict[str, ConnectionPool] = {}

    async def pool(self, namespace: str) -> ConnectionPool:
        if self._cluster is None:
            cluster = RedisCluster.from_url(
                self._url, socket_connect_timeout=self._options.connect_timeout_seconds
            )
            await cluster.initialize()
            self._cluster = cluster
        node = self._cluster.get_node_from_key(f"sg:{{{namespace}}}:meta")
        if node is None:
            raise RedisConnectionError(f"no node of the cluster serves namespace {namespace}")
        if node.name not in self._pools:
            parts = urlsplit(self._url)
            login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            host = f"[{node.host}]" if ":" in node.host else node.host
            self._pools[node.name] = BlockingConnectionPool.from_url(
                f"{parts.scheme}://{login}{host}:{node.port}",
                max_connections=self._options.connections_limit,
                **self._options.keywords(),
            )
        return self._pools[node.name]

    async def forget(self) -> None:
        pools, self._pools = self._pools, {}
        cluster, self._cluster = self._cluster, None
        for pool in pools.values():
            await pool.aclose()
        if cluster is not None:
            await cluster.aclose()

    async def aclose(self) -> None:
        await self.forget()


def open_server(url: str, options: ConnectionOptions) -> Server:
    """Return the server that `url` names; nothing is connected yet.

    `redis://`, `rediss://`, `unix://`; `redis+sentinel://host:port,host:port/service?db=0` and
    `redis+cluster://host:port` (`rediss+…` for TLS). Raises StoreRefused for anything else.
    """
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if plain not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
        raise StoreRefused(
            f"redis = {_without_password(url)}: must be embedded, redis://, rediss://, unix://, "
            "redis+sentinel:// or redis+cluster://"
        )
    try:
        if kind == "cluster":
            return ClusterServer(f"{plain}://{rest}", options)
        if kind == "sentinel":
            return SingleServer(_sentinel_pool(plain, rest, options))
        pool: ConnectionPool = BlockingConnectionPool.from_url(
            url, max_connections=options.connections_limit, **options.keywords()
        )
    except ValueError as error:
        raise StoreRefused(f"redis = {_without_password(url)}: {error}") from error
    return SingleServer(pool)


def _sentinel_pool(scheme: str, rest: str, options: ConnectionOptions) -> ConnectionPool:
    parts = urlsplit(f"//{rest}")
    service = parts.path.strip("/")
    if not service:
        raise ValueError("a sentinel URL ends with the service's name: …/mymaster")
    login, _, hosts = parts.netloc.rpartition("@")
    addresses = []
    for address in hosts.split(","):
        host, _, port = address.rpartition(":")
        addresses.append((host or address, int(port) if host else 26379))
    user, _, password = login.partition(":")
    sentinel = Sentinel(addresses, socket_timeout=options.connect_timeout_seconds)
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return SentinelConnectionPool(
        service,
        sentinel,
        ssl=scheme == "rediss",
        db=int(database),
        username=user or None,
        password=password or None,
        max_connections=options.connections_limit,
        **options.keywords(),
    )


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    login, at, address = rest.rpartition("@")
    return f"{scheme}{separator}{'…@' if login or at else ''}{address}"


@asynccontextmanager
async def borrow(server: Server, namespace: str) -> AsyncIterator[AbstractConnection]:
    """Lend a live connection to the namespace's shard.

    It is closed, not given back, when the block ends early: an unread reply must not be read
    as the next command's. Raises StoreUnavailable when none can be had.
    """
    try:
        pool = await server.pool(namespace)
        connection = await pool.get_connection()
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"redis: {error}") from error
    try:
        yield connection
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)

"""Connections to Redis that know which run of the server they reached; no commands of ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, RedisCluster
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

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
    connections_limit: int = 64

    def keywords(self) -> dict[str, Any]:
        """Return redis-py's names for them. It never retries: a publish must not run twice."""
        return {
            "socket_connect_timeout": self.connect_timeout_seconds,
            # Bounded by the store instead: redis-py would send through asyncio.wait_for, which
            # in Python 3.11 loses a cancellation that comes as the send completes.
            "socket_timeout": None,
            "retry": _no_retry(),
            "redis_connect_func": _on_connect,
            "protocol": 2,
        }


def _no_retry() -> Retry:
    return Retry(NoBackoff(), 0)


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

    def __init__(self, pool: ConnectionPool, sentinel: Sentinel | None = None) -> None:
        self._pool = pool
        self._sentinel = sentinel

    async def pool(self, namespace: str) -> ConnectionPool:
        return self._pool

    async def forget(self) -> None:
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        await self._pool.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()


class ClusterServer:
    """A Redis Cluster: a namespace is one slot, so one node at a time."""

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        self._url = url
        self._options = options
        self._cluster: RedisCluster | None = None
        self._pools: dict[str, ConnectionPool] = {}
        self._seen: list[str] = []
        self._turn = asyncio.Lock()

    async def pool(self, namespace: str) -> ConnectionPool:
        cluster = await self._topology()
        node = cluster.get_node_from_key(f"sg:{{{namespace}}}:meta")
        if node is None:
            raise RedisConnectionError(f"no node of the cluster serves namespace {namespace}")
        if node.name not in self._pools:
            self._pools[node.name] = BlockingConnectionPool.from_url(
                self._url_of(node.host, node.port),
                max_connections=self._options.connections_limit,
                **self._options.keywords(),
            )
        return self._pools[node.name]

    def _url_of(self, host: str, port: int | str) -> str:
        """Return the URL of a node: login and options are those of the URL that was given."""
        parts = urlsplit(self._url)
        login, at, _ = parts.netloc.rpartition("@")
        host = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{login}{at}{host}:{port}?{parts.query}"

    async def _topology(self) -> RedisCluster:
        async with self._turn:
            if self._cluster is None:
                self._cluster = cluster = await self._ask()
                nodes = {
                    node.name: self._url_of(node.host, node.port) for node in cluster.get_nodes()
                }
                self._seen = list(nodes.values())
                for name in self._pools.keys() - nodes.keys():
                    await self._pools.pop(name).aclose()
            return self._cluster

    async def _ask(self) -> RedisCluster:
        """Return the topology as the first node tells it that answers."""
        seconds = self._options.connect_timeout_seconds
        # The node of the URL may be the one that died: then those it named.
        for url in (self._url, *self._seen):
            cluster = RedisCluster.from_url(
                url, socket_connect_timeout=seconds, socket_timeout=seconds
            )
            try:
                return await cluster.initialize()
            except (RedisError, RedisClusterException, OSError) as error:
                failure = error
        raise failure

    async def forget(self) -> None:
        # Connections stay: those to other nodes have commands under way.
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await cluster.aclose()

    async def aclose(self) -> None:
        await self.forget()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            await pool.aclose()


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master that a sentinel names; whoever finds none free waits."""

    def __init__(self, service: str, sentinel: Sentinel, **keywords: Any) -> None:
        super().__init__(service, sentinel, **keywords)  # type: ignore[no-untyped-call]


def open_server(url: str, options: ConnectionOptions) -> Server:
    """Return the server that `url` names; nothing is connected yet.

    `redis://`, `rediss://`, `unix://`; `redis+sentinel://host:port,host:port/service?db=0` and
    `redis+cluster://host:port` (`rediss+…` for TLS). Raises StoreRefused for anything else.
    """
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    try:
        match plain, kind:
            case (("redis" | "rediss"), "cluster"):
                parse_url(f"{plain}://{rest}")  # Now, not when it first connects.
                return ClusterServer(f"{plain}://{rest}", options)
            case (("redis" | "rediss"), "sentinel"):
                return _sentinel_server(plain, rest, options)
            case (("redis" | "rediss" | "unix"), ""):
                pool: ConnectionPool = BlockingConnectionPool.from_url(
                    url, max_connections=options.connections_limit, **options.keywords()
                )
                return SingleServer(pool)
    except ValueError as error:
        # What stands before an @ may be a password, and the error may quote a piece of it.
        why = "is no valid URL; is its password percent-encoded?" if "@" in url else str(error)
        raise StoreRefused(f"redis = {without_password(url)}: {why}") from None
    raise StoreRefused(
        f"redis = {without_password(url)}: must be embedded, redis://, rediss://, unix://, "
        "redis+sentinel:// or redis+cluster://"
    )


def _sentinel_server(scheme: str, rest: str, options: ConnectionOptions) -> SingleServer:
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
    seconds = options.connect_timeout_seconds
    sentinel = Sentinel(
        addresses,
        sentinel_kwargs={
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "retry": _no_retry(),
        },
    )
    database = parse_qs(parts.query).get("db", ["0"])[0]
    pool = _SentinelPool(
        service,
        sentinel,
        ssl=scheme == "rediss",
        db=int(database),
        username=unquote(user) or None,
        password=unquote(password) or None,
        max_connections=options.connections_limit,
        **options.keywords(),
    )
    return SingleServer(pool, sentinel)


def without_password(url: str) -> str:
    """Return a Redis URL fit for messages: without its login."""
    scheme, separator, rest = url.partition("://")
    _, at, address = rest.rpartition("@")
    address, question, _ = address.partition("?")  # `?password=` is possible, too.
    return f"{scheme}{separator}{'…@' if at else ''}{address}{'?…' if question else ''}"


@asynccontextmanager
async def borrow(
    server: Server, namespace: str, timeout_seconds: float
) -> AsyncIterator[AbstractConnection]:
    """Lend a live connection to the namespace's shard.

    It is closed, not given back, when the block ends early: an unread reply must not be read
    as the next command's. Raises StoreUnavailable when none can be had.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            pool = await server.pool(namespace)
            connection = await pool.get_connection()
    except (RedisError, RedisClusterException, OSError) as error:
        # The node may be gone for good, and another one the master now.
        await server.forget()
        raise StoreUnavailable(f"redis: {str(error) or 'no connection in time'}") from error
    try:
        yield connection
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)

"""What the store's tests share: stores on a real server, short publishes, and looks inside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.protocol.event import Event, NewEvent
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.position import Position
from gateway.store.connection import ConnectionOptions, open_server
from gateway.store.publisher import Publisher
from gateway.store.redis import PublishCall, RedisStore, StoreLimits
from tests.running import Valkey

DEFAULT = Namespace("default")
MERGED = Namespace("merged", Reducer.MERGE)
KEYED = Namespace("keyed", Reducer.KEYED)
FAR = "99999999999999-0"
"""A position past every clock."""


@asynccontextmanager
async def open_store(
    url: str,
    *namespaces: Namespace,
    limits: StoreLimits | None = None,
    options: ConnectionOptions | None = None,
) -> AsyncIterator[RedisStore]:
    """Open a store with these namespaces (`default` when none), as one worker does."""
    rules = {rules.name: rules for rules in namespaces or (DEFAULT,)}
    server = open_server(url, options or ConnectionOptions())
    store = RedisStore(server, rules, limits or StoreLimits())
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def open_publisher(url: str, *namespaces: Namespace) -> AsyncIterator[Publisher]:
    """Open the door in, of a worker of its own."""
    async with open_store(url, *namespaces) as store:
        yield Publisher(store, store.namespaces)


def new(channel: str, data: bytes | str = b"1", **more: Any) -> NewEvent:
    """Return a JSON event to publish."""
    body = data if isinstance(data, bytes) else data.encode()
    return NewEvent(channel, body, **{"json": bool(body), **more})


async def publish(
    store: RedisStore, *events: NewEvent, namespace: str = "default", **call: Any
) -> list[Position]:
    """Publish events by one call; return their positions."""
    stored = await store.publish(namespace, PublishCall(events, **call))
    return [one.position for one in stored]


async def read_ring(store: RedisStore, channel: str, namespace: str = "default") -> list[Event]:
    """Return what the store's ring of a channel holds."""
    _, contents, _ = await store.read(namespace, [channel], "ring")
    return contents[0].ring


async def read_state(
    store: RedisStore, channel: str, namespace: str = "default"
) -> dict[bytes, bytes]:
    """Return a channel's state as it is stored."""
    _, contents, _ = await store.read(namespace, [channel], "state")
    return contents[0].state


async def dump(redis: Valkey) -> dict[bytes, tuple[bytes, int]]:
    """Return every key's serialised value and the time when it expires."""
    async with redis.client() as connected:
        client: Any = connected
        return {
            name: (await client.dump(name), await client.pexpiretime(name))
            for name in await client.keys("*")
        }


async def calls(redis: Valkey) -> int:
    """Return how many scripts the server was asked to run."""
    async with redis.client() as client:
        stats = await client.info("commandstats")
        return sum(
            int(stats[name]["calls"])
            for name in ("cmdstat_evalsha", "cmdstat_eval")
            if name in stats
        )


async def set_clock_forward(redis: Valkey, namespace: str, ms: int) -> Position:
    """Move a namespace's clock into the future, as if the server's time had since gone back."""
    async with redis.client() as client:
        now = await client.time()
        clock = Position(now[0] * 1000 + ms, 0)
        await client.hset(f"sg:{{{namespace}}}:meta", "clock", str(clock))
    return clock


def cut_of(life: Life) -> tuple[Position, Position]:
    """Return the ends of a life's newest cut."""
    return life.cuts[-1].recovered, life.cuts[-1].resumed

"""The one door in: checks what is published against its namespace and stores it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import NewEvent
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.position import Position
from gateway.protocol.state import check_foldable
from gateway.store.merge import MergeQueue
from gateway.store.publish_queue import PublishQueue, SinglesQueue
from gateway.store.redis import PublishCall, RedisStore, Stored

_T = TypeVar("_T")


class _Unbroken:
    """Runs what must not be left half done when its caller goes away."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the work's result; a cancelled caller leaves it running to its end."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Seen by the caller, if it is still there.


class Publisher:
    """Publishes for every way in: HTTP, the command line, the demo, sources."""

    def __init__(
        self,
        store: RedisStore,
        namespaces: Mapping[str, Namespace],
        observe_seconds: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._observe_seconds = observe_seconds
        self._store = store
        self._unbroken = _Unbroken()
        self._namespaces = namespaces
        self._queues: dict[str, PublishQueue] = {
            name: (MergeQueue if rules.reducer is Reducer.MERGE else SinglesQueue)(store, name)
            for name, rules in namespaces.items()
        }

    @property
    def events(self) -> int:
        """How many events were stored through this store, replayed ones not counted."""
        return self._store.published

    async def publish(
        self, namespace: str, events: Sequence[NewEvent], if_match: str = ""
    ) -> list[Stored]:
        """Store events of one namespace, all or nothing, and return where each stands.

        `if_match` is a position or `*`. Errors as RedisStore.publish, and InvalidField when the
        namespace's reducer cannot take an event; their `line` counts the events from 1.
        Of a caller that is cancelled all or nothing is stored.
        """
        reducer = self._namespaces[namespace].reducer
        for number, event in enumerate(events, 1):
            try:
                check_foldable(event, reducer)
            except InvalidField as error:
                error.line = number
                raise
        call = PublishCall(events, if_match)
        started = time.perf_counter()
        if reducer is Reducer.MERGE or (len(events) == 1 and not if_match):
            stored = await self._queues[namespace].publish(call)
        else:  # A batch is large enough by itself.
            stored = await self._unbroken.run(self._store.publish(namespace, call))
        self._observe_seconds(time.perf_counter() - started)
        return stored

    async def delete(self, namespace: str, channel: str, if_match: str = "") -> Position:
        """End a channel; as RedisStore.delete."""
        return await self._unbroken.run(self._store.delete(namespace, channel, if_match))

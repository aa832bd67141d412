"""The one door in: checks what is published against its namespace and stores it."""

import time
from collections.abc import Callable, Mapping, Sequence

from gateway.protocol.errors import InvalidField
from gateway.protocol.event import NewEvent
from gateway.protocol.namespace import Namespace, Reducer
from gateway.protocol.position import Position
from gateway.protocol.state import check_foldable
from gateway.store.merge import MergeLane
from gateway.store.redis import PublishCall, RedisStore, Stored


class Publisher:
    """Publishes for every way in: HTTP, the command line, the demo, sources."""

    def __init__(
        self,
        store: RedisStore,
        namespaces: Mapping[str, Namespace],
        observe_seconds: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.events = 0
        self._observe_seconds = observe_seconds
        self._store = store
        self._namespaces = namespaces
        self._lanes = {
            name: MergeLane(store, name)
            for name, rules in namespaces.items()
            if rules.reducer is Reducer.MERGE
        }

    async def publish(
        self, namespace: str, events: Sequence[NewEvent], if_match: str = ""
    ) -> list[Stored]:
        """Store events of one namespace, all or nothing, and return where each stands.

        `if_match` is a position or `*`. Errors as RedisStore.publish, and InvalidField when the
        namespace's reducer cannot take an event; their `line` counts the events from 1.
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
        lane = self._lanes.get(namespace)
        stored = await (lane.publish(call) if lane else self._store.publish(namespace, call))
        self._observe_seconds(time.perf_counter() - started)
        self.events += sum(not one.replayed for one in stored)
        return stored

    async def delete(self, namespace: str, channel: str, if_match: str = "") -> Position:
        """End a channel; as RedisStore.delete."""
        return await self._store.delete(namespace, channel, if_match)

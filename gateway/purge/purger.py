"""Purges a namespace's caches after its events: by one worker, a while later, until it worked."""

import asyncio
import logging
import random
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gateway.protocol.errors import GatewayError
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry
from gateway.purge.breaker import Breaker
from gateway.purge.target import Purge, PurgeFailed, Target
from gateway.store.redis import RedisStore

_log = logging.getLogger(__name__)
_LEASE = "purge"
_TURN_SECONDS = 2.0  # How often a worker without the lease asks for it, while it has something.


class Followed(Protocol):
    """A namespace as this worker has tailed it."""

    @property
    def namespace(self) -> "Named": ...


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str: ...


@dataclass(slots=True)
class PurgeCounters:
    """What all purgers of a worker did: channels purged and given up, and calls that failed."""

    purged: int = 0
    failures: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Pending:
    """The newest position of a channel, and when it came."""

    position: Position
    since: float
    ended: bool


class Purger:
    """One namespace's purger on one worker; a listener of its tail.

    Every worker remembers what changed; whoever holds the lease purges it, the others forget it
    when it is older than a lease can last, for then the holder has done it. A channel is purged
    at once when it was quiet, and at most once in `min_interval_seconds`, the last change always.
    Times are monotonic seconds.
    """

    def __init__(
        self,
        store: RedisStore,
        namespace: str,
        target: Target,
        counters: PurgeCounters,
        *,
        min_interval_seconds: float,
        limit_channels: int = 10_000,
        lease_seconds: float = 10.0,
        observe_seconds: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.breaker = Breaker()
        self._store = store
        self._namespace = namespace
        self._target = target
        self._counters = counters
        self._min_interval_seconds = min_interval_seconds
        self._limit_channels = limit_channels
        self._lease_seconds = lease_seconds
        self._observe_seconds = observe_seconds
        self._token = secrets.token_hex(8)
        self._held_until = 0.0
        # The longest waiting first.
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        # Purged lately, the longest ago first.
        self._done: OrderedDict[str, float] = OrderedDict()
        self._woken = asyncio.Event()

    @property
    def pending(self) -> int:
        """How many channels are to be purged yet."""
        return len(self._pending)

    # -- what the tail brings -----------------------------------------------------------------

    def take(self, mirror: Followed, entries: Sequence[Entry]) -> None:
        """Remember which channels changed."""
        if mirror.namespace.name != self._namespace:
            return
        now = asyncio.get_running_loop().time()
        for entry in entries:
            waiting = self._pending.get(entry.event.channel)
            if waiting is not None:
                waiting.position, waiting.since = entry.id, now
                waiting.ended = waiting.ended or entry.event.deletion
            else:
                new = _Pending(entry.id, now, entry.event.deletion)
                self._pending[entry.event.channel] = new
        while len(self._pending) > self._limit_channels:
            # Its caches keep it for its life, as they would without purges.
            self._pending.popitem(last=False)
            self._counters.dropped += 1
        self._woken.set()

    def restart(self, mirror: Followed, before: Position) -> None:
        """Nothing to do: what changed unseen ends with its life in the caches."""

    def room(self, mirror: Followed) -> asyncio.Future[None] | None:
        """It takes whatever comes."""
        return None

    # -- purging ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Purge until cancelled, then let go of the lease."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                try:
                    pause = await self._turn()
                except GatewayError as error:
                    _log.info("namespace %s: not purged: %s", self._namespace, error)
                    pause = _TURN_SECONDS
                if pause is not None:
                    # Not sooner, however many events come: they go together.
                    await asyncio.sleep(pause)
                    self._woken.set()
        finally:
            with suppress(GatewayError):
                await self._store.hold(self._namespace, _LEASE, self._token, 0)

    async def _turn(self) -> float | None:
        """Purge what is due; return after how many seconds to come back, None without any."""
        loop = asyncio.get_running_loop()
        if not self._pending:
            return None
        # Held through a pause, too: nobody else may think that the holder has done it.
        if not await self._hold(loop.time()):
            self._forget_before(loop.time() - 2 * self._lease_seconds)
            return _TURN_SECONDS
        if loop.time() < self.breaker.ready_at:
            return min(self.breaker.ready_at - loop.time(), self._lease_seconds / 3)
        due, pause = self._due(loop.time())
        if not due:
            return pause
        began = loop.time()
        try:
            await self._target.purge(self._namespace, due)
        except PurgeFailed as error:
            self._counters.failures += 1
            if not self.breaker.failures:
                _log.warning("namespace %s: purge failed: %s", self._namespace, error)
            self.breaker.failed(loop.time(), random.random(), error.retry_after_seconds)
            for one in due:
                # One of them may be to blame: the others have their turn first.
                if one.channel in self._pending:
                    self._pending.move_to_end(one.channel)
            return min(self.breaker.ready_at - loop.time(), self._lease_seconds / 3)
        if self.breaker.failures:
            _log.info("namespace %s: purging again", self._namespace)
        self.breaker.succeeded()
        self._observe_seconds(loop.time() - began)
        self._settle(due, loop.time())
        return 0.0 if self._pending else None

    async def _hold(self, now: float) -> bool:
        if now < self._held_until:
            return True
        seconds = self._lease_seconds
        held = await self._store.hold(self._namespace, _LEASE, self._token, seconds)
        # Asked again well before it ends, so that no two workers think they hold it.
        self._held_until = now + seconds / 2 if held else 0.0
        return held

    def _due(self, now: float) -> tuple[list[Purge], float]:
        """Return the channels to purge now, and after how many seconds the next one is due."""
        limit = 1 if self.breaker.open else self._target.batch_limit
        due, pause = [], self._min_interval_seconds
        for channel, waiting in self._pending.items():
            left = self._done.get(channel, -1e9) + self._min_interval_seconds - now
            if left > 0:
                pause = min(pause, left)
            else:
                due.append(Purge(channel, waiting.position, waiting.ended))
                if len(due) == limit:
                    break
        return due, pause

    def _settle(self, done: Sequence[Purge], now: float) -> None:
        self._counters.purged += len(done)
        for channel, position, _ in done:
            waiting = self._pending.get(channel)
            if waiting is not None and waiting.position == position:
                del self._pending[channel]
            self._done[channel] = now
            self._done.move_to_end(channel)
        while self._done and now - next(iter(self._done.values())) > self._min_interval_seconds:
            self._done.popitem(last=False)

    def _forget_before(self, since: float) -> None:
        for channel in [c for c, waiting in self._pending.items() if waiting.since < since]:
            del self._pending[channel]

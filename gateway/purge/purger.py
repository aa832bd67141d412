"""Purges a namespace's caches after its events: by one worker, a while later, until it worked."""

import asyncio
import logging
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

from gateway.protocol.cache_control import LIFE_MARGIN_SECONDS, life_seconds
from gateway.protocol.errors import GatewayError
from gateway.protocol.life import Life
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.ring import Entry
from gateway.purge.breaker import Breaker
from gateway.purge.target import Purge, PurgeFailed, Target
from gateway.store.redis import RedisStore
from gateway.store.scripts import IndexEntry

_log = logging.getLogger(__name__)


class Followed(Protocol):
    """A namespace as this worker has tailed it; in the index the channel heard of last is last."""

    @property
    def namespace(self) -> Namespace: ...
    @property
    def life(self) -> Life | None: ...
    @property
    def tailed(self) -> Position: ...
    @property
    def index(self) -> dict[str, IndexEntry]: ...


@dataclass(slots=True)
class PurgeCounters:
    """What all purgers of a worker did: channels purged and given up, and calls that failed."""

    purged: int = 0
    failures: int = 0
    dropped: int = 0


class Purger:
    """One namespace's purger of one cache on one worker; a listener of its tail.

    Every worker remembers what changed, whoever holds the lease purges it, and the store notes from
    which position on something is still to be purged: what is before, everybody forgets. A channel
    is purged at once when it was quiet, and at most once in `min_interval_seconds`, the last change
    always. Times are monotonic seconds, but for `now`, which is Unix time.
    """

    def __init__(
        self,
        store: RedisStore,
        namespace: str,
        target: Target,
        counters: PurgeCounters,
        *,
        lease: str = "purge",
        min_interval_seconds: float,
        limit_channels: int = 10_000,
        lease_seconds: float = 10.0,
        observe_seconds: Callable[[float], None] = lambda seconds: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.breaker = Breaker()
        self._store = store
        self._namespace = namespace
        self._target = target
        self._counters = counters
        self._lease = lease
        self._min_interval_seconds = min_interval_seconds
        self._limit_channels = limit_channels
        # Whoever holds it next knows nothing of the intervals: they are over by then.
        self._lease_seconds = max(lease_seconds, min_interval_seconds)
        self._observe_seconds = observe_seconds
        self._now = now
        self._token = secrets.token_hex(8)
        self._held_until = 0.0
        self._tailed = ORIGIN
        # The history that is followed, and its channels.
        self._epoch = ""
        self._index: dict[str, IndexEntry] = {}
        # Everything before it is purged, as the store said last.
        self._due_from = ORIGIN
        # The longest waiting first.
        self._pending: OrderedDict[str, Purge] = OrderedDict()
        # Sent lately, in vain or not, the longest ago first.
        self._sent: OrderedDict[str, float] = OrderedDict()
        self._woken = asyncio.Event()

    @property
    def pending(self) -> int:
        """How many channels are to be purged yet."""
        return len(self._pending)

    # -- what the tail brings -----------------------------------------------------------------

    def take(self, mirror: Followed, entries: Sequence[Entry]) -> None:
        """Remember which channels changed."""
        for entry in entries:
            self._remember(Purge(entry.event.channel, entry.id, entry.event.deletion))
        self._tailed = mirror.tailed

    def restart(self, mirror: Followed, before: Position) -> None:
        """Remember what changed, perhaps unseen, and not so long ago that no cache has it.

        The store knows, once asked, what of it was purged. A channel that was deleted and published
        to again has not `ended`: what is kept of its earlier history has its life. With another
        epoch every channel has ended that was there before.
        """
        self._due_from, self._held_until = ORIGIN, 0.0
        life = life_seconds(mirror.namespace.cache) + LIFE_MARGIN_SECONDS
        since_ms = (self._now() - life) * 1000
        epoch = mirror.life.epoch if mirror.life else ""
        if self._epoch not in ("", epoch):
            self._pending.clear()
            for channel, _ in self._newest(self._index, since_ms):
                self._remember(Purge(channel, mirror.tailed, ended=True))
        for channel, entry in self._newest(mirror.index, since_ms):
            self._remember(Purge(channel, entry.last, entry.deleted))
        self._tailed, self._epoch, self._index = mirror.tailed, epoch, mirror.index

    def _newest(
        self, index: dict[str, IndexEntry], since_ms: float
    ) -> Iterable[tuple[str, IndexEntry]]:
        """Return the channels that a cache may have something of, the newest last."""
        newest = takewhile(lambda item: item[1].last.ms > since_ms, reversed(index.items()))
        return reversed(list(islice(newest, self._limit_channels)))

    def room(self, mirror: Followed) -> asyncio.Future[None] | None:
        """It takes whatever comes."""
        return None

    def _remember(self, change: Purge) -> None:
        if change.position < self._due_from:
            return  # This worker is behind: another has purged it.
        known = self._pending.get(change.channel)
        if known is not None and known.ended:
            change = change._replace(ended=True)
        self._pending[change.channel] = change
        if len(self._pending) > self._limit_channels:
            # Its caches keep it for its life, as they would without purges.
            self._pending.popitem(last=False)
            self._counters.dropped += 1
        self._woken.set()

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
                    pause = self._lease_seconds / 5
                if self._pending:
                    # Not sooner, however many events come: they go together.
                    await asyncio.sleep(pause)
                    self._woken.set()
        finally:
            with suppress(GatewayError):
                await self._hold(0.0)

    async def _turn(self) -> float:
        """Purge what is due; return after how many seconds to come back for the rest."""
        loop = asyncio.get_running_loop()
        # Held through a pause, too, and asked for again well before it ends: a purge takes half of
        # it at most, so that no two workers purge.
        if loop.time() >= self._held_until and not await self._hold(self._lease_seconds):
            return self._lease_seconds / 5
        began = loop.time()
        if began < self.breaker.ready_at:
            return min(self.breaker.ready_at - began, self._lease_seconds / 3)
        due, pause = self._due(began)
        if not due:
            return min(pause, self._lease_seconds / 3)
        try:
            await self._send(due)
        except PurgeFailed as error:
            self._fail(due, error, loop.time())
            return min(self.breaker.ready_at - loop.time(), self._lease_seconds / 3)
        if self.breaker.failures:
            _log.info("namespace %s: purging again", self._namespace)
        self.breaker.succeeded()
        self._observe_seconds(loop.time() - began)
        self._settle(due, loop.time())
        # Noted at once: nobody else needs to do it.
        await self._hold(self._lease_seconds)
        return 0.0

    async def _hold(self, seconds: float) -> bool:
        """Take the lease, keep it or let go of it; tell and learn from where on purges are due."""
        asked = asyncio.get_running_loop().time()
        # Whoever has not held it does not know what others have purged.
        noted = self._first_due() if self._held_until else None
        held, self._due_from = await self._store.hold(
            self._namespace, self._lease, self._token, seconds, noted
        )
        self._held_until = asked + seconds / 3 if held else 0.0
        for one in [one for one in self._pending.values() if one.position < self._due_from]:
            del self._pending[one.channel]
        return held

    def _first_due(self) -> Position:
        if self._pending:
            return min(one.position for one in self._pending.values())
        return max(self._due_from, Position(self._tailed.ms, self._tailed.seq + 1))

    async def _send(self, due: Sequence[Purge]) -> None:
        seconds = self._lease_seconds / 2
        try:
            async with asyncio.timeout(seconds):
                await self._target.purge(self._namespace, due)
        except TimeoutError as error:
            raise PurgeFailed(f"{len(due)} channels were not done in {seconds:g} s") from error

    def _due(self, now: float) -> tuple[list[Purge], float]:
        """Return the channels to purge now, and after how many seconds the next one is due.

        Half as many after each failure: what is too much for the time there is comes through.
        """
        limit = 1 if self.breaker.open else self._target.batch_limit >> self.breaker.failures
        due, pause = [], self._min_interval_seconds
        for channel, one in self._pending.items():
            left = self._sent.get(channel, -1e9) + self._min_interval_seconds - now
            if left > 0:
                pause = min(pause, left)
            else:
                due.append(one)
                if len(due) >= limit:
                    break
        return due, pause

    def _fail(self, due: Sequence[Purge], error: PurgeFailed, now: float) -> None:
        self._counters.failures += 1
        if not self.breaker.failures:
            _log.warning("namespace %s: purge failed: %s", self._namespace, error)
        self.breaker.failed(now, random.random(), error.retry_after_seconds)
        for one in due:
            # One of them may be to blame: the others have their turn first.
            if one.channel in self._pending:
                self._pending.move_to_end(one.channel)
        self._note_sent(due, now)

    def _settle(self, done: Sequence[Purge], now: float) -> None:
        self._counters.purged += len(done)
        for one in done:
            if self._pending.get(one.channel) == one:
                del self._pending[one.channel]
        self._note_sent(done, now)

    def _note_sent(self, purges: Sequence[Purge], now: float) -> None:
        for one in purges:
            self._sent[one.channel] = now
            self._sent.move_to_end(one.channel)
        while self._sent and now - next(iter(self._sent.values())) > self._min_interval_seconds:
            self._sent.popitem(last=False)

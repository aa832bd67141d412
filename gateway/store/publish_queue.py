"""Queues: publishes of one namespace that wait for each other and are stored many at a time."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.protocol.errors import (
    GatewayError,
    MergeContention,
    OutcomeUnknown,
    StoreBusy,
    StoreRefused,
    StoreUnavailable,
)
from gateway.store.redis import PublishCall, RedisStore, Stored

_GROUP_EVENTS = 10_000
_GROUP_BYTES = 8 * 1024 * 1024
_WAITING_CALLS = 10_000
_WAITING_BYTES = 8 * _GROUP_BYTES  # A batch may be as large as a group.
_EVENT_BYTES = 500  # What an event takes beside its data.
_CONCERNS_ALL = (StoreUnavailable, StoreRefused, MergeContention)


@dataclass(slots=True, eq=False)
class Job:
    """One caller's publish, waiting for its turn or its answer."""

    call: PublishCall
    size_bytes: int
    answer: asyncio.Future[list[Stored]]


class PublishQueue(ABC):
    """Publishes of one namespace on this worker.

    Whoever comes while a round is under way waits, and the next round stores all of them
    together: a round takes the same round trips, however many callers there are. Who comes to an
    empty queue does not wait.
    """

    def __init__(self, store: RedisStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        # Ends when nobody waits. A caller that leaves must not interrupt what it shares.
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait for a round to begin."""
        return len(self._waiting)

    async def publish(self, call: PublishCall) -> list[Stored]:
        """Store one call's events; as RedisStore.publish.

        Raises StoreBusy, too, when too much waits already, and MergeContention when other workers
        win.
        """
        size_bytes = sum(len(event.data) + _EVENT_BYTES for event in call.events)
        full = self._waiting_bytes + size_bytes > _WAITING_BYTES
        if len(self._waiting) >= _WAITING_CALLS or (self._waiting and full):
            raise StoreBusy(
                f"namespace {self._namespace}: {len(self._waiting)} publishes of "
                f"{self._waiting_bytes} bytes are waiting already"
            )
        job = Job(call, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._waiting_bytes += size_bytes
        if self._work is None:
            self._work = asyncio.create_task(self._rounds())
        return await job.answer

    @abstractmethod
    async def _store_jobs(self, jobs: list[Job]) -> None:
        """Store the jobs' events and answer each; a refusal of any stores nothing."""

    async def _rounds(self) -> None:
        try:
            while self._waiting:
                await self._round(self._next_jobs())
        finally:
            self._work = None
            self._fail(self._waiting, OutcomeUnknown("the publish was interrupted"))
            self._waiting.clear()
            self._waiting_bytes = 0

    async def _round(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.answer.done()]  # Callers may have left.
        if not jobs:
            return
        try:
            await self._store_jobs(jobs)
        except GatewayError as error:
            if len(jobs) == 1 or isinstance(error, _CONCERNS_ALL):
                self._fail(jobs, error)
                return
            # One of them was refused, and nothing is stored. It need not be one that still waits,
            # so that only a call of one may pass its error on.
            middle = len(jobs) // 2
            await self._round(jobs[:middle])
            await self._round(jobs[middle:])
        except BaseException:
            self._fail(jobs, OutcomeUnknown("the publish was interrupted"))
            raise

    @staticmethod
    def _fail(jobs: Iterable[Job], error: GatewayError) -> None:
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(error)

    def _next_jobs(self) -> list[Job]:
        """Take waiting jobs that can be stored by one call."""
        jobs: list[Job] = []
        tokens: set[str] = set()
        channels: set[str] = set()
        publishers: set[str] = set()
        events = size = 0
        while self._waiting:
            call, size_bytes = self._waiting[0].call, self._waiting[0].size_bytes
            mine = {event.idempotency_key for event in call.events if event.idempotency_key}
            named = {event.channel for event in call.events}
            # A repeated token, or If-Match on a channel that the round changes, must see the
            # outcome of what came before it.
            waits = bool(mine & tokens) or bool(call.if_match and named & channels)
            other = bool(publishers) and call.publisher not in publishers
            full = events + len(call.events) > _GROUP_EVENTS or size + size_bytes > _GROUP_BYTES
            if jobs and (waits or other or full):
                break
            jobs.append(self._waiting.popleft())
            self._waiting_bytes -= jobs[-1].size_bytes
            tokens |= mine
            channels |= named
            publishers.add(call.publisher)
            events += len(call.events)
            size += size_bytes
        return jobs


class SinglesQueue(PublishQueue):
    """A queue of calls without If-Match, whose events need no folding here."""

    async def _store_jobs(self, jobs: list[Job]) -> None:
        events = [event for job in jobs for event in job.call.events]
        call = PublishCall(events, publisher=jobs[0].call.publisher)
        stored = await self._store.publish(self._namespace, call)
        start = 0
        for job in jobs:
            end = start + len(job.call.events)
            if not job.answer.done():
                job.answer.set_result(stored[start:end])
            start = end

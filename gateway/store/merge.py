"""Merged states: fold publishes in Python, store them by compare-and-set, many at a time."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gateway.protocol.errors import (
    GatewayError,
    IdempotencyConflict,
    InvalidField,
    LimitExceeded,
    MergeContention,
    OutcomeUnknown,
    PositionMismatch,
    StoreRefused,
    StoreUnavailable,
)
from gateway.protocol.event import NewEvent
from gateway.protocol.json_value import dump_json, parse_json
from gateway.protocol.position import Position
from gateway.protocol.state import merge_patch
from gateway.store.redis import PublishCall, RedisStore, StateMoved, Stored
from gateway.store.scripts import ChannelContents, digest_event, last_of, parse_position

_ATTEMPTS = 100  # Every failed one means that another worker's publish succeeded meanwhile.
_GROUP_EVENTS = 10_000
_GROUP_BYTES = 8 * 1024 * 1024
_WAITING_CALLS = 10_000
_WAITING_BYTES = 8 * _GROUP_BYTES  # A batch may be as large as a group.
_EVENT_BYTES = 500  # What an event takes beside its data.
_CONCERNS_ALL = (StoreUnavailable, StoreRefused, MergeContention)


@dataclass(slots=True, eq=False)
class _Job:
    """One caller's publish, waiting for its turn or its answer."""

    call: PublishCall
    size_bytes: int
    answer: asyncio.Future[list[Stored]]


@dataclass(slots=True)
class _Group:
    """What one round has folded so far: documents, and the events they hold.

    `lines` tells for each event which of its caller's it is, counted from 1; `touched` the
    number of each channel's last event, counted from 1.
    """

    bases: dict[str, Position]
    exists: dict[str, bool]
    documents: dict[str, object]
    known: dict[str, bytes]
    events: list[NewEvent] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    touched: dict[str, int] = field(default_factory=dict)


class MergeLane:
    """Publishes of one merged namespace on this worker.

    Whoever comes while a round is under way waits, and the next round stores all of them with
    one call: the lane needs two round trips a round, however many callers there are.
    """

    def __init__(self, store: RedisStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._limit_bytes = store.namespaces[namespace].state_limit_bytes
        self._waiting: deque[_Job] = deque()
        self._waiting_bytes = 0
        # Ends when nobody waits. A caller that leaves must not interrupt what it shares.
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait for a round to begin."""
        return len(self._waiting)

    async def publish(self, call: PublishCall) -> list[Stored]:
        """Store one call's events; as RedisStore.publish.

        Raises MergeContention, too, when other workers win or too much waits already.
        """
        size_bytes = sum(len(event.data) + _EVENT_BYTES for event in call.events)
        full = self._waiting_bytes + size_bytes > _WAITING_BYTES
        if len(self._waiting) >= _WAITING_CALLS or (self._waiting and full):
            raise MergeContention(
                f"namespace {self._namespace}: {len(self._waiting)} publishes of "
                f"{self._waiting_bytes} bytes are waiting already"
            )
        job = _Job(call, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._waiting_bytes += size_bytes
        if self._work is None:
            self._work = asyncio.create_task(self._rounds())
        return await job.answer

    async def _rounds(self) -> None:
        try:
            while self._waiting:
                await self._round(self._next_jobs())
        finally:
            self._work = None
            self._fail(self._waiting, OutcomeUnknown("the publish was interrupted"))
            self._waiting.clear()
            self._waiting_bytes = 0

    async def _round(self, jobs: list[_Job]) -> None:
        try:
            for _ in range(_ATTEMPTS):
                jobs = [job for job in jobs if not job.answer.done()]
                try:
                    await self._store_jobs(jobs)
                    return
                except StateMoved:
                    continue
            raise MergeContention(f"namespace {self._namespace}: other workers kept changing it")
        except GatewayError as error:
            left = [job for job in jobs if not job.answer.done()]
            if len(left) < 2 or isinstance(error, _CONCERNS_ALL):
                self._fail(left, error)
                return
            # One of them was refused, and nothing is stored: each for itself.
            for job in left:
                await self._round([job])
        except BaseException:
            self._fail(jobs, OutcomeUnknown("the publish was interrupted"))
            raise

    @staticmethod
    def _fail(jobs: Iterable[_Job], error: GatewayError) -> None:
        for job in jobs:
            if not job.answer.done():
                job.answer.set_exception(error)

    def _next_jobs(self) -> list[_Job]:
        """Take waiting jobs that can be stored by one call."""
        jobs: list[_Job] = []
        tokens: set[str] = set()
        channels: set[str] = set()
        publishers: set[str] = set()
        events = size = 0
        while self._waiting:
            call = self._waiting[0].call
            bytes_of_call = sum(len(event.data) for event in call.events)
            mine = {event.idempotency_key for event in call.events if event.idempotency_key}
            named = {event.channel for event in call.events}
            # A repeated token, or If-Match on a channel that the round changes, must see the
            # outcome of what came before it.
            waits = bool(mine & tokens) or bool(call.if_match and named & channels)
            other = bool(publishers) and call.publisher not in publishers
            full = events + len(call.events) > _GROUP_EVENTS or size + bytes_of_call > _GROUP_BYTES
            if jobs and (waits or other or full):
                break
            jobs.append(self._waiting.popleft())
            self._waiting_bytes -= jobs[-1].size_bytes
            tokens |= mine
            channels |= named
            publishers.add(call.publisher)
            events += len(call.events)
            size += bytes_of_call
        return jobs

    async def _store_jobs(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        events = [event for job in jobs for event in job.call.events]
        channels = list({event.channel: None for event in events})
        tokens = list({e.idempotency_key: None for e in events if e.idempotency_key})
        publisher = jobs[0].call.publisher
        _, contents, values = await self._store.read(
            self._namespace, channels, "state", tokens, publisher
        )
        group = _open_group(channels, contents, tokens, values)
        answers: list[tuple[_Job, list[Stored | int]]] = []
        for job in jobs:
            try:
                answers.append((job, self._fold(job, group)))
            except GatewayError as error:
                self._fail([job], error)
        positions = await self._store_group(group, publisher) if group.events else []
        for job, answer in answers:
            if not job.answer.done():  # Its caller may have left.
                stored = [positions[at] if isinstance(at, int) else at for at in answer]
                job.answer.set_result(stored)

    async def _store_group(self, group: _Group, publisher: str) -> list[Stored]:
        """Store what was folded; an error's line is that of the caller, where there is one."""
        states = {}
        try:
            for channel, last in group.touched.items():
                document = dump_json(group.documents[channel], sort_keys=True)
                if len(document) > self._limit_bytes:
                    rule = (
                        f"a channel's state is at most {self._limit_bytes} bytes, "
                        f"this would make it {len(document)}"
                    )
                    raise LimitExceeded("data", channel, rule, line=last)
                states[channel] = (group.bases[channel], document)
            call = PublishCall(group.events, publisher=publisher, states=states)
            return await self._store.publish(self._namespace, call)
        except InvalidField as error:
            if error.line is not None:
                error.line = group.lines[error.line - 1]
            raise

    def _fold(self, job: _Job, group: _Group) -> list[Stored | int]:
        """Fold a job into the group, or raise before anything of it is folded.

        Returns, per event, where it stood before or its number among the group's events.
        """
        fresh: list[tuple[int, NewEvent, object]] = []
        answer: list[Stored | int] = []
        own: dict[str, tuple[str, int]] = {}
        for line, event in enumerate(job.call.events, 1):
            number = len(group.events) + len(fresh)
            token = event.idempotency_key
            if token:
                digest = digest_event(event)
                earlier = _earlier(token, group, own)
                if earlier is not None:
                    if earlier[0] != digest:
                        raise IdempotencyConflict(token, line=line)
                    answer.append(earlier[1])
                    continue
                own[token] = (digest, number)
            if job.call.if_match:
                _check_match(job.call.if_match, event.channel, group)
            fresh.append((line, event, parse_json(event.data)))
            answer.append(number)
        for line, event, patch in fresh:
            channel = event.channel
            group.documents[channel] = merge_patch(group.documents[channel], patch)
            group.events.append(event)
            group.lines.append(line)
            group.touched[channel] = len(group.events)
        return answer


def _earlier(
    token: str, group: _Group, own: dict[str, tuple[str, int]]
) -> tuple[str, Stored | int] | None:
    if token in own:
        return own[token]
    if token in group.known:
        digest, _, position = group.known[token].partition(b" ")
        return digest.decode(), Stored(parse_position(position), replayed=True)
    return None


def _check_match(if_match: str, channel: str, group: _Group) -> None:
    base = group.bases[channel]
    if not group.exists[channel]:
        raise PositionMismatch(channel, if_match, None)
    if if_match not in ("*", str(base)):
        raise PositionMismatch(channel, if_match, base)


def _open_group(
    channels: Sequence[str],
    contents: Sequence[ChannelContents],
    tokens: Sequence[str],
    values: Sequence[bytes | None],
) -> _Group:
    read = dict(zip(channels, contents, strict=True))
    return _Group(
        bases={channel: last_of(content) for channel, content in read.items()},
        exists={
            channel: content.index is not None and not content.index.deleted
            for channel, content in read.items()
        },
        documents={
            channel: _parse_document(channel, content.state.get(b"v"))
            for channel, content in read.items()
        },
        known={token: value for token, value in zip(tokens, values, strict=True) if value},
    )


def _parse_document(channel: str, stored: bytes | None) -> object:
    if stored is None:
        return {}
    try:
        return parse_json(stored[1:])
    except InvalidField as error:
        raise StoreRefused(
            f"the merged state of {channel} is not what was stored: {error}"
        ) from error

"""Merged states: fold publishes in Python, store them by compare-and-set, a queue's at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.protocol.errors import (
    GatewayError,
    IdempotencyConflict,
    InvalidField,
    LimitExceeded,
    MergeContention,
    PositionMismatch,
    StoreRefused,
)
from gateway.protocol.event import NewEvent
from gateway.protocol.json_value import dump_json, parse_json
from gateway.protocol.position import Position
from gateway.protocol.state import merge_patch
from gateway.store.publish_queue import Job, PublishQueue
from gateway.store.redis import PublishCall, RedisStore, StateMoved, Stored
from gateway.store.scripts import ChannelContents, digest_event, last_of, parse_position

_ATTEMPTS = 100  # Every failed one means that another worker's publish succeeded meanwhile.


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


class MergeQueue(PublishQueue):
    """A queue of a merged namespace: a round reads the states, folds, and stores what came of it.

    It needs two round trips.
    """

    def __init__(self, store: RedisStore, namespace: str) -> None:
        super().__init__(store, namespace)
        self._limit_bytes = store.namespaces[namespace].state_limit_bytes

    async def _store_jobs(self, jobs: list[Job]) -> None:
        for _ in range(_ATTEMPTS):
            jobs = [job for job in jobs if not job.answer.done()]
            try:
                if jobs:
                    await self._try(jobs)
                return
            except StateMoved:
                continue
        raise MergeContention(f"namespace {self._namespace}: other workers kept changing it")

    async def _try(self, jobs: list[Job]) -> None:
        events = [event for job in jobs for event in job.call.events]
        channels = list({event.channel: None for event in events})
        tokens = list({e.idempotency_key: None for e in events if e.idempotency_key})
        publisher = jobs[0].call.publisher
        _, contents, values = await self._store.read(
            self._namespace, channels, "state", tokens, publisher
        )
        group = _open_group(channels, contents, tokens, values)
        answers: list[tuple[Job, list[Stored | int]]] = []
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

    def _fold(self, job: Job, group: _Group) -> list[Stored | int]:
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

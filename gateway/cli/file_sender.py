"""Publishing a file's events through the HTTP interface: in batches, or at a steady rate."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from operator import attrgetter

from gateway.cli.client import GatewayClient, Refused
from gateway.cli.event_file import InvalidFile, Line
from gateway.protocol.errors import GatewayError

# Far below the gateway's limits, so that a batch holds up nobody else for long; larger ones
# gain little: the store takes 99,000 events a second at 100 a call, 120,000 at 1,000.
BATCH_LIMIT_EVENTS = 500
BATCH_LIMIT_BYTES = 1024 * 1024

Progress = Callable[[int, int], None]
"""Told of each stored batch: its events, and the byte of the file where it ends."""


class PublishingStopped(GatewayError):
    """A line was not stored, nor any after it; `stored` events before it were."""

    def __init__(self, line: int, stored: int, cause: GatewayError) -> None:
        super().__init__(f"stopped at line {line} after {stored} stored events: {cause}")
        self.line = line
        self.stored = stored
        self.cause = cause


class FileSender:
    """Sends lines in order and counts what is stored.

    `stored` events in all, `replayed` of them by an earlier call with the same idempotency keys;
    `last_id` is the position of the last.
    """

    def __init__(self, client: GatewayClient, progress: Progress = lambda events, at: None) -> None:
        self._client = client
        self._progress = progress
        self.stored = 0
        self.replayed = 0
        self.last_id: str | None = None

    async def send(self, lines: Iterable[Line]) -> None:
        """Send everything in batches, as fast as the gateway takes them.

        Raises PublishingStopped; what it says is stored stays stored.
        """
        for batch in batches(self._readable(lines)):
            await self._send_batch(batch)

    async def send_at(self, lines: Iterable[Line], rate: float) -> None:
        """Send `rate` events per second. Raises PublishingStopped."""
        started, taken = time.monotonic(), 0
        source = self._readable(lines)
        while True:
            # Those whose time has come go together: one by one at low rates.
            due = int((time.monotonic() - started) * rate) + 1 - taken
            batch = list(islice(source, max(0, min(due, BATCH_LIMIT_EVENTS))))
            if due > 0 and not batch:
                return
            for part in batches(batch):
                await self._send_batch(part)
            taken += len(batch)
            await asyncio.sleep(max(0.0, started + taken / rate - time.monotonic()))

    def _readable(self, lines: Iterable[Line]) -> Iterator[Line]:
        try:
            yield from lines
        except InvalidFile as error:
            if error.line is None or not self.stored:
                raise
            raise PublishingStopped(error.line, self.stored, error) from None

    async def _send_batch(self, batch: list[Line]) -> None:
        try:
            await self._store(batch)
        except Refused as error:
            runs = [list(run) for _, run in groupby(batch, attrgetter("group"))]
            if len(runs) == 1:
                raise self._stopped(batch, error) from None
            # A batch belongs to one namespace, and which channels share one only the gateway
            # knows. It stores all or nothing, so nothing is stored yet.
            for run in runs:
                try:
                    await self._store(run)
                except GatewayError as failed:
                    raise self._stopped(run, failed) from None
        except GatewayError as error:
            raise self._stopped(batch, error) from None

    async def _store(self, batch: list[Line]) -> None:
        answer = await self._client.publish_batch([line.body for line in batch])
        self.stored += len(batch)
        self.replayed += answer.get("replayed", 0)
        ids = answer.get("ids") or [None]
        self.last_id = ids[-1]
        self._progress(len(batch), batch[-1].end_bytes)

    def _stopped(self, batch: list[Line], error: GatewayError) -> PublishingStopped:
        number = batch[0].number
        if isinstance(error, Refused) and error.problem.errors:
            index = error.problem.errors[0].get("line")
            if isinstance(index, int) and 1 <= index <= len(batch):
                number = batch[index - 1].number
        return PublishingStopped(number, self.stored, error)


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Yield the lines in batches of at most BATCH_LIMIT_EVENTS and about BATCH_LIMIT_BYTES."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        if batch and (
            len(batch) == BATCH_LIMIT_EVENTS or size + len(line.body) > BATCH_LIMIT_BYTES
        ):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.body) + 1
    if batch:
        yield batch

"""One slice's bytes in a coding that somebody asks for late, when there is much of it."""

import asyncio
import gzip
import threading
from typing import Any

import pytest

from gateway.hub import slice as module
from gateway.hub.slice import Log, Slice
from gateway.protocol.coding import IDENTITY
from gateway.protocol.event import Event
from gateway.protocol.namespace import Namespace
from gateway.protocol.position import Position
from gateway.protocol.ring import Entry

LARGE = b"x" * 1000


def entries(first: int, count: int) -> list[Entry]:
    """Return events of the slice that begins at second 30."""
    times = range(30_000 + first, 30_000 + first + count)
    return [Entry(Event(Position(ms, 1), Position(0, 0), "a", LARGE)) for ms in times]


async def whole(slice: Slice) -> bytes:
    return (await slice.log(IDENTITY)).rest(0)[0]


async def test_what_comes_while_a_late_coding_is_made_is_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slice = Slice(Namespace("default"), "a", 1, 500)
    slice.append(entries(0, 100))
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Log):
        """A log that takes its time, in a thread of its own."""

        def __init__(self, coding: str, data: bytes) -> None:
            begun.set()
            assert go_on.wait(20)
            super().__init__(coding, data)

    monkeypatch.setattr(module, "Log", Slow)
    asked = [asyncio.create_task(slice.log("gzip")) for _ in range(2)]
    # The loop goes on meanwhile.
    await asyncio.to_thread(begun.wait)
    slice.append(entries(100, 100))
    slice.finish()
    go_on.set()
    log, same = await asyncio.gather(*asked)
    assert log is same
    assert log.ended
    assert gzip.decompress(log.rest(0)[0]) == await whole(slice)


async def test_a_coding_that_could_not_be_made_is_made_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slice = Slice(Namespace("default"), "a", 1, 500)
    slice.append(entries(0, 100))

    async def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as failing:
        failing.setattr(asyncio, "to_thread", fail)
        with pytest.raises(RuntimeError, match="thread"):
            await slice.log("gzip")
    slice.finish()
    log = await slice.log("gzip")
    assert gzip.decompress(log.rest(0)[0]) == await whole(slice)

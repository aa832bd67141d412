"""Pages of history that are kept: no more memory than they are counted for."""

import tracemalloc

from gateway.protocol.event import Event
from gateway.protocol.position import Position
from gateway.snapshot.pages import Page, Pages


def test_many_small_pages_take_no_more_memory_than_the_limit() -> None:
    limit_bytes = 1_000_000
    pages, channel = Pages(limit_bytes), "a"
    tracemalloc.start()
    try:
        for number in range(5000):
            event = Event(Position(number + 1, 0), Position(number, 0), channel, b'{"n":1}')
            pages.get(channel, "epoch", Page([event], event.id, gap=False, cursor=number))
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * limit_bytes < taken_bytes < 1.5 * limit_bytes

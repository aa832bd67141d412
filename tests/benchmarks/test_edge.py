"""The readers of the edge's benchmark see what is missing, and its tables name it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.edge_bytes import bytes_on_the_wire
from benchmarks.edge_readers import Crowd, PollReader, StreamReader, wait_for
from benchmarks.edge_rig import Plan
from benchmarks.edge_tables import Found, medians, percentile, render
from tests.tcp import serving

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(number: int) -> bytes:
    return b'id: 5-%d\ndata: {"n":%d,"t":1}\n\n' % (number + 1, number)


def chunks(*texts: bytes, whole: bool = True) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(text), text) for text in texts)
    return framed + (b"0\r\n\r\n" if whole else b"")


@asynccontextmanager
async def answering(*answers: bytes, step: int = 7) -> AsyncIterator[str]:
    """Answer one request after the other, a few bytes at a time; then say nothing more."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                data = left.pop(0) if left else b""
                for at in range(0, len(data), step):
                    writer.write(data[at : at + step])
                    await writer.drain()
                    await asyncio.sleep(0)
                if b"chunked" in data and not data.endswith(b"0\r\n\r\n"):
                    return
        except asyncio.IncompleteReadError:
            pass

    async with serving(answer) as port:
        yield f"http://127.0.0.1:{port}"


async def read(done: Callable[[StreamReader], bool], *answers: bytes) -> StreamReader:
    async with answering(*answers) as address:
        crowd = Crowd(StreamReader, address, "/slices/current/a", 1)
        await crowd.open()
        [reader] = crowd.readers
        assert isinstance(reader, StreamReader)
        await wait_for(lambda: done(reader), 20)
        await crowd.close()
        return reader


async def test_events_come_out_of_chunks_that_end_anywhere_over_several_answers() -> None:
    end = b'id: 5000-0\nevent: end\ndata: {"next":2}\n\n'
    first = HEAD + chunks(b"retry: 500\n\n", event(0)[:9], event(0)[9:] + event(1), end)
    reader = await read(lambda one: one.expected == 3, first, HEAD + chunks(event(2)))

    assert reader.crowd.arrivals.problems() == []
    assert len(reader.crowd.arrivals.ms) == 3
    assert reader.had == [(5000, 2)]


async def test_what_is_missing_doubled_or_cut_off_is_counted() -> None:
    events = [event(0), event(0), event(3), b"event: gap\ndata: {}\n\n"]
    body = HEAD + chunks(*events, whole=False)
    reader = await read(lambda one: one.crowd.arrivals.lost == 1, body)

    assert reader.crowd.arrivals.problems() == [
        "2 missing", "1 doubled or out of order", "1 gaps", "1 answers lost",
    ]  # fmt: skip


async def test_a_long_poll_goes_on_by_next_and_cursor() -> None:
    page = b'{"events":[{"id":"5-1","data":{"n":0,"t":1}}],"next":"5-1","gap":false,"cursor":"77"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)
    async with answering(answer) as address:
        crowd = Crowd(PollReader, address, "/history/a", 1, after="4-0")
        [reader] = crowd.readers
        assert reader.path() == "/history/a?after=4-0&limit=100&wait=25"
        await crowd.open()
        assert await crowd.until(1) == []
        assert reader.path() == "/history/a?after=5-1&limit=100&wait=25&cursor=77"
        assert await crowd.until(2, 0.1) == ["1 never came"]
        await crowd.close()


async def test_a_part_runs_and_is_complete() -> None:
    # It gives each of its processes a core, and this one with them.
    cores = os.sched_getaffinity(0)
    try:
        found = await bytes_on_the_wire(Plan(quick=True, core=min(cores), load_core=max(cores)))
    finally:
        os.sched_setaffinity(0, cores)
    assert found.problems == []
    assert len(found.rows) == 2
    for _, plain, gzip, zstd, *_ in found.rows:
        assert 0 < float(gzip) < float(plain)
        assert 0 < float(zstd) < float(plain)


def test_a_table_is_markdown_and_names_what_was_not_complete() -> None:
    found = Found("reads", ("", "reads/s"), [("origin", 1234), ("hit", 0.987)], ["Why."], ["1 gap"])

    assert render(found) == (
        "### reads\n\n|  | reads/s |\n| --- | ---: |\n| origin | 1,234 |\n| hit | 0.99 |"
        "\n\nWhy.\n\nNOT COMPLETE: 1 gap"
    )


def test_several_runs_are_one_table_of_medians() -> None:
    runs = [
        Found("reads", ("", "a", "b"), [("hit", 1, value)], problems=problems)
        for value, problems in ((3.0, []), (9.0, ["1 gap"]), (5.0, []))
    ]
    one = medians(runs)
    assert one.rows == [["hit", 1, 5.0]]
    assert one.notes == ["Medians of 3 runs."]
    assert one.problems == ["run 2: 1 gap"]
    assert medians(runs[:1]) is runs[0]


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(list(map(float, range(100))), 0.99) == 99.0
    assert percentile([], 0.5) == 0.0

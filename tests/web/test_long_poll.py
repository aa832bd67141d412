"""`GET /history/{channel}?wait=`: what wakes a reader, what it is told, what it leaves behind."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import aiohttp
import pytest
from yarl import URL

from gateway.protocol.cache_control import NO_STALE_LIFE
from gateway.protocol.cursor import EPOCH_MS, INTERVAL_MS
from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import Answer, Client
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy

SHORT = f"public, max-age=2, {NO_STALE_LIFE}"


async def waiting(client: Client, *polls: Awaitable[Answer]) -> list[asyncio.Task[Answer]]:
    """Return the requests under way, once all of them wait."""
    arrivals = client.gateway.arrivals
    before = arrivals.waiting
    tasks = [asyncio.ensure_future(poll) for poll in polls]
    await until(lambda: arrivals.waiting == before + len(tasks))
    return tasks


def data_of(answer: Answer) -> list[object]:
    return [entry["data"] for entry in answer.json["events"]]


async def test_a_wait_ends_with_the_next_event(client: Client) -> None:
    first = await client.publish("a", b"1")
    await client.settle()
    [poll] = await waiting(client, client.get(f"/history/a?after={first}&wait=25"))
    second = await client.publish("a", b"2")
    answer = await poll
    assert answer.json == {
        "events": [{"id": second, "channel": "a", "data": "2"}],
        "next": second,
        "gap": False,
        "cursor": str(Position.parse(second).ms - EPOCH_MS),
    }
    assert answer.headers["Cache-Control"] == SHORT
    assert answer.headers["CDN-Cache-Control"] == SHORT.removeprefix("public, ")
    assert answer.headers["Surrogate-Key"] == "ns.default ch.a"
    assert answer.headers["Vary"] == "Accept-Encoding"


async def test_what_is_there_is_not_waited_for(client: Client) -> None:
    ids = await client.publish_lines([{"channel": "a", "data": n} for n in range(4)])
    await client.settle()
    answer = await client.get(f"/history/a?after={ids[0]}&wait=25")
    assert data_of(answer) == [1, 2, 3]
    full = await client.get(f"/history/a?after={ids[0]}&limit=2&wait=25")
    assert (data_of(full), full.json["next"]) == ([1, 2], ids[2])
    # A full page stays what it is, waited for or not.
    assert full.headers["Cache-Control"] not in (SHORT, f"public, max-age=1, {NO_STALE_LIFE}")


async def test_an_empty_answer_names_the_position_that_it_was_asked_for(client: Client) -> None:
    first = await client.publish("a", b"1")
    other = await client.publish("other", b"1")
    await client.settle()
    assert other > first
    answer = await client.get(f"/history/a?after={first}&wait=1")
    # Not a later one, though the namespace has moved on: no event of this channel says so.
    assert (answer.json["events"], answer.json["next"]) == ([], first)
    assert (answer.json["gap"], answer.headers["Cache-Control"]) == (False, SHORT)
    began = int(answer.json["cursor"])
    assert began % INTERVAL_MS == 0
    assert 0 <= time.time() * 1000 - EPOCH_MS - began < INTERVAL_MS + 10_000


async def test_each_answer_has_a_later_cursor_than_its_request(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    cursor, cursors = "", []
    for _ in range(2):
        answer = await client.get(f"/history/a?after={position}&wait=1{cursor}")
        cursors.append(int(answer.json["cursor"]))
        cursor = f"&cursor={cursors[-1]}"
    [poll] = await waiting(client, client.get(f"/history/a?after={position}&wait=25{cursor}"))
    await client.publish("a", b"2")
    cursors.append(int((await poll).json["cursor"]))
    future = await client.get(f"/history/a?after={position}&wait=1&cursor={10**14}")
    cursors += [10**14, int(future.json["cursor"])]
    assert cursors == sorted(set(cursors))


async def test_only_those_who_wait_for_the_channel_are_woken(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    query = f"?after={position}&wait=20"
    for_a = await waiting(client, *(client.get(f"/history/a{query}") for _ in range(20)))
    [for_b] = await waiting(client, client.get(f"/history/b{query}"))
    # However many wait, one future does for all of a channel.
    assert len(client.gateway.arrivals._arrivals) == 2
    await client.publish("a", b"2")
    answers = await asyncio.gather(*for_a)
    assert {answer.body for answer in answers} == {answers[0].body}
    assert client.gateway.arrivals.waiting == 1
    assert not for_b.done()
    await client.publish("b", b"3")
    assert data_of(await for_b) == ["3"]
    assert client.gateway.arrivals._arrivals == {}


async def test_a_page_is_rendered_and_compressed_once_however_many_wait(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    pages = client.gateway.handlers.history._pages
    rendered, compressed = pages.renders, pages.variants
    path, gzip = f"/history/a?after={position}&wait=20", {"Accept-Encoding": "gzip"}
    polls = await waiting(client, *(client.get(path, gzip) for _ in range(20)))
    await client.publish("a", b"2" * 500)
    answers = await asyncio.gather(*polls)
    assert {answer.headers["Content-Encoding"] for answer in answers} == {"gzip"}
    assert (pages.renders - rendered, pages.variants - compressed) == (1, 1)


async def test_a_channel_that_is_not_there_yet_can_be_waited_for(client: Client) -> None:
    await client.publish("other", b"1")
    await client.settle()
    unknown = await client.get("/history/new")
    assert unknown.status == 404
    after = unknown.problem["id"]
    empty = await client.get(f"/history/new?after={after}&wait=1")
    assert (empty.status, empty.json["events"], empty.json["next"]) == (200, [], after)
    [poll] = await waiting(client, client.get(f"/history/new?after={after}&wait=25"))
    await client.publish("new", b"first")
    assert (data_of(await poll), poll.result().json["gap"]) == (["first"], False)
    lost = await client.get("/history/nobody?after=1-0&wait=25")
    assert (lost.status, lost.json["gap"]) == (200, True)
    assert lost.json["next"] >= after


async def test_a_deletion_wakes_and_is_a_gap(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    [poll] = await waiting(client, client.get(f"/history/a?after={position}&wait=25"))
    deleted = await client.ask("DELETE", "/channels/a")
    answer = await poll
    assert (answer.json["events"], answer.json["gap"]) == ([], True)
    assert answer.json["next"] == deleted.json["id"]
    # From there the channel's second life is followed without a gap.
    [poll] = await waiting(client, client.get(f"/history/a?after={deleted.json['id']}&wait=25"))
    await client.publish("a", b"2")
    assert (data_of(await poll), poll.result().json["gap"]) == (["2"], False)


async def test_another_epoch_wakes_and_is_a_gap(client: Client, redis: Valkey) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    [poll] = await waiting(client, client.get(f"/history/a?after={position}&wait=25"))
    async with redis.client() as store:
        await store.flushall()
    answer = await poll
    assert (answer.json["events"], answer.json["gap"]) == ([], True)
    await client.settle()
    # The position to go on from is one of the new epoch: no loop of gaps.
    path = f"/history/a?after={answer.json['next']}&wait=25"
    [poll] = await waiting(client, client.get(path))
    await client.publish("a", b"2")
    assert (data_of(await poll), poll.result().json["gap"]) == (["2"], False)


async def test_a_reader_that_leaves_leaves_nothing_behind(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    arrivals, path = client.gateway.arrivals, f"/history/a?after={position}&wait=25"
    polls = await waiting(client, *(client.get(path) for _ in range(3)))
    for poll in polls[:2]:
        poll.cancel()
    await until(lambda: arrivals.waiting == 1)
    await client.publish("a", b"2")
    assert data_of(await polls[2]) == ["2"]
    last = await client.get(path)
    [poll] = await waiting(client, client.get(f"/history/a?after={last.json['next']}&wait=25"))
    poll.cancel()
    await until(lambda: arrivals.waiting == 0)
    assert arrivals._arrivals == {}


async def test_a_gateway_that_stops_answers_at_once(client: Client) -> None:
    position = await client.publish("a", b"1")
    await client.settle()
    path = f"/history/a?after={position}&wait=25"
    polls = await waiting(client, *(client.get(path) for _ in range(5)))
    client.gateway.drain()
    answers = [*await asyncio.gather(*polls), await client.get(path)]
    for answer in answers:
        assert (answer.status, answer.json["events"]) == (200, [])
        assert answer.json["next"] == position
        assert answer.headers["Cache-Control"] == "no-store"
        assert "CDN-Cache-Control" not in answer.headers


async def test_nobody_comes_back_to_a_worker_that_stops_over_a_kept_connection(
    client: Client,
) -> None:
    position = await client.publish("a", b"1")
    async with aiohttp.ClientSession() as session:
        for path in ("/history/a", f"/history/a?after={position}&wait=1", "/snapshots/a"):
            async with session.get(client.url(path)) as answer:
                assert "Connection" not in answer.headers
        client.gateway.drain()
        for path in ("/history/a", f"/history/a?after={position}&wait=25", "/snapshots/a"):
            async with session.get(client.url(path)) as answer:
                assert answer.headers["Connection"] == "close"


async def test_no_more_wait_than_streams_may_be_open(start: Start) -> None:
    client = await start({"streams": {"subscribers_limit": 3}})
    position = await client.publish("a", b"1")
    await client.settle()
    path = f"/history/a?after={position}&wait=25"
    polls = await waiting(client, *(client.get(path) for _ in range(3)))
    over = await client.get(path)
    assert (over.status, over.problem["reason"]) == (503, "overload")
    assert (over.headers["Retry-After"], over.headers["Cache-Control"]) == ("1", "no-store")
    # Whoever need not wait is served.
    assert (await client.get(f"/history/a?after={position}")).status == 200
    await client.publish("a", b"2")
    assert all(data_of(answer) == ["2"] for answer in await asyncio.gather(*polls))


async def test_a_worker_that_is_behind_does_not_wait_for_an_event_it_should_know(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 0.1}}, proxy.url)
        await ahead.publish("a", b"1")
        await behind.settle()
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"2")
        late = await behind.get(f"/history/a?after={published}&wait=25")
        assert (late.status, late.headers["Cache-Control"]) == (503, "no-store")
        proxy.release()


async def test_pages_have_tags_and_codings(client: Client) -> None:
    ids = await client.publish_lines([{"channel": "a", "data": "x" * 200} for _ in range(9)])
    await client.settle()
    path = f"/history/a?after={ids[0]}&limit=4"
    plain = await client.get(path)
    coded = await client.get(path, {"Accept-Encoding": "br"})
    assert coded.headers["Content-Encoding"] == "br"
    assert len(coded.body) < len(plain.body) / 4
    assert plain.headers["ETag"].endswith('.identity"')
    assert coded.headers["ETag"] == plain.headers["ETag"].replace("identity", "br")
    for tag in (plain.headers["ETag"], coded.headers["ETag"]):
        unchanged = await client.get(path, {"If-None-Match": tag})
        assert (unchanged.status, unchanged.body) == (304, b"")
        assert unchanged.headers["ETag"] == tag
        for name in ("Cache-Control", "CDN-Cache-Control", "Vary", "Surrogate-Key", "Cache-Tag"):
            assert name in unchanged.headers
    other = f"/history/a?after={ids[0]}&limit=5"
    assert (await client.get(other, {"If-None-Match": plain.headers["ETag"]})).status == 200
    huge: Any = {"If-None-Match": ",".join(['"x"'] * 2000)}
    assert (await client.get(path, huge)).status == 200
    refused = await client.get(path, {"Accept-Encoding": "identity;q=0"})
    assert (refused.status, refused.headers["Vary"]) == (406, "Accept-Encoding")


async def test_a_page_that_is_not_full_changes_its_tag_with_the_next_event(client: Client) -> None:
    first = await client.publish("a", b"1")
    await client.settle()
    tag = (await client.get("/history/a")).headers["ETag"]
    assert (await client.get("/history/a", {"If-None-Match": tag})).status == 304
    await client.publish("a", b"2")
    await client.settle()
    assert (await client.get("/history/a", {"If-None-Match": tag})).status == 200
    assert first in tag


@pytest.mark.parametrize("kind", ["history", "snapshots"])
async def test_a_channel_has_one_spelling(client: Client, kind: str) -> None:
    await client.publish("a/b", b"1")
    await client.settle()
    assert (await client.get(f"/{kind}/a/b")).status == 200
    for spelling in ("%61/b", "a%2Fb", "a/%62?limit=1" if kind == "history" else "a/%62"):
        answer = await client.get(f"/{kind}/{spelling}")
        assert answer.status == 308, spelling
        # A cache that keys by the decoded path must not keep it for the answer.
        assert answer.headers["Cache-Control"] == "no-store"
        led = client.url(f"/{kind}/{spelling}").join(URL(answer.headers["Location"], encoded=True))
        assert led.raw_path_qs == f"/{kind}/a/b" + ("?limit=1" if "?" in spelling else "")
    # Nothing leads to itself.
    astray = await client.get(f"/{'%68' if kind == 'history' else '%73'}{kind[1:]}/a/b")
    assert (astray.status, astray.headers["Cache-Control"]) == (400, "no-store")

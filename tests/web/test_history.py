"""`GET /history/{channel}`: pages of a ring, the full ones immutable."""

import re
import time

import pytest

from gateway.protocol.cache_control import NO_STALE_LIFE, UNKNOWN_CHANNEL
from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import Client, event, first_id
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy


def max_age(headers: object) -> int:
    value: str = headers["Cache-Control"]  # type: ignore[index]
    match = re.fullmatch(rf"public, max-age=(\d+), {NO_STALE_LIFE}", value)
    assert match is not None
    assert headers["CDN-Cache-Control"] == value.removeprefix("public, ")  # type: ignore[index]
    return int(match[1])


async def test_pages_follow_each_other_without_a_hole(client: Client) -> None:
    ids = await client.publish_lines([{"channel": "a", "data": n} for n in range(7)])
    await client.publish("other", b"no")
    await client.settle()
    first = await client.get("/history/a?limit=3")
    assert first.json["next"] == ids[2]
    got = first.json["events"]
    page = first
    while page.json["events"]:
        page = await client.get(f"/history/a?limit=3&after={page.json['next']}")
        assert page.json["gap"] is False
        got += page.json["events"]
    assert got == [{"id": id, "channel": "a", "data": n} for n, id in enumerate(ids)]
    # An empty page leads to where it began, and a stream goes on from there.
    assert page.json["next"] == ids[-1]
    published = await client.publish("a", b"7")
    async with client.follow("/events/a", page.json["next"]) as stream:
        await first_id(stream)
        assert await event(stream) == (published, "", "7")


async def test_an_entry_has_the_type_and_the_key_when_it_has_them(client: Client) -> None:
    ids = [
        await client.publish("a", b'{"n": 1.0}', "?type=t&key=k"),
        await client.publish("a", "text \n ü".encode()),
    ]
    await client.settle()
    answer = await client.get("/history/a")
    assert answer.json == {
        "events": [
            {"id": ids[0], "channel": "a", "type": "t", "key": "k", "data": {"n": 1.0}},
            {"id": ids[1], "channel": "a", "data": "text \n ü"},
        ],
        "next": ids[1],
        "gap": False,
    }
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Surrogate-Key"] == "ns.default ch.a"
    assert answer.headers["Cache-Tag"] == "ns.default,ch.a"
    assert max_age(answer.headers) == 1
    assert answer.headers["Vary"] == "Accept-Encoding"


async def test_a_full_page_after_a_position_never_changes_and_is_kept_while_the_ring_does(
    start: Start,
) -> None:
    roomy = {"ring_age_seconds": 1000, "ring_limit_events": 100_000}
    client = await start({"namespaces": {"default": roomy}})
    ids = await client.publish_lines([{"channel": "a", "data": n} for n in range(4)])
    await client.settle()
    full = await client.get(f"/history/a?limit=2&after={ids[0]}")
    assert [entry["data"] for entry in full.json["events"]] == [1, 2]
    assert 900 < max_age(full.headers) <= 990
    await client.publish("a", b"4")
    await client.settle()
    assert (await client.get(f"/history/a?limit=2&after={ids[0]}")).body == full.body
    # The next event changes a page that is not full, and one that begins where the ring does.
    for query in (f"limit=9&after={ids[0]}", "limit=2", f"after={ids[3]}"):
        assert max_age((await client.get(f"/history/a?{query}")).headers) == 1, query


async def test_a_full_page_is_kept_only_for_what_is_left_of_its_first_events_age(
    start: Start,
) -> None:
    roomy = {"ring_age_seconds": 100, "ring_limit_events": 100_000}
    client = await start({"namespaces": {"default": roomy}})
    ids = await client.publish_lines([{"channel": "a", "data": n} for n in range(3)])
    await client.settle()
    await until(lambda: time.time() * 1000 > Position.parse(ids[1]).ms + 1000)
    kept = max_age((await client.get(f"/history/a?limit=2&after={ids[0]}")).headers)
    assert 80 < kept < 90


async def test_a_worker_whose_clock_is_behind_the_stores_tells_pages_no_longer_life(
    start: Start, redis: Valkey
) -> None:
    roomy = {"ring_age_seconds": 1000, "ring_limit_events": 100_000}
    client = await start({"namespaces": {"default": roomy}})
    ids = await client.publish_lines([{"channel": "a", "data": n} for n in range(3)])
    # To this worker, a store that gives out later positions is one whose clock is ahead.
    ahead = f"{Position.parse(ids[-1]).ms + 300_000}-0"
    async with redis.client() as valkey:
        await valkey.hset("sg:{default}:meta", "clock", ahead)
    await client.publish("other", b"1")
    await client.settle()
    kept = max_age((await client.get(f"/history/a?limit=2&after={ids[0]}")).headers)
    assert 600 < kept <= 690


async def test_what_is_asked_for_at_a_position_yet_to_come_is_kept_by_nobody(
    client: Client,
) -> None:
    published = Position.parse(await client.publish("a", b"1"))
    await client.settle()
    ahead = Position(published.ms + 3_600_000, 0)
    for path in (f"/history/a?after={ahead}", f"/history/a?after={ahead}&wait=1"):
        page = await client.get(path)
        assert (page.json["gap"], page.headers["Cache-Control"]) == (True, "no-store")
    snapshot = await client.get(f"/snapshots/a?min={ahead}")
    assert (snapshot.json["id"], snapshot.headers["Cache-Control"]) == (str(published), "no-store")
    assert (await client.get(f"/snapshots/a?min={published}")).headers["CDN-Cache-Control"]


async def test_an_evicted_position_is_a_gap_and_the_page_is_what_is_left(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 3, "ring_spares_young": False}}}
    )
    ids = [await client.publish("a", b"%d" % n) for n in range(6)]
    await client.settle()
    answer = await client.get(f"/history/a?limit=2&after={ids[0]}")
    assert answer.json["gap"] is True
    assert [entry["data"] for entry in answer.json["events"]] == ["3", "4"]
    assert answer.json["next"] == ids[4]
    # So short a ring may be another one in a second.
    assert max_age(answer.headers) == 0
    edge = await client.get(f"/history/a?limit=3&after={ids[2]}")
    assert (edge.json["gap"], len(edge.json["events"])) == (False, 3)
    whole = await client.get("/history/a")
    assert (whole.json["gap"], len(whole.json["events"])) == (False, 3)


async def test_a_position_that_was_never_given_out_is_a_gap(client: Client) -> None:
    await client.publish("a", b"1")
    await client.settle()
    for after in ("9000000000000-0", "0-0"):
        answer = await client.get(f"/history/a?after={after}")
        assert answer.status == 200
        assert answer.json["gap"] is True
        assert [entry["data"] for entry in answer.json["events"]] == ["1"]


async def test_an_unknown_or_deleted_channel_can_be_followed_from_its_404(client: Client) -> None:
    await client.publish("a", b"1")
    await client.ask("DELETE", "/channels/a")
    await client.settle()
    for channel in ("a", "nobody"):
        answer = await client.get(f"/history/{channel}")
        assert answer.status == 404
        assert answer.headers["Cache-Control"] == UNKNOWN_CHANNEL
        published = await client.publish(channel, b"2")
        async with client.follow(f"/events/{channel}", answer.problem["id"]) as stream:
            await first_id(stream)
            assert await event(stream) == (published, "", "2")
    await client.settle()
    # What the deletion took is not in the new channel's history.
    assert await client.data_of("a") == ["2"]


async def test_a_namespace_without_state_has_a_history(start: Start) -> None:
    client = await start({"namespaces": {"log": {"reducer": "none"}}})
    await client.publish("log/a", b"line")
    assert await client.data_of("log/a") == ["line"]


async def test_a_worker_that_is_behind_waits_for_the_position(start: Start, redis: Valkey) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 0.1}}, proxy.url)
        await ahead.publish("a", b"1")
        await behind.settle()
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"2")
        late = await behind.get(f"/history/a?after={published}")
        assert (late.status, late.headers["Cache-Control"]) == (503, "no-store")
        proxy.release()
        await behind.settle()
        answer = await behind.get(f"/history/a?after={published}")
        assert answer.json == {"events": [], "next": published, "gap": False}


async def test_a_cold_worker_reads_the_ring_from_the_store_once(start: Start) -> None:
    one = await start()
    ids = await one.publish_lines([{"channel": "a", "data": n} for n in range(5)])
    two = await start()
    for _ in range(3):
        answer = await two.get(f"/history/a?after={ids[1]}")
        assert [entry["id"] for entry in answer.json["events"]] == ids[2:]
    assert two.gateway.rings.reads == 1


async def test_the_bounds_of_a_page(start: Start) -> None:
    client = await start({"history": {"limit_events": 5, "default_events": 2}})
    await client.publish_lines([{"channel": "a", "data": n} for n in range(9)])
    await client.settle()
    assert len((await client.get("/history/a")).json["events"]) == 2
    assert len((await client.get("/history/a?limit=5")).json["events"]) == 5
    for query, field in (
        ("limit=0", "limit"),
        ("limit=6", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=1&limit=1", "limit"),
        ("after=x", "after"),
        ("after=", "after"),
        ("after=1-0&after=1-0", "after"),
        ("wait=25", "wait"),
        ("after=1-0&wait=0", "wait"),
        ("after=1-0&wait=31", "wait"),
        ("after=1-0&wait=x", "wait"),
        ("after=1-0&wait=1&wait=1", "wait"),
        ("after=1-0&cursor=1", "cursor"),
        ("after=1-0&wait=1&cursor=x", "cursor"),
        ("after=1-0&wait=1&cursor=-1", "cursor"),
        ("after=1-0&wait=1&cursor=01", "cursor"),
        ("after=1-0&wait=1&cursor=1&cursor=1", "cursor"),
        (f"after=1-0&wait=1&cursor={10**15}", "cursor"),
        (f"after=1-0&wait=1&cursor={'9' * 5000}", "cursor"),
        ("x=1", "x"),
    ):
        answer = await client.get(f"/history/a?{query}")
        assert (answer.status, answer.problem["field"]) == (400, field), query


@pytest.mark.parametrize("name", ["a%20b", "a//b", "a/*"])
async def test_a_bad_name_is_refused(client: Client, name: str) -> None:
    for kind in ("history", "snapshots"):
        answer = await client.get(f"/{kind}/{name}")
        assert (answer.status, answer.problem["field"]) == (400, "channel")

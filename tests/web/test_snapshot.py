"""`GET /snapshots/{channel}`: conditional, negotiated, cacheable, and never back in time."""

import asyncio
import gzip
import re

import brotli
import orjson
import pytest
import zstandard

from gateway.protocol.cache_control import UNKNOWN_CHANNEL
from gateway.protocol.position import Position
from tests.running import Valkey, until
from tests.web.client import Client, event, first_id, gap_of
from tests.web.conftest import Start
from tests.web.proxy import redis_proxy

STALE = "stale-while-revalidate=5, stale-if-error=60"
VARIED = ("Connection", "Date", "Server")


async def test_the_body_and_the_headers(client: Client) -> None:
    position = await client.publish("a/b", b'{"n": 1}')
    answer = await client.get(f"/snapshots/a/b?min={position}")
    epoch = answer.json["epoch"]
    assert re.fullmatch(r"[A-Za-z0-9_-]+", epoch)
    assert answer.body == (
        b'{"channel":"a/b","id":"%b","epoch":"%b","reducer":"last","slice_seconds":30,'
        b'"state":{"n": 1}}' % (position.encode(), epoch.encode())
    )
    headers = {name: value for name, value in answer.headers.items() if name not in VARIED}
    tag = headers.pop("Etag")
    assert re.fullmatch(rf'"{epoch}\.{position}\.[0-9a-f]+\.identity"', tag)
    assert headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "Cache-Control": f"public, max-age=0, s-maxage=1, {STALE}",
        "CDN-Cache-Control": f"max-age=1, {STALE}",
        "Surrogate-Key": "ns.default ch.a/b st.a/b",
        "Cache-Tag": "ns.default,ch.a/b,st.a/b",
        "Vary": "Accept-Encoding",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": "ETag, Retry-After, Age",
        "Timing-Allow-Origin": "*",
    }


async def test_every_reducer_has_its_state(start: Start) -> None:
    client = await start(
        {
            "namespaces": {
                "merge": {"reducer": "merge"},
                "keyed": {"reducer": "keyed"},
                "none": {"reducer": "none"},
            }
        }
    )

    async def state(channel: str) -> object:
        await client.settle()
        return (await client.get(f"/snapshots/{channel}")).json["state"]

    await client.publish("a", b"first")
    assert await state("a") == "first"
    for warm in (False, True):  # What the store folded, then what this worker did.
        await client.publish("a", b"[1]" if warm else b"second")
        assert await state("a") == ([1] if warm else "second")
        await client.publish("merge/a", b'{"a":{"x":1,"y":2},"gone":1,"n":12345678901234567890123}')
        await client.publish("merge/a", b'{"gone":null,"a":{"y":null,"z":3}}')
        await client.settle()
        body = (await client.get("/snapshots/merge/a")).body
        assert b'"state":{"a":{"x":1,"z":3},"n":12345678901234567890123}}' in body
        for key, data in (("b", b"{}"), ("a", b"text"), ("c", b"1"), ("c", b"")):
            await client.publish("keyed/a", data, f"?key={key}")
        assert await state("keyed/a") == {"a": "text", "b": {}}
    await client.publish("none/a", b"1")
    await client.settle()
    nothing = await client.get("/snapshots/none/a")
    assert nothing.status == 404
    assert "keeps no state" in nothing.problem["detail"]


# -- conditions -------------------------------------------------------------------------------


async def test_if_none_match_in_all_its_forms(client: Client) -> None:
    await client.publish("a", b"1")
    await client.settle()
    full = await client.get("/snapshots/a")
    tag = full.headers["ETag"]
    other = tag.replace("identity", "gzip")
    for condition, expected in (
        (tag, tag),
        (f"W/{tag}", f"W/{tag}"),
        (f'"x", {tag}', tag),
        (f'W/"x",{tag} , "y"', tag),
        (f"{other}, {tag}", tag),
        # Any variant of the same snapshot will do, and is the one that the cache keeps.
        (other, other),
        ("*", tag),
    ):
        answer = await client.get("/snapshots/a", {"If-None-Match": condition})
        assert answer.status == 304, condition
        assert answer.body == b""
        assert answer.headers["ETag"] == expected, condition
        for name in ("Cache-Control", "CDN-Cache-Control", "Vary", "Surrogate-Key", "Cache-Tag"):
            assert answer.headers[name] == full.headers[name]
    for condition in (
        '"x"', 'W/"y", "z"', "garbage", tag.strip('"'), tag.replace(".identity", "x.identity"), "",
    ):  # fmt: skip
        answer = await client.get("/snapshots/a", {"If-None-Match": condition})
        assert (answer.status, answer.body) == (200, full.body), condition
    two_fields = [("If-None-Match", '"x"'), ("If-None-Match", tag)]
    assert (await client.get("/snapshots/a", two_fields)).status == 304
    assert client.gateway.snapshots.counters.not_modified == 8


async def test_a_new_position_or_another_channel_is_sent_in_full(client: Client) -> None:
    await client.publish("a", b"1")
    await client.publish("b", b"1")
    await client.settle()
    tag_a = (await client.get("/snapshots/a")).headers["ETag"]
    tag_b = (await client.get("/snapshots/b")).headers["ETag"]
    # The same state at another position is another snapshot.
    await client.publish("a", b"1")
    await client.settle()
    for tag in (tag_a, tag_b):
        answer = await client.get("/snapshots/a", {"If-None-Match": tag})
        assert answer.status == 200
        assert answer.headers["ETag"] != tag


async def test_a_date_alone_is_no_condition(client: Client) -> None:
    await client.publish("a", b"1")
    await client.settle()
    future = {"If-Modified-Since": "Fri, 31 Dec 2099 23:59:59 GMT"}
    answer = await client.get("/snapshots/a", future)
    assert answer.status == 200
    assert "Last-Modified" not in answer.headers
    both = await client.get("/snapshots/a", {**future, "If-None-Match": '"x"'})
    assert both.status == 200


async def test_two_workers_give_one_snapshot_the_same_tags_and_bytes(start: Start) -> None:
    settings = {"namespaces": {"keyed": {"reducer": "keyed"}, "merge": {"reducer": "merge"}}}
    one, two = await start(settings), await start(settings)
    for client, n in ((one, 0), (two, 1), (one, 2)):
        await client.publish("a", b'{"n": %d, "f": 1.10}' % n)
        await client.publish("keyed/a", b'"%d"' % n, f"?key={9 - n}")
        await client.publish("merge/a", b'{"%d":1.0e2}' % (9 - n))
        # One worker folds what it tails, the other reads what the store folded.
        await one.settle()
        for channel in ("a", "keyed/a", "merge/a"):
            await one.get(f"/snapshots/{channel}")
    await two.settle()
    for channel in ("a", "keyed/a", "merge/a"):
        for coding in ("identity", "gzip", "br", "zstd"):
            accept = {"Accept-Encoding": coding}
            first = await one.get(f"/snapshots/{channel}", accept)
            second = await two.get(f"/snapshots/{channel}", accept)
            assert first.status == 200
            assert first.headers["ETag"] == second.headers["ETag"]
            assert first.headers["ETag"].endswith(f'.{coding}"')
            assert first.body == second.body


# -- content codings --------------------------------------------------------------------------


async def test_the_coding_is_negotiated_by_weight(client: Client) -> None:
    await client.publish("a", b'{"text":"%b"}' % (b"again " * 100))
    await client.settle()
    plain = await client.get("/snapshots/a")
    assert "Content-Encoding" not in plain.headers
    undo = {
        "gzip": gzip.decompress,
        "br": brotli.decompress,
        "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
        "identity": lambda body: body,
    }
    for accept, coding in (
        ("gzip", "gzip"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "br"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("gzip;q=0.5, zstd;q=0.8, br;q=0", "zstd"),
        ("*", "br"),
        ("*;q=0.5, gzip", "gzip"),
        ("br;q=0, *", "zstd"),
        ("identity", "identity"),
        ("identity;q=1, gzip;q=0.5", "identity"),
        ("deflate", "identity"),
        ("GZIP", "gzip"),
        ("", "identity"),
    ):
        answer = await client.get("/snapshots/a", {"Accept-Encoding": accept})
        assert answer.status == 200, accept
        assert answer.headers.get("Content-Encoding", "identity") == coding, accept
        assert answer.headers["ETag"].endswith(f'.{coding}"')
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert undo[coding](answer.body) == plain.body
    for accept in ("identity;q=0", "*;q=0", "identity;q=0, deflate", "identity;q=0,br;q=0.000"):
        answer = await client.get("/snapshots/a", {"Accept-Encoding": accept})
        assert answer.status == 406, accept
        assert answer.problem["title"] == "Not acceptable"
        assert answer.headers["Vary"] == "Accept-Encoding"


async def test_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    await client.publish("a", b"1" * 500)
    await client.settle()
    for path in ("/snapshots/a", "/snapshots/nobody", "/history/a"):
        for headers in ({}, {"Accept-Encoding": "br"}, {"If-None-Match": "*"}):
            got = await client.get(path, headers)
            head = await client.ask("HEAD", path, headers)
            assert (head.status, head.body) == (got.status, b""), path
            assert {k: v for k, v in head.headers.items() if k not in VARIED} == {
                k: v for k, v in got.headers.items() if k not in VARIED
            }


# -- channels that are not there --------------------------------------------------------------


async def test_an_unknown_channel_can_be_followed_from_its_404_without_a_hole(
    client: Client,
) -> None:
    await client.publish("other", b"0")
    await client.settle()
    answer = await client.get("/snapshots/new/channel")
    assert answer.status == 404
    assert answer.headers["Cache-Control"] == UNKNOWN_CHANNEL
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    problem = answer.problem
    assert problem["channel"] == "new/channel"
    await client.publish("other", b"1")
    first = await client.publish("new/channel", b"1")
    epoch = (await client.get(f"/snapshots/new/channel?min={first}")).json["epoch"]
    assert problem["epoch"] == epoch
    async with client.follow("/events/new/channel", problem["id"]) as stream:
        assert await first_id(stream) == problem["id"]
        assert await event(stream) == (first, "", "1")


async def test_a_deleted_channel_is_unknown_and_begins_again(client: Client) -> None:
    await client.publish("a", b"1")
    await client.settle()
    tag = (await client.get("/snapshots/a")).headers["ETag"]
    await client.ask("DELETE", "/channels/a")
    await client.settle()
    gone = await client.get("/snapshots/a", {"If-None-Match": tag})
    assert gone.status == 404
    again = await client.publish("a", b"2")
    async with client.follow("/events/a", gone.problem["id"]) as stream:
        assert await first_id(stream) == gone.problem["id"]
        assert await event(stream) == (again, "", "2")
    assert (await client.get("/snapshots/a")).json["state"] == "2"


async def test_after_the_floor_rose_the_snapshot_can_still_be_followed(client: Client) -> None:
    quiet = await client.publish("quiet", b"1")
    await client.settle()
    before = await client.get("/snapshots/quiet")
    assert before.json["id"] == quiet
    await client.publish("ended", b"1")
    await client.ask("DELETE", "/channels/ended")
    assert await client.gateway.store.sweep("default", ["ended"]) == 1
    life = await client.gateway.store.greet("default")
    mirror = client.gateway.tails["default"].mirror
    await until(lambda: mirror.life is not None and mirror.life.floor == life.floor)
    # The old position is lost to the floor; a snapshot that still named it would lead nowhere.
    async with client.follow("/events/quiet", quiet) as stream:
        await first_id(stream)
        assert gap_of(await stream.next())["reason"] == "evicted"
    after = await client.get("/snapshots/quiet", {"If-None-Match": before.headers["ETag"]})
    assert after.status == 200
    assert after.json == {**before.json, "id": str(life.floor)}
    published = await client.publish("quiet", b"2")
    async with client.follow("/events/quiet", after.json["id"]) as stream:
        await first_id(stream)
        assert await event(stream) == (published, "", "2")


# -- workers that are behind ------------------------------------------------------------------


async def test_min_waits_for_the_position(start: Start, redis: Valkey) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 20.0}}, proxy.url)
        await ahead.publish("a", b"1")
        await behind.settle()
        await behind.get("/snapshots/a")
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"2")
        assert (await behind.get("/snapshots/a")).json["state"] == "1"
        waiting = asyncio.create_task(behind.get(f"/snapshots/a?min={published}"))
        await until(lambda: proxy.seen(b"EVALSHA"))
        assert not waiting.done()
        proxy.release()
        answer = await waiting
        assert (answer.status, answer.json["id"], answer.json["state"]) == (200, published, "2")


async def test_a_worker_that_stays_behind_never_takes_a_cache_back(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 0.1}}, proxy.url)
        await ahead.publish("a", b"1")
        await behind.settle()
        old = await behind.get("/snapshots/a")
        proxy.hold(b"XREAD")
        published = await ahead.publish("a", b"2")
        new = await ahead.get(f"/snapshots/a?min={published}", {"Accept-Encoding": "br"})
        tag = new.headers["ETag"]
        kept = await behind.get("/snapshots/a", {"If-None-Match": f'"x", W/{tag}'})
        assert (kept.status, kept.headers["ETag"]) == (304, f"W/{tag}")
        assert kept.headers["Cache-Control"] == old.headers["Cache-Control"]
        assert kept.headers["Vary"] == "Accept-Encoding"
        late = await behind.get(f"/snapshots/a?min={published}")
        assert late.status == 503
        assert late.headers["Cache-Control"] == "no-store"
        # Whoever has nothing newer gets what there is.
        assert (await behind.get("/snapshots/a")).json == old.json
        proxy.release()
        await behind.settle()
        caught_up = await behind.get("/snapshots/a", {"If-None-Match": old.headers["ETag"]})
        assert (caught_up.status, caught_up.json["state"]) == (200, "2")


async def test_a_worker_that_comes_along_in_time_knows_the_snapshot(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 20.0}}, proxy.url)
        await ahead.publish("a", b"1")
        await behind.settle()
        await behind.get("/snapshots/a")
        proxy.hold(b"XREAD")
        second = await ahead.publish("a", b"2")
        tag = (await ahead.get(f"/snapshots/a?min={second}")).headers["ETag"]
        waiting = asyncio.create_task(behind.get("/snapshots/a", {"If-None-Match": tag}))
        await until(lambda: proxy.seen(b"EVALSHA"))
        assert not waiting.done()
        proxy.release()
        answer = await waiting
        assert (answer.status, answer.headers["ETag"]) == (304, tag)
        assert (await behind.get("/snapshots/a")).json["state"] == "2"


async def test_a_position_of_lost_history_keeps_nobody_from_the_truth(
    start: Start, redis: Valkey
) -> None:
    client = await start()
    first = await client.publish("a", b"1")
    await client.settle()
    copy = redis.directory.parent / "copy"
    await redis.copy_data(copy)
    lost = await client.publish("a", b"2")
    await client.settle()
    tag = (await client.get("/snapshots/a")).headers["ETag"]
    assert lost in tag
    restarts = client.gateway.tails["default"].mirror.restarts
    await redis.restart_from(copy)
    await until(lambda: client.gateway.tails["default"].mirror.restarts > restarts)
    # The event of that snapshot is gone, so is the snapshot, be it the newer one.
    answer = await client.get("/snapshots/a", {"If-None-Match": tag})
    assert (answer.status, answer.json["id"], answer.json["state"]) == (200, first, "1")
    invented = tag.replace(lost, "9000000000000-0")
    answer = await client.get("/snapshots/a", {"If-None-Match": invented})
    assert answer.status == 200


async def test_a_warm_channel_is_answered_without_redis(start: Start, redis: Valkey) -> None:
    client = await start({"store": {"block_ms": 60_000}})
    position = await client.publish("a", b"1")
    tag = (await client.get(f"/snapshots/a?min={position}")).headers["ETag"]
    idle = -await redis.commands() + await redis.commands()
    before = await redis.commands()
    for _ in range(5):
        for headers in ({}, {"If-None-Match": tag}, {"Accept-Encoding": "br"}):
            assert (await client.get("/snapshots/a", headers)).status in (200, 304)
            assert (await client.get(f"/snapshots/a?min={position}", headers)).status in (200, 304)
    assert await redis.commands() - before == idle


async def test_an_outage_of_the_store_leaves_warm_channels_readable(
    start: Start, redis: Valkey
) -> None:
    client = await start()
    await client.publish("warm", b"1")
    await client.publish("cold", b"1")
    await client.settle()
    warm = await client.get("/snapshots/warm")
    await redis.stop()
    await until(lambda: not client.gateway.tails["default"].connected)
    assert (await client.get("/snapshots/warm")).body == warm.body
    cold = await client.get("/snapshots/cold")
    assert cold.status == 503
    assert cold.problem["title"] == "Store unavailable"
    assert cold.headers["Retry-After"] == "1"


@pytest.mark.parametrize("query", ["min=1", "min=1-0&min=1-0", "x=1", "min=", "format=xml"])
async def test_a_bad_query_is_refused(client: Client, query: str) -> None:
    answer = await client.get(f"/snapshots/a?{query}")
    assert (answer.status, answer.problem["field"]) == (400, query.partition("=")[0])


async def test_a_reader_that_comes_back_always_moves_forward(start: Start) -> None:
    """Two workers behind one cache that revalidates: state never goes back."""
    one, two = await start(), await start()
    await one.publish("a", b"0")
    tag, seen = '"none"', Position(0, 0)
    publishing = asyncio.create_task(_count(one, 100))
    for n in range(200):
        answer = await (one, two)[n % 2].get("/snapshots/a", {"If-None-Match": tag})
        if answer.status == 200:
            position = Position.parse(answer.json["id"])
            assert position >= seen
            tag, seen = answer.headers["ETag"], position
        else:
            assert answer.status in (304, 404), answer
    await publishing


async def _count(client: Client, number: int) -> None:
    for n in range(number):
        await client.publish("a", orjson.dumps(n))


async def test_a_minimum_position_in_the_header_means_what_min_does(
    start: Start, redis: Valkey
) -> None:
    async with redis_proxy(redis.socket) as proxy:
        ahead = await start()
        behind = await start({"snapshots": {"wait_seconds": 0.2}}, proxy.url)
        first = await ahead.publish("a", b"1")
        await behind.settle()
        proxy.hold(b"XREAD")
        second = await ahead.publish("a", b"2")
        minimum = {"Minimum-Position": second}
        for path in ("/snapshots/a", f"/snapshots/a?min={first}"):
            assert (await behind.get(path, minimum)).status == 503
        # The later of both counts.
        both = await behind.get(f"/snapshots/a?min={second}", {"Minimum-Position": first})
        assert both.status == 503
        assert (await behind.get("/snapshots/a", {"Minimum-Position": first})).status == 200
        pending = asyncio.ensure_future((await start({}, proxy.url)).get("/snapshots/a", minimum))
        proxy.release()
        assert (await pending).json["id"] == second
    wrong = await ahead.get("/snapshots/a", {"Minimum-Position": "x"})
    assert (wrong.status, wrong.problem["field"]) == (400, "Minimum-Position")
    never = await ahead.get("/snapshots/a", {"Minimum-Position": "9000000000000-0"})
    assert (never.status, never.json["id"]) == (200, second)

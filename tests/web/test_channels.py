"""`GET /channels` and `DELETE /channels/{channel}`: what there is, and the end of it."""

from gateway.protocol.position import Position
from tests.running import until
from tests.web.client import Client, first_id, gap_of
from tests.web.conftest import Start


async def names(client: Client, query: str = "") -> list[str]:
    await client.settle()
    answer = await client.get(f"/channels{query}")
    assert answer.status == 200
    return [entry["channel"] for entry in answer.json["channels"]]


async def test_a_channel_is_listed_with_its_figures(start: Start) -> None:
    client = await start({"namespaces": {"n": {}}})
    ids = await client.publish_lines([{"channel": "n/a", "data": n} for n in range(3)])
    await client.publish("b", b"1")
    await client.settle()
    async with (
        client.follow("/events/n/a") as one,
        client.follow("/events/n/*") as two,
        client.follow("/events?channel=n/a&channel=n/x") as three,
    ):
        for stream in (one, two, three):
            await first_id(stream)
        answer = await client.get("/channels")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.json["next"] is None
    b, a = answer.json["channels"]
    assert 0 <= a.pop("age_seconds") < 60
    assert a == {
        "channel": "n/a",
        "namespace": "n",
        "reducer": "last",
        "id": ids[2],
        "events": 3,
        "subscribers": 3,
    }
    assert (b["channel"], b["namespace"], b["subscribers"]) == ("b", "default", 0)
    await until(lambda: client.gateway.hub.subscribers == 0)
    assert (await client.get("/channels?prefix=n/")).json["channels"][0]["subscribers"] == 0


async def test_the_list_is_sorted_and_comes_in_pages(start: Start) -> None:
    client = await start({"namespaces": {"m": {}}})
    assert await names(client) == []
    for namespace in ("", "m/"):
        await client.publish_lines(
            [{"channel": f"{namespace}c{n}", "data": 0} for n in (3, 1, 4, 0, 2)]
        )
    everything = [f"c{n}" for n in range(5)] + [f"m/c{n}" for n in range(5)]
    assert await names(client) == everything
    assert await names(client, "?prefix=m/") == everything[5:]
    assert await names(client, "?prefix=c3") == ["c3"]
    assert await names(client, "?prefix=x") == []
    pages, after = [], ""
    while True:
        answer = await client.get(f"/channels?limit=4{after}")
        pages.append([entry["channel"] for entry in answer.json["channels"]])
        if answer.json["next"] is None:
            break
        after = f"&after={answer.json['next']}"
    assert pages == [everything[:4], everything[4:8], everything[8:]]
    assert await names(client, "?limit=10") == everything
    for query, field in (
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("prefix=a&prefix=b", "prefix"),
        ("x=1", "x"),
    ):
        bad = await client.get(f"/channels?{query}")
        assert (bad.status, bad.problem["field"]) == (400, field)


async def test_a_page_is_filled_with_channels_that_exist(start: Start) -> None:
    client = await start({"namespaces": {"m": {}}})
    await client.publish_lines([{"channel": f"a{n}", "data": 0} for n in range(6)])
    await client.publish_lines([{"channel": f"m/{n}", "data": 0} for n in range(3)])
    await client.publish("z", b"0")
    for channel in ("a0", "a1", "a3", "m/1"):
        await client.ask("DELETE", f"/channels/{channel}")
    assert await names(client, "?limit=2") == ["a2", "a4"]
    answer = await client.get("/channels?limit=3&after=a4")
    assert [entry["channel"] for entry in answer.json["channels"]] == ["a5", "m/0", "m/2"]
    assert answer.json["next"] == "m/2"
    assert (await client.get("/channels?limit=1&after=m/2")).json["next"] is None


async def test_the_ring_size_is_what_the_ring_holds(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 2, "ring_spares_young": False}}}
    )
    for n in range(5):
        await client.publish("a", b"%d" % n)
    await client.settle()
    [entry] = (await client.get("/channels")).json["channels"]
    assert entry["events"] == 2


async def test_a_deleted_channel_is_gone_everywhere_and_may_begin_again(client: Client) -> None:
    published = await client.publish("a/b", b"1")
    await client.publish("a/c", b"1")
    await client.settle()
    await client.get("/snapshots/a/b")
    answer = await client.ask("DELETE", "/channels/a/b")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json == {"channel": "a/b", "id": answer.json["id"]}
    assert Position.parse(answer.json["id"]) > Position.parse(published)
    assert await names(client) == ["a/c"]
    for kind in ("snapshots", "history"):
        assert (await client.get(f"/{kind}/a/b")).status == 404
    async with client.follow("/events/a/b", published) as stream:
        await first_id(stream)
        assert gap_of(await stream.next())["reason"] == "deleted"
    again = await client.ask("DELETE", "/channels/a/b")
    assert again.status == 404
    assert "a/b" in again.problem["detail"]
    second = await client.publish("a/b", b"2")
    assert Position.parse(second) > Position.parse(answer.json["id"])
    assert await names(client) == ["a/b", "a/c"]
    assert await client.data_of("a/b") == ["2"]
    assert (await client.get("/snapshots/a/b")).json["state"] == "2"


async def test_deletion_forgets_the_state_of_every_reducer(start: Start) -> None:
    client = await start(
        {"namespaces": {"keyed": {"reducer": "keyed"}, "merge": {"reducer": "merge"}}}
    )
    for channel, first, second in (
        ("keyed/a", "?key=x", "?key=y"),
        ("merge/a", "", ""),
    ):
        await client.publish(channel, b'{"old":1}', first)
        await client.settle()
        await client.get(f"/snapshots/{channel}")
        await client.ask("DELETE", f"/channels/{channel}")
        position = await client.publish(channel, b'{"new":1}', second)
        state = (await client.get(f"/snapshots/{channel}?min={position}")).json["state"]
        assert state == ({"y": {"new": 1}} if second else {"new": 1})


async def test_if_match_deletes_only_what_the_caller_has_seen(client: Client) -> None:
    first = await client.publish("a", b"1")
    second = await client.publish("a", b"2")
    stale = await client.ask("DELETE", "/channels/a", {"If-Match": f'"{first}"'})
    assert (stale.status, stale.problem["current"]) == (412, second)
    assert (await client.ask("DELETE", "/channels/a", {"If-Match": "x"})).status == 400
    assert await names(client) == ["a"]
    done = await client.ask("DELETE", "/channels/a", {"If-Match": f'"{second}"'})
    assert done.status == 200
    assert await names(client) == []


async def test_bad_deletions_are_refused(client: Client) -> None:
    for path, status in (
        ("/channels/nobody", 404),
        ("/channels/a//b", 400),
        ("/channels/a/*", 400),
        ("/channels/a?x=1", 400),
        ("/channels", 405),
    ):
        answer = await client.ask("DELETE", path)
        assert answer.status == status, path
        assert answer.problem["status"] == status

"""The shipped VCL: what Varnish keeps, shares, purges, refuses, and says without an origin."""

import asyncio
import re
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.edge.running import origin_of, publish, varnish
from tests.edge.test_nginx import Answer, ask, settings
from tests.running import Valkey, free_port, valkey, worker
from tests.web.proxy import redis_proxy


async def test_a_snapshot_is_kept_once_for_each_coding_and_shared_while_it_is_fetched(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(edge_max_age_seconds=60)
    async with worker(redis.url, life) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a", "1")
        answers = await asyncio.gather(
            *[
                ask(session, f"{edge.url}/snapshots/a", {"Accept-Encoding": accepted})
                for accepted in ("gzip, deflate, br", "br", "gzip, deflate", "gzip", "zstd", "")
                for _ in range(20)
            ]
        )
        codings = [one.headers.get("Content-Encoding", "identity") for one in answers[::20]]
        assert codings == ["br", "br", "gzip", "gzip", "zstd", "identity"]
        assert origin.gateway.requests["/snapshots"] == 4
        tag = answers[0].headers["ETag"]
        headers = {"Accept-Encoding": "br", "If-None-Match": tag}
        assert (await ask(session, f"{edge.url}/snapshots/a", headers)).status == 304


async def test_a_soft_purge_and_a_refresh_bring_the_new_state(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(edge_max_age_seconds=600, stale_while_revalidate_seconds=0)
    async with worker(redis.url, life) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        url = f"{edge.url}/snapshots/a"

        async def state() -> object:
            return orjson.loads((await ask(session, url)).body)["state"]

        await publish(session, origin, "a", "1")
        assert await state() == "1"
        await publish(session, origin, "a", "2")
        assert await state() == "1"
        inside = f"{edge.internal_url}/snapshots/a"
        purged = await ask(session, inside, {"xkey-softpurge": "st.a"}, "PURGE")
        assert purged.status == 200
        assert await state() == "2"
        published = await publish(session, origin, "a", "3")
        refresh = {"X-Refresh": "1", "Minimum-Position": published}
        assert orjson.loads((await ask(session, inside, refresh)).body)["state"] == "3"
        assert await state() == "3"
        other = await ask(session, inside, {"xkey-softpurge": "st.b"}, "PURGE")
        assert other.status == 200
        assert (await ask(session, url)).cache == "HIT"


@pytest.mark.parametrize("who", ["reader", "stranger"])
async def test_others_may_neither_purge_nor_refresh_nor_write(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, who: str
) -> None:
    def closed(text: str) -> str:
        assert '"127.0.0.1";\n    "::1";' in text
        return text.replace('"127.0.0.1";\n    "::1";', '"192.0.2.1";')

    life = settings(edge_max_age_seconds=600)
    async with (
        worker(redis.url, life) as origin,
        varnish(tmp_path, origin_of(origin.url), edit=closed if who == "stranger" else str) as edge,
    ):
        await publish(session, origin, "a", "1")
        # At the readers' address nobody may; at the internal one whom the VCL names.
        base = edge.internal_url if who == "stranger" else edge.url
        url = f"{base}/snapshots/a"
        await ask(session, url)
        assert (await ask(session, url, {"xkey-softpurge": "ch.a"}, "PURGE")).status == 403
        refresh = {"X-Refresh": "1", "Minimum-Position": "9007199254740991-0"}
        assert (await ask(session, url, refresh)).cache == "HIT"
        far = {**refresh, "Accept-Encoding": "gzip"}
        assert (await ask(session, url, far)).status == 200
        seen = dict(origin.gateway.requests)
        for method, path, status in (
            ("POST", "/publish/a", 405),
            ("DELETE", "/channels/a", 405),
            ("GET", "/channels", 404),
            ("GET", "/metrics", 404),
        ):
            answer = await ask(session, base + path, method=method, data=b"1")
            assert answer.status == status, path
        assert {k: v for k, v in origin.gateway.requests.items() if k != "/livez"} == {
            k: v for k, v in seen.items() if k != "/livez"
        }


async def test_stale_answers_end_though_the_origin_is_away(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=1, stale_while_revalidate_seconds=1, stale_if_error_seconds=4
    )
    port = free_port()
    async with varnish(tmp_path, f"127.0.0.1:{port}") as edge:
        url = f"{edge.url}/snapshots/a"
        async with worker(redis.url, life, port=port) as origin:
            await publish(session, origin, "a", "1")
            await until_answered(session, url)
        ages = []
        async with asyncio.timeout(30):
            while (answer := await ask(session, url)).status == 200:
                ages.append(int(answer.headers["Age"]))
                await asyncio.sleep(0.05)
        assert max(ages) > 1  # Older than its life, for the gateway was away.
        assert answer.status == 503


async def test_stale_answers_last_as_long_as_their_headers_say_while_the_origin_is_well(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=1, stale_while_revalidate_seconds=0, stale_if_error_seconds=60
    )
    async with worker(redis.url, life) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        url = f"{edge.url}/snapshots/a"
        for number in range(3):
            await ask(session, f"{origin.url}/publish/a", method="POST", data=b"%d" % number)
            async with asyncio.timeout(10):
                while int((answer := await ask(session, url)).headers["Age"]) == 0:
                    state = orjson.loads(answer.body)["state"]
                    await asyncio.sleep(0.02)
                    if state == str(number):
                        break
            # Nothing is served that is older than its life of a second, though it is there yet.
            assert int(answer.headers["Age"]) <= 1
        assert state == "2"


async def test_what_may_not_be_kept_is_not(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    sliced = settings(slice_seconds=5)
    async with (
        worker(redis.url, sliced) as origin,
        varnish(tmp_path, origin_of(origin.url)) as edge,
    ):
        life = await origin.gateway.store.greet("default")
        while True:
            published = await publish(session, origin, "a", "1")
            number = int(published.partition("-")[0]) // 5000 + 1
            url = f"{edge.url}/slices/{life.epoch}/{number}/a"
            if (early := await ask(session, url)).status != 200:
                break  # Else it began in the meantime.
        assert (early.status, early.headers["Cache-Control"]) == (404, "no-store")

        async def until_begun() -> Answer:
            async with asyncio.timeout(20):
                while (answer := await ask(session, url)).status == 404:
                    assert answer.headers["Age"] == "0"
                    assert answer.cache == "PASS"
                    await asyncio.sleep(0.1)
            return answer

        # It is there as soon as it has begun, for all of those who asked before: at one request.
        answers = await asyncio.gather(*[until_begun() for _ in range(20)])
        end = b'event: end\ndata: {"next":%d}\n\n' % (number + 1)
        assert all(one.body.endswith(end) for one in answers)
        assert sorted(str(one.cache) for one in answers) == ["HIT"] * 19 + ["MISS"]


async def test_a_browser_gets_what_is_stale_in_its_own_coding_and_a_crowd_does_too(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=1, stale_while_revalidate_seconds=0, stale_if_error_seconds=60
    )

    def probed_once(text: str) -> str:
        return text.replace(".interval = 1s;", ".interval = 1000s;")

    headers = {"Accept-Encoding": "gzip, deflate, br, zstd"}
    async with AsyncExitStack() as running:
        origin = await running.enter_async_context(worker(redis.url, life))
        async with varnish(tmp_path, origin_of(origin.url), edit=probed_once) as edge:
            url = f"{edge.url}/snapshots/a"
            await publish(session, origin, "a", "1")
            first = await ask(session, url, headers)
            assert first.headers["Content-Encoding"] == "br"
            # Too old, it is fetched anew in the same coding.
            async with asyncio.timeout(20):
                while (await ask(session, url, headers)).cache == "HIT":
                    await asyncio.sleep(0.1)
            assert origin.gateway.requests["/snapshots"] == 2
            assert (await ask(session, url, headers)).headers["Content-Encoding"] == "br"
            await running.aclose()
            async with asyncio.timeout(20):
                while int((await ask(session, url, headers)).headers["Age"]) < 2:
                    await asyncio.sleep(0.1)
            answers = await asyncio.gather(*[ask(session, url, headers) for _ in range(40)])
            assert {(one.status, one.headers["Content-Encoding"]) for one in answers} == {
                (200, "br")
            }


async def test_a_crowd_that_finds_an_answer_too_stale_is_one_request(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=60, stale_while_revalidate_seconds=0, stale_if_error_seconds=60
    )
    async with worker(redis.url, life) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        url = f"{edge.url}/snapshots/a"
        await publish(session, origin, "a", "1")
        first = await ask(session, url)
        # Purged softly it is stale at once, and there yet.
        purge = {"xkey-softpurge": "st.a"}
        assert (await ask(session, edge.internal_url, purge, "PURGE")).status == 200
        before = origin.gateway.requests["/snapshots"]
        answers = await asyncio.gather(*[ask(session, url) for _ in range(50)])
        assert {(one.status, one.body) for one in answers} == {(200, first.body)}
        assert origin.gateway.requests["/snapshots"] - before == 1


async def test_what_the_origin_fails_to_answer_is_served_stale_before_its_probe_knows(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=1, stale_while_revalidate_seconds=0, stale_if_error_seconds=60
    )

    def probed_once(text: str) -> str:
        assert ".interval = 1s;" in text
        return text.replace(".interval = 1s;", ".interval = 1000s;")

    async with AsyncExitStack() as running:
        origin = await running.enter_async_context(worker(redis.url, life))
        async with varnish(tmp_path, origin_of(origin.url), edit=probed_once) as edge:
            url = f"{edge.url}/snapshots/a"
            await publish(session, origin, "a", "1")
            first = await ask(session, url)
            assert first.status == 200
            await running.aclose()
            async with asyncio.timeout(20):
                while int((kept := await ask(session, url)).headers["Age"]) < 3:
                    assert (kept.status, kept.body) == (200, first.body)
                    await asyncio.sleep(0.1)
            lost = await ask(session, f"{edge.url}/snapshots/b")
            assert (lost.status, lost.headers["Retry-After"]) == (503, "1")
            assert orjson.loads(lost.body)["status"] == 503


@pytest.mark.parametrize("revalidate", [60, 0], ids=["behind its readers", "before its reader"])
async def test_an_answer_of_5xx_does_not_take_the_place_of_what_is_stale(
    session: aiohttp.ClientSession, tmp_path: Path, revalidate: int
) -> None:
    life = settings(
        edge_max_age_seconds=1,
        stale_while_revalidate_seconds=revalidate,
        stale_if_error_seconds=60,
    )
    port = free_port()
    async with (
        valkey(tmp_path / "valkey") as redis,
        varnish(tmp_path, f"127.0.0.1:{port}") as edge,
    ):
        url = f"{edge.url}/snapshots/a"
        async with worker(redis.url, life, port=port) as origin:
            await publish(session, origin, "a", "1")
            first = await until_answered(session, url)
        # A worker that has not read the state yet, and cannot.
        async with worker(redis.url, life, port=port) as origin:
            await redis.stop()
            assert (await ask(session, f"{origin.url}/snapshots/a")).status == 503
            before = origin.gateway.requests["/snapshots"]
            async with asyncio.timeout(30):
                while origin.gateway.requests["/snapshots"] < before + 3:
                    answer = await ask(session, url)
                    assert (answer.status, answer.body) == (200, first.body)
                    await asyncio.sleep(0.02)
            assert int(answer.headers["Age"]) >= 1


async def test_a_crowd_does_not_queue_for_what_may_not_be_kept(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    given = {
        "snapshots": {"wait_seconds": 1.0},
        "namespaces": {"default": {"edge_max_age_seconds": 0}},
    }
    async with (
        redis_proxy(redis.socket) as proxy,
        worker(proxy.url, given) as origin,
        varnish(tmp_path, origin_of(origin.url)) as edge,
    ):
        url = f"{edge.url}/snapshots/a"
        # The worker cannot see what was published, and says so after a second: to one by one that
        # would take more than half a minute.
        proxy.hold(b"XREAD")
        published = await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
        wanted = f"{url}?min={orjson.loads(published.body)['id']}"
        async with asyncio.timeout(25):
            answers = await asyncio.gather(*[ask(session, wanted) for _ in range(40)])
        assert {one.status for one in answers} == {503}
        proxy.release()
        await until_answered(session, url)
        before = await more_than(tmp_path, 0)
        answers = await asyncio.gather(*[ask(session, url) for _ in range(40)])
        assert {(one.status, one.cache) for one in answers} == {(200, "PASS")}
        await more_than(tmp_path, before)


async def hit_for_miss(directory: Path) -> int:
    """Return how many readers Varnish has let through though it was asking already."""
    name = "MAIN.cache_hitmiss"
    command = ("varnishstat", "-n", str(directory / "varnish"), "-1", "-j", "-f", name)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return int(orjson.loads(said)["counters"][name]["value"])


async def more_than(directory: Path, before: int) -> int:
    """Wait until more were let through: a thread adds what it has counted when it is done."""
    async with asyncio.timeout(20):
        while (now := await hit_for_miss(directory)) <= before:
            await asyncio.sleep(0.05)
    return now


async def until_answered(session: aiohttp.ClientSession, url: str) -> Answer:
    """Ask until Varnish knows that the gateway is there."""
    async with asyncio.timeout(20):
        while (answer := await ask(session, url)).status != 200:
            await asyncio.sleep(0.05)
    return answer


async def test_what_the_vcl_says_of_a_base_path_is_true(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    def below_a_path(text: str) -> str:
        said = re.search(r"^#     sed '(.+)' varnish\.vcl$", text, re.MULTILINE)
        assert said is not None
        changed = subprocess.run(
            ["sed", said[1]], input=text, capture_output=True, text=True, check=True
        ).stdout
        assert changed.count('"^/live/') == text.count('"^/')
        return changed

    port = free_port()
    async with varnish(tmp_path, f"127.0.0.1:{port}", edit=below_a_path) as edge:
        away = await ask(session, f"{edge.url}/live/events/a", {"Accept": "text/event-stream"})
        assert b"event: unavailable" in away.body
        below = {**settings(edge_max_age_seconds=60), "base_path": "/live"}
        async with worker(redis.url, below, port=port) as origin:
            published = f"{origin_of(origin.url)}/live/publish/a"
            await ask(session, f"http://{published}", method="POST", data=b"1")
            url = f"{edge.url}/live/snapshots/a"
            await until_answered(session, url)
            assert (await ask(session, url)).cache == "HIT"
            assert (await ask(session, f"{edge.url}/snapshots/a")).status == 404
            assert (await ask(session, f"{edge.url}/live/metrics")).status == 404


async def test_a_failed_request_of_which_nothing_stale_is_left_is_not_asked_twice(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    waits = {"snapshots": {"wait_seconds": 0.1}}
    async with (
        redis_proxy(redis.socket) as proxy,
        worker(proxy.url, waits) as origin,
        varnish(tmp_path, origin_of(origin.url)) as edge,
    ):
        # The worker cannot see what was published, and answers 503 to who asks for it.
        proxy.hold(b"XREAD")
        published = await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
        position = orjson.loads(published.body)["id"]
        before = origin.gateway.requests["/snapshots"]
        ahead = await ask(session, f"{edge.url}/snapshots/a?min={position}")
        proxy.release()
        assert ahead.status == 503
        assert orjson.loads(ahead.body)["status"] == 503
        assert origin.gateway.requests["/snapshots"] == before + 1


async def test_a_live_stream_is_not_held_back(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    # A heartbeat would push out what is held: there is none.
    quiet = {"streams": {"heartbeat_seconds": 3000}}
    async with worker(redis.url, quiet) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        assert origin.gateway.settings.streams.transport == "auto"

        async def publish(data: bytes) -> str:
            answer = await ask(session, f"{origin.url}/publish/a", method="POST", data=data)
            return str(orjson.loads(answer.body)["id"])

        for number in range(10):
            headers = {"Last-Event-ID": await publish(b"before")}
            await publish(b"%d" % number)
            async with (
                asyncio.timeout(20),
                session.get(f"{edge.url}/events/a", headers=headers) as answer,
            ):
                # The replay comes together with the head, the next event on its own.
                await has(answer, b"data: %d\n\n" % number)
                await publish(b"next")
                await has(answer, b"data: next\n\n")


async def has(answer: aiohttp.ClientResponse, wanted: bytes) -> None:
    """Read a body until it ends with these bytes."""
    body = b""
    while not body.endswith(wanted):
        body += await answer.content.readany()


@pytest.mark.parametrize("path", ["/events/a", "/slices/current/a"])
async def test_a_stream_without_an_origin_tells_its_reader_to_come_back(
    session: aiohttp.ClientSession, tmp_path: Path, path: str
) -> None:
    async with varnish(tmp_path, f"127.0.0.1:{free_port()}") as edge:
        wants = {"Accept": "text/event-stream", "Last-Event-ID": "1795566071928-0"}
        answer = await ask(session, edge.url + path, wants)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        retry, rest = answer.body.split(b"\n", 1)
        assert 1000 <= int(retry.removeprefix(b"retry: ")) <= 5000
        assert rest == (
            b'id: 1795566071928-0\nevent: unavailable\ndata: {"reason":"unreachable"}\n\n'
        )
        bare = await ask(session, edge.url + path, {"Accept": "text/event-stream"})
        assert b"id:" not in bare.body
        assert b"event: unavailable" in bare.body
        assert (await ask(session, edge.url + path)).status == 503

"""The shipped VCL: what Varnish keeps, shares, purges, refuses, and says without an origin."""

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.edge.running import origin_of, varnish
from tests.edge.test_nginx import ask, settings
from tests.running import Valkey, free_port, worker


async def test_a_snapshot_is_kept_once_for_each_coding_and_shared_while_it_is_fetched(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(edge_max_age_seconds=60)
    async with worker(redis.url, life) as origin, varnish(tmp_path, origin_of(origin.url)) as edge:
        await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
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

        await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
        assert await state() == "1"
        await ask(session, f"{origin.url}/publish/a", method="POST", data=b"2")
        assert await state() == "1"
        purged = await ask(session, url, {"xkey-softpurge": "ch.a"}, "PURGE")
        assert purged.status == 200
        assert await state() == "2"
        published = await ask(session, f"{origin.url}/publish/a", method="POST", data=b"3")
        refresh = {"X-Refresh": "1", "Minimum-Position": orjson.loads(published.body)["id"]}
        assert orjson.loads((await ask(session, url, refresh)).body)["state"] == "3"
        assert await state() == "3"
        other = await ask(session, url, {"xkey-softpurge": "ch.b"}, "PURGE")
        assert other.status == 200
        assert (await ask(session, url)).cache == "HIT"


async def test_strangers_may_neither_purge_nor_refresh_nor_write(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    def closed(text: str) -> str:
        assert '"127.0.0.1";\n    "::1";' in text
        return text.replace('"127.0.0.1";\n    "::1";', '"192.0.2.1";')

    life = settings(edge_max_age_seconds=600)
    async with (
        worker(redis.url, life) as origin,
        varnish(tmp_path, origin_of(origin.url), edit=closed) as edge,
    ):
        await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
        url = f"{edge.url}/snapshots/a"
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
            answer = await ask(session, edge.url + path, method=method, data=b"1")
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
            await ask(session, f"{origin.url}/publish/a", method="POST", data=b"1")
            async with asyncio.timeout(20):
                while (await ask(session, url)).status != 200:
                    await asyncio.sleep(0.05)
        ages = []
        async with asyncio.timeout(30):
            while (answer := await ask(session, url)).status == 200:
                ages.append(int(answer.headers["Age"]))
                await asyncio.sleep(0.05)
        assert max(ages) > 1  # Older than its life, for the gateway was away.
        assert answer.status == 503


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

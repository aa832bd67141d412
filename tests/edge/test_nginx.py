"""The shipped NGINX configuration: what it caches, shares, refuses, and says without an origin."""

import asyncio
import os
import re
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest
from yarl import URL

from gateway.cli.nginx_config import Edge as Places
from gateway.cli.nginx_config import render
from gateway.settings import Settings
from tests.edge.running import nginx, origin_of, publish
from tests.running import Valkey, free_port, until, worker

ALL = "br, zstd, gzip"


class Answer(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cache(self) -> str:
        return self.headers.get("X-Cache", "")


async def ask(
    session: aiohttp.ClientSession,
    url: str | URL,
    headers: Mapping[str, str] | None = None,
    method: str = "GET",
    data: bytes | None = None,
) -> Answer:
    async with session.request(method, url, headers=headers, data=data) as response:
        return Answer(response.status, response.headers, await response.read())


def has_ipv6() -> bool:
    """Tell whether loopback has an address of IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def settings(**namespace: Any) -> dict[str, Any]:
    return {"namespaces": {"default": namespace}}


@pytest.mark.parametrize("kind", ["url", "tls_url"])
async def test_a_snapshot_is_fetched_once_and_revalidated_when_it_is_old(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    life = settings(edge_max_age_seconds=1, stale_while_revalidate_seconds=0)
    async with worker(redis.url, life) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a/b", "1")
        url = f"{getattr(edge, kind)}/snapshots/a/b"
        answers = [await ask(session, url) for _ in range(3)]
        assert [one.cache for one in answers][:1] == ["MISS"]
        assert "HIT" in [one.cache for one in answers]
        assert len({one.body for one in answers}) == 1
        counters = origin.gateway.snapshots.counters
        async with asyncio.timeout(20):
            while (await ask(session, url)).cache != "REVALIDATED":
                await asyncio.sleep(0.05)
        assert counters.not_modified >= 1
        tag = answers[0].headers["ETag"]
        assert not tag.startswith("W/")
        held = await ask(session, url, {"If-None-Match": tag})
        assert (held.status, held.body) == (304, b"")


async def test_many_who_miss_at_once_are_one_request(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    # The lock's waiters look twice a second: what is fetched for them lives for longer than that.
    life = settings(edge_max_age_seconds=60)
    async with worker(redis.url, life) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a", "1")
        url = f"{edge.url}/snapshots/a"
        answers = await asyncio.gather(*[ask(session, url) for _ in range(100)])
        assert {one.status for one in answers} == {200}
        assert origin.gateway.requests["/snapshots"] == 1


async def test_a_crowd_does_not_queue_for_what_may_not_be_kept(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    live = settings(edge_max_age_seconds=0)
    async with worker(redis.url, live) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a", "1")
        url = f"{edge.url}/snapshots/a"
        # Let through one by one, twice a second, 80 would take 40 s.
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*[ask(session, url) for _ in range(80)])
        assert {(one.status, one.body) for one in answers} == {(200, answers[0].body)}
        assert origin.gateway.requests["/snapshots"] == 80


async def test_each_coding_is_kept_once_however_it_is_asked_for(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(edge_max_age_seconds=60)
    async with worker(redis.url, life) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a", '{"n":[1,2,3]}')
        spellings = {
            "br": ("br", "gzip, deflate, br", "gzip, deflate, br, zstd", "BR;q=0.5, gzip"),
            "zstd": ("zstd", "gzip,zstd"),
            "gzip": ("gzip", "gzip, deflate", "x, gzip;q=1.0"),
            "identity": ("identity", "", "br;q=0", "*", "compress"),
        }
        for coding, spelled in spellings.items():
            for one in spelled:
                answer = await ask(session, f"{edge.url}/snapshots/a", {"Accept-Encoding": one})
                assert answer.headers.get("Content-Encoding", "identity") == coding, one
        assert origin.gateway.requests["/snapshots"] == 4


async def test_stale_answers_end_when_their_headers_say_so(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(
        edge_max_age_seconds=1, stale_while_revalidate_seconds=1, stale_if_error_seconds=3
    )
    port = free_port()
    async with nginx(tmp_path, f"127.0.0.1:{port}") as edge:
        url = f"{edge.url}/snapshots/a"
        async with worker(redis.url, life, port=port) as origin:
            await publish(session, origin, "a", "1")
            first = await ask(session, url)
            assert first.status == 200
        seen: list[str] = []
        async with asyncio.timeout(30):
            while (answer := await ask(session, url)).status == 200:
                seen.append(answer.cache)
                await asyncio.sleep(0.05)
        # It outlived its origin for a while, and not for ever.
        assert "STALE" in seen
        assert answer.status == 502


async def test_only_reading_is_offered_to_readers(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        for method, path, status in (
            ("POST", "/publish/a", 404),
            ("POST", "/events/a", 403),
            ("DELETE", "/channels/a", 404),
            ("DELETE", "/snapshots/a", 403),
            ("GET", "/channels", 404),
            ("GET", "/metrics", 404),
            ("GET", "/console", 404),
            ("GET", "/livez", 404),
        ):
            for url in (edge.url, edge.tls_url):
                answer = await ask(session, url + path, method=method, data=b"1")
                assert answer.status == status, (method, path)
        assert not origin.gateway.requests
        published = await ask(session, f"{edge.internal_url}/publish/a", method="POST", data=b"1")
        assert published.status == 200
        assert (await ask(session, f"{edge.internal_url}/metrics")).status == 200


async def test_a_refresh_comes_from_within_and_replaces_one_coding(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    life = settings(edge_max_age_seconds=600)
    async with worker(redis.url, life) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        await publish(session, origin, "a", "old")
        for coding in ("br", "identity"):
            await ask(session, f"{edge.url}/snapshots/a", {"Accept-Encoding": coding})
        published = await publish(session, origin, "a", "new")
        refresh = {
            "X-Refresh": "1",
            "Minimum-Position": published,
            "Accept-Encoding": "identity",
        }
        # From without it is a request like any other.
        outside = await ask(session, f"{edge.url}/snapshots/a", refresh)
        assert (outside.cache, orjson.loads(outside.body)["state"]) == ("HIT", "old")
        inside = await ask(session, f"{edge.internal_url}/snapshots/a", refresh)
        assert (inside.cache, orjson.loads(inside.body)["state"]) == ("BYPASS", "new")
        after = await ask(session, f"{edge.url}/snapshots/a", {"Accept-Encoding": "identity"})
        assert (after.cache, orjson.loads(after.body)["state"]) == ("HIT", "new")
        other = await ask(session, f"{edge.url}/snapshots/a", {"Accept-Encoding": "br"})
        assert other.headers["ETag"] != after.headers["ETag"]
        assert other.cache == "HIT"
        # A reader cannot make the gateway wait for a position that nobody ever had.
        far = {"Minimum-Position": "9007199254740991-0", "Accept-Encoding": "gzip"}
        assert (await ask(session, f"{edge.url}/snapshots/a", far)).status == 200


@pytest.mark.parametrize("path", ["/events/a", "/slices/current/a"])
async def test_a_stream_without_an_origin_tells_its_reader_to_come_back(
    session: aiohttp.ClientSession, tmp_path: Path, path: str
) -> None:
    async with nginx(tmp_path, f"127.0.0.1:{free_port()}") as edge:
        wants = {"Accept": "text/event-stream", "Last-Event-ID": "1795566071928-0"}
        answer = await ask(session, edge.url + path, wants)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store, no-transform"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        retry, rest = answer.body.split(b"\n", 1)
        assert 1000 <= int(retry.removeprefix(b"retry: ")) <= 4500
        assert rest == (
            b'id: 1795566071928-0\nevent: unavailable\ndata: {"reason":"unreachable"}\n\n'
        )
        bare = await ask(session, edge.url + path, {"Accept": "text/event-stream"})
        assert b"id:" not in bare.body
        for injected in ("1-0\tevent: x", "x" * 1000, "1-0 "):
            odd = await ask(session, edge.url + path, {**wants, "Last-Event-ID": injected})
            assert odd.body.count(b"\n") <= 5
            assert b"event: x" not in odd.body
        assert (await ask(session, edge.url + path)).status == 503
        # Slices are fetched by their numbers by programs, which can read a status.
        numbered = await ask(session, f"{edge.url}/slices/e/1/a", {"Accept": "text/event-stream"})
        assert numbered.status == 502


async def test_an_address_is_believed_only_from_trusted_proxies(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url) as origin:
        for trusted, seen in ((("127.0.0.1",), "192.0.2.7"), (("192.0.2.0/24",), "127.0.0.1")):
            directory = tmp_path / seen
            async with nginx(directory, origin_of(origin.url), trusted=trusted) as edge:
                await ask(session, f"{edge.url}/snapshots/a", {"X-Forwarded-For": "192.0.2.7"})
                log = directory / "access.log"
                await until(log.read_text)
                assert log.read_text().startswith(f"{seen} ")


async def test_the_internal_address_goes_by_who_connects_whatever_headers_say(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    def shut(text: str) -> str:
        assert "        allow 127.0.0.1;" in text
        return text.replace("        allow 127.0.0.1;", "        allow 192.0.2.7;")

    async with (
        worker(redis.url) as origin,
        nginx(tmp_path, origin_of(origin.url), trusted=("127.0.0.1",), edit=shut) as edge,
    ):
        forged = {"X-Forwarded-For": "192.0.2.7"}
        for method, path in (("GET", "/channels"), ("POST", "/publish/a"), ("GET", "/snapshots/a")):
            answer = await ask(session, edge.internal_url + path, forged, method, b"1")
            assert answer.status == 403, path
        assert not origin.gateway.requests


async def test_browsers_are_offered_http_2(tmp_path: Path) -> None:
    async with nginx(tmp_path, f"127.0.0.1:{free_port()}") as edge:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sk", "-o", "/dev/null", "-w", "%{http_version}", f"{edge.tls_url}/",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert (await process.communicate())[0] == b"2"


async def test_a_port_alone_is_open_over_ipv4_and_ipv6(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    http, https = free_port(), free_port()
    printed = render(Settings(), Places(http=str(http), https=str(https)))
    lines = re.findall(rf"^ *listen [^;]*\b(?:{http}|{https})\b.*;\n", printed, re.MULTILINE)
    assert len(lines) == 4

    def both(text: str) -> str:
        # Beside the addresses of the test's own, for which it waits.
        return text.replace("        listen ", f"{''.join(lines)}        listen ", 1)

    async with nginx(tmp_path, f"127.0.0.1:{free_port()}", edit=both):
        for url in (f"http://{{}}:{http}/", f"https://{{}}:{https}/"):
            for host in ("127.0.0.1", "[::1]"):
                assert (await ask(session, url.format(host))).status == 404


async def test_what_a_cache_keeps_of_a_deleted_channel_goes_with_its_files(
    redis: Valkey, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with worker(redis.url) as origin, nginx(tmp_path, origin_of(origin.url)) as edge:
        for data in (b"1", b"2"):
            await ask(session, f"{origin.url}/publish/a", method="POST", data=data)
        first = await ask(session, f"{origin.url}/history/a?limit=1")
        page = f"{edge.url}/history/a?after={orjson.loads(first.body)['next']}&limit=1"
        assert (await ask(session, page)).cache == "MISS"
        await ask(session, f"{origin.url}/channels/a", method="DELETE")
        # A full page is kept for as long as the ring could have vouched for it.
        kept = await ask(session, page)
        assert (kept.status, kept.cache) == (200, "HIT")
        for entry in (edge.directory / "cache").iterdir():
            shutil.rmtree(entry)
        # Files that are open stay readable: the new processes have none.
        os.kill(int((edge.directory / "nginx.pid").read_text()), signal.SIGHUP)
        async with asyncio.timeout(20):
            while (answer := await ask(session, page)).cache == "HIT":
                assert answer.status == 200
                await asyncio.sleep(0.05)
        assert (answer.status, answer.cache) == (404, "MISS")
        # And what comes afterwards is kept again.
        await publish(session, origin, "b", "1")
        later = f"{edge.url}/history/b?after={orjson.loads(first.body)['next']}&limit=1"
        assert [(await ask(session, later)).cache for _ in range(2)] == ["MISS", "HIT"]

"""`sse-gateway doctor`: silent about the shipped configuration, and precise about each fault."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.doctor.examine import Examination, examine
from gateway.doctor.finding import Finding, Level
from tests.edge.running import Edge, nginx, origin_of, varnish
from tests.running import Valkey, Worker, free_port, worker

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "streams": {"heartbeat_seconds": 1.0},
    "namespaces": {"default": {"edge_max_age_seconds": 60, "slice_seconds": 600,
                               "ring_age_seconds": 3600}},
}  # fmt: skip


@pytest.fixture
async def origin(redis: Valkey, session: aiohttp.ClientSession) -> AsyncIterator[Worker]:
    async with worker(redis.url, SETTINGS) as running:
        for number in range(5):
            async with session.post(f"{running.url}/publish/a/b", data=b"%d" % number) as answer:
                assert answer.status == 200
        yield running


async def look(url: str, **more: Any) -> list[Finding]:
    given = {"patience": 1.0, "idle": 2.5, "insecure": True, **more}
    return await examine(Examination(url, "a/b", **given))


def faults(found: list[Finding]) -> dict[str, Finding]:
    return {one.check: one for one in found if one.level is Level.FAULT}


def broken(*changes: tuple[str, str]) -> Callable[[str], str]:
    """Return what changes the shipped configuration; each change must apply."""

    def edit(text: str) -> str:
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        return text

    return edit


async def test_the_shipped_nginx_has_no_fault(origin: Worker, tmp_path: Path) -> None:
    async with nginx(tmp_path, origin_of(origin.url)) as edge:
        found = await look(edge.tls_url)
        assert [one for one in found if one.level is not Level.OK] == []
        assert {one.check for one in found} >= {
            "http2", "buffering", "no-transform", "first-block", "idle", "compression", "vary",
            "etag", "cached", "clock", "stale", "query", "collapsing", "slices", "cors",
        }  # fmt: skip
        plain = await look(edge.url)
        assert [one.check for one in plain if one.level is not Level.OK] == ["http2"]


async def test_the_shipped_varnish_has_no_fault(origin: Worker, tmp_path: Path) -> None:
    async with varnish(tmp_path, origin_of(origin.url)) as edge:
        assert faults(await look(edge.url)) == {}


REPLACED = "location /events {"


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (
            "stream-compression",
            [("gzip off;", "gzip on; gzip_proxied any; gzip_types text/event-stream;")],
        ),
        (
            "no-transform",
            [(REPLACED, f"{REPLACED} proxy_hide_header Cache-Control;"
              " add_header Cache-Control no-cache;")],
        ),
        ("idle", [("proxy_read_timeout 60s;", "proxy_read_timeout 500ms;")]),
        ("cors", [(REPLACED, f"{REPLACED} proxy_hide_header Access-Control-Allow-Origin;")]),
        ("first-block", [(REPLACED, f"{REPLACED} sub_filter_types text/event-stream; "
                          "sub_filter_once off; sub_filter 'retry: 2000' 'x: 1';")]),
        ("http-1.0", [("proxy_http_version 1.1;", "proxy_http_version 1.0;")]),
        ("etag", [("http {\n", "http {\n proxy_hide_header ETag;\n")]),
        ("vary", [("http {\n", "http {\n proxy_hide_header Vary;\n")]),
        ("cache-key", [('"$request_uri $coding"', '"$request_uri"')]),
        ("query", [('"$request_uri $coding"', '"$uri $coding"')]),
        ("cached", [("proxy_ignore_headers Vary;",
                     "proxy_ignore_headers Vary Cache-Control X-Accel-Expires;")]),
        ("cache-control", [("add_header X-Cache", "proxy_hide_header Cache-Control; "
                            "add_header Cache-Control 'public, max-age=60'; add_header X-Cache")]),
        ("cors-snapshots", [("add_header X-Cache",
                             "proxy_hide_header Access-Control-Allow-Origin; add_header X-Cache")]),
    ],
)  # fmt: skip
async def test_each_fault_of_an_nginx_is_found_and_named(
    origin: Worker, tmp_path: Path, check: str, changes: list[tuple[str, str]]
) -> None:
    async with nginx(tmp_path, origin_of(origin.url), edit=broken(*changes)) as edge:
        found = faults(await look(edge.url))
        assert check in found
        assert found[check].mend
        # Nothing else is blamed, but for what the change itself brings with it.
        assert set(found) <= {check, *ALSO.get(check, ())}


ALSO = {
    "first-block": ("slices",),
    "http-1.0": ("idle",),
    "idle": ("slices",),
    "cors": (),
    "stream-compression": ("etag", "buffering"),
    "query": ("collapsing",),
    "cache-control": ("slices",),
}


async def test_a_stream_that_is_held_back_is_found(origin: Worker, tmp_path: Path) -> None:
    edit = broken(
        ("proxy_buffering off;\n            proxy_cache off;", "proxy_cache off;"),
        (REPLACED, f"{REPLACED} proxy_ignore_headers X-Accel-Buffering;"),
    )  # fmt: skip
    async with nginx(tmp_path, origin_of(origin.url), edit=edit) as edge:
        found = faults(await look(edge.url))
        assert set(found) == {"buffering"}
        assert any("proxy_buffering off" in line for line in found["buffering"].mend)


async def test_a_dead_origin_behind_a_careless_proxy_is_found(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    careless = broken(("error_page 502 503 504 = @unavailable;", ""))
    async with nginx(tmp_path / "careless", dead, edit=careless) as edge:
        assert set(faults(await look(edge.url))) == {"dead-origin"}
    async with nginx(tmp_path / "careful", dead) as edge:
        assert "dead-origin" not in faults(await look(edge.url))


async def test_a_clock_that_is_off_is_found(origin: Worker, tmp_path: Path) -> None:
    wrong = 'unset resp.http.xkey;\n    set resp.http.Date = "Tue, 01 Jan 2030 00:00:00 GMT";'
    edit = broken(("unset resp.http.xkey;", wrong))
    async with varnish(tmp_path, origin_of(origin.url), edit=edit) as edge:
        assert set(faults(await look(edge.url))) == {"clock"}


async def test_a_server_without_http_2_is_warned_of(origin: Worker, tmp_path: Path) -> None:
    async with nginx(
        tmp_path, origin_of(origin.url), edit=broken((" ssl http2;", " ssl;"))
    ) as edge:
        found = await look(edge.tls_url)
        assert [one.check for one in found if one.level is not Level.OK] == ["http2"]


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "doctor", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_exit_status_and_the_json_are_for_scripts(origin: Worker, tmp_path: Path) -> None:
    common = ("--channel", "a/b", "--idle", "1.5", "--insecure")
    edge: Edge
    async with nginx(tmp_path / "good", origin_of(origin.url)) as edge:
        code, out, _ = await run(edge.tls_url, *common, "--json")
        document = json.loads(out)
        assert (code, document["worst"], document["channel"]) == (0, "ok", "a/b")
        assert all(set(one) == {"check", "level", "text", "mend"} for one in document["findings"])
    edit = broken(("http {\n", "http {\n proxy_hide_header ETag;\n"))
    async with nginx(tmp_path / "bad", origin_of(origin.url), edit=edit) as edge:
        code, out, _ = await run(edge.url, *common)
        assert code == 1
        assert "proxy_hide_header ETag" in out
    code, _, err = await run(f"http://127.0.0.1:{free_port()}", *common)
    assert code == 2
    assert "Error:" in err

"""What all of the interface has in common: problems, protected namespaces, the base path."""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.running import until
from tests.web.client import EVENT_SOURCE, NDJSON, Client, event, first_id, gap_of
from tests.web.conftest import Start


async def test_unknown_paths_and_methods_are_problems(client: Client) -> None:
    for method, path, status, allow in (
        ("GET", "/nothing", 404, None),
        ("GET", "/events/", 404, None),
        ("GET", "/slices/nothing", 404, None),
        ("PUT", "/publish/a", 405, {"POST"}),
        ("GET", "/publish", 405, {"POST"}),
        ("POST", "/snapshots/a", 405, {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/history/a", 405, {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/channels", 405, {"GET", "HEAD"}),
        ("GET", "/console/nothing.js", 404, None),
        ("GET", "/console/console.py", 404, None),
    ):
        answer = await client.ask(method, path)
        assert answer.status == status, (method, path)
        assert answer.problem["detail"].startswith(f"{method} {path}")
        assert answer.headers["Cache-Control"] == "no-store"
        if allow is not None:
            assert set(answer.headers["Allow"].split(",")) == allow, (method, path)


async def test_public_errors_can_be_read_from_any_site(client: Client) -> None:
    for path in ("/events/a?x=1", "/snapshots/a?x=1", "/history/a?x=1", "/snapshots/nobody"):
        answer = await client.get(path, {"Origin": "https://other.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*", path
        assert answer.problem["detail"]


async def test_long_and_odd_values_come_back_short_and_as_json(client: Client) -> None:
    long = "x" * 4000
    for path in (
        f"/events/a?{long}=1",
        f"/events/a?since={long}",
        f"/snapshots/{long}",
        f"/history/a?limit={long}",
        "/events/a?%ff=%fe",
        "/events/a%ff",
        "/snapshots/%00",
        "/history/%ED%A0%80",
        "/channels?after=%ff&limit=0",
    ):
        answer = await client.get(path, EVENT_SOURCE)
        assert answer.status in (400, 422), path
        assert len(answer.body) < 1500, path
        assert answer.problem["rule"]


async def test_whatever_is_sent_the_answer_is_never_a_failure_of_ours(client: Client) -> None:
    odd = [b"\xff\xfe", b'"', b"*,*", b"W/", b"9" * 5000, b";q=1", b"a\x7fb"]
    names = [
        b"Last-Event-ID", b"If-None-Match", b"If-Match", b"Idempotency-Key", b"Accept-Encoding",
        b"Accept", b"Content-Type", b"Origin", b"Sec-Fetch-Site", b"If-Modified-Since", b"Range",
    ]  # fmt: skip
    await client.publish("a", b"1")
    await client.settle()
    address = urlsplit(client.worker.url)

    async def ask(method: bytes, path: bytes, header: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = b"1" if method == b"POST" else b""
        writer.write(
            b"%b %b HTTP/1.0\r\nHost: x\r\n%b\r\nContent-Length: %d\r\n\r\n%b"
            % (method, path, header, len(body), body)
        )
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line.split(b" ")[1] if line else b"closed"

    requests = [
        ask(method, path, name + b": " + value)
        for method, path in (
            (b"GET", b"/events/a"),
            (b"GET", b"/snapshots/a"),
            (b"GET", b"/history/a"),
            (b"POST", b"/publish/a"),
            (b"POST", b"/publish"),
        )
        for name in names
        for value in odd
    ]
    statuses = await asyncio.gather(*requests)
    assert {status for status in statuses if status >= b"5"} == set()
    await until(lambda: client.gateway.hub.subscribers == 0)


# -- protected namespaces ---------------------------------------------------------------------


async def test_a_protected_namespace_answers_nothing(start: Start) -> None:
    insider = await start({"namespaces": {"secret": {}}})
    await insider.publish("secret/a", b"1")
    await insider.publish("public", b"1")
    client = await start({"namespaces": {"secret": {"visibility": "protected"}}})
    await client.settle()
    line = b'{"channel":"%b","data":1}'
    for method, path, body, headers in (
        ("GET", "/events/%s", None, EVENT_SOURCE),
        ("GET", "/events?channel=%s", None, EVENT_SOURCE),
        ("GET", "/events/secret/*", None, EVENT_SOURCE),
        ("HEAD", "/events/%s", None, EVENT_SOURCE),
        ("GET", "/snapshots/%s", None, {}),
        ("HEAD", "/snapshots/%s", None, {}),
        ("GET", "/history/%s", None, {}),
        ("POST", "/publish/%s", b"1", {}),
        ("POST", "/publish", line, NDJSON),
        ("DELETE", "/channels/%s", None, {}),
    ):
        told = []
        for name in ("secret/a", "secret/x"):
            sent = body if body is None or b"%b" not in body else body % name.encode()
            answer = await client.ask(method, path % name if "%s" in path else path, headers, sent)
            assert answer.status == 403, (method, path)
            # For this caller only: no shared cache may give it to another.
            assert answer.headers["Cache-Control"] == "private, no-store"
            assert "1" not in answer.body.decode().replace("secret/a", "")
            told.append(answer.body)
        # A channel that is there and one that is not look the same.
        assert told[0] == told[1]
    listed = (await client.get("/channels")).json["channels"]
    assert [entry["channel"] for entry in listed] == ["public"]
    assert (await client.get("/channels?prefix=secret")).json["channels"] == []
    assert b"secret/a" not in (await client.get("/metrics")).body


# -- base path --------------------------------------------------------------------------------


async def test_everything_stands_below_the_base_path(
    start: Start, session: aiohttp.ClientSession
) -> None:
    client = await start(
        {
            "base_path": "/live/v1",
            "namespaces": {"default": {"ring_limit_events": 1, "ring_spares_young": False}},
        }
    )
    ids = [await client.publish("a", b"%d" % n) for n in range(3)]
    await client.settle()
    async with client.follow("/events/a", ids[0]) as stream:
        await first_id(stream)
        gap = gap_of(await stream.next())
        assert gap["snapshot"] == "/live/v1/snapshots/a"
        ended = await client.ask("DELETE", "/channels/a")
        assert ended.status == 200
        assert gap_of(await stream.next())["snapshot"] == "/live/v1/snapshots/a"
        await client.publish("a", b"1")
        assert (await event(stream))[2] == "1"
    for path in (
        "/snapshots/a", "/history/a", "/channels", "/livez", "/readyz", "/metrics", "/console",
    ):  # fmt: skip
        assert (await client.get(path)).status == 200, path
    answer = await client.get("/snapshots/a")
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    refused = await client.post("/events/a", b"1")
    assert refused.problem["detail"].endswith("POST /live/v1/publish/a")
    assert refused.headers["Access-Control-Allow-Origin"] == "*"
    root = client.worker.url.removesuffix("/live/v1")
    for path in ("/snapshots/a", "/livez", "/console", "/", "/live/v1x/livez"):
        async with session.get(root + path) as outside:
            assert outside.status == 404, path


@pytest.mark.parametrize("base_path", ["", "/live", "/live/v1"])
async def test_the_address_leads_to_the_console_and_its_files(start: Start, base_path: str) -> None:
    client = await start({"base_path": base_path})
    for path in ("/", "") if base_path else ("/",):
        answer = await client.get(path)
        assert answer.status == 302
        home = client.url(path).join(URL(answer.headers["Location"]))
        assert str(home) == f"{client.worker.url}/console", path
    page = await client.get("/console")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    text = page.body.decode()
    links = [part.split('"')[0] for part in text.split('src="')[1:] + text.split('href="')[1:]]
    files = [link for link in links if not link.startswith(("data:", "http", "#"))]
    assert files
    for link in files:
        target = client.url("/console").join(URL(link))
        asset = await client.get(str(target).removeprefix(client.worker.url))
        assert asset.status == 200, link
        assert asset.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_problem_is_valid_json_with_the_members_of_its_kind(client: Client) -> None:
    answer = await client.post("/publish/a?type=%0A", b"1")
    assert orjson.loads(answer.body) == {
        "type": "about:blank",
        "title": "Invalid value",
        "status": 422,
        "detail": "type: must not contain CR, LF or NUL",
        "field": "type",
        "value": "\n",
        "rule": "must not contain CR, LF or NUL",
    }

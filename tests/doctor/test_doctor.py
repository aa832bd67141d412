"""`sse-gateway doctor`: silent about the shipped configurations, and precise about each fault."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.doctor.finding import Finding, Level
from gateway.doctor.greeting import greet
from gateway.doctor.life import check_life, judge_life, oldest
from gateway.doctor.pages import check_collapsing
from gateway.doctor.probe import Probe
from gateway.doctor.slices import HELD_SECONDS, check_quiet_slice, current_slice
from gateway.protocol.position import ORIGIN, Position
from tests.doctor.breaking import HTML, Edit, both, cut_out, inside, replaced
from tests.doctor.looking import (
    PATIENT,
    SETTINGS,
    beyond_ok,
    faults,
    look,
    probing,
    publish,
)
from tests.edge.running import nginx, origin_of, varnish
from tests.running import ENDLESS, Worker, free_port, until, valkey, worker

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_shipped_nginx_has_no_fault(origin: Worker, tmp_path: Path) -> None:
    async with nginx(tmp_path, origin_of(origin.url)) as edge:
        found = await look(edge.tls_url, publish_url=origin.url, **PATIENT)
        assert [one for one in found if one.level is not Level.OK] == []
        assert {one.check for one in found} == {
            "http2", "gateway", "no-transform", "stream-compression", "cors", "buffering",
            "first-block", "idle", "compression", "vary", "etag", "cached", "clock", "stale",
            "cors-snapshots", "life", "query", "collapsing", "long-poll", "slices", "no-store",
            "delivery",
        }  # fmt: skip
        assert len([one for one in found if one.check == "delivery"]) == 3
        assert beyond_ok(await look(edge.url, **PATIENT)) == ["http2"]


async def test_the_shipped_varnish_has_no_fault(origin: Worker, tmp_path: Path) -> None:
    async with varnish(tmp_path, origin_of(origin.url)) as edge:
        found = await look(edge.url, publish_url=origin.url, **PATIENT)
        assert faults(found) == {}
        assert len([one for one in found if one.check == "delivery"]) == 3


KEY = '"$request_uri $coding"'
HIDDEN = "proxy_hide_header Cache-Control; add_header Cache-Control"
Found = dict[str, dict[str, Finding]]
BROKEN: dict[str, tuple[set[str], Edit]] = {
    "a stream is compressed on the way": (
        {"stream-compression"},
        replaced("gzip off;", "gzip on; gzip_proxied any; gzip_min_length 1; "
                 "gzip_types text/event-stream;"),
    ),
    "a stream's head is rewritten": (
        {"no-transform"}, inside("/events", f"{HIDDEN} no-cache;"),
    ),
    "a stream says that it is something else": (
        {"content-type"},
        inside("/events", "proxy_hide_header Content-Type; add_header Content-Type text/plain;"),
    ),
    "a stream is refused": ({"stream"}, inside("/events", "return 401;")),
    "a stream is answered 502": ({"dead-origin"}, inside("/events", "return 502;",
                                                        without="error_page")),
    "a quiet slice alone is answered 504": (
        {"dead-origin"}, inside("/slices/", "if ($uri ~ /doctor-) { return 504; }"),
    ),
    "streams may not be read from other sites": (
        {"cors"}, inside("/events", "proxy_hide_header Access-Control-Allow-Origin;"),
    ),
    "retry: is lost": (
        {"first-block"},
        inside("/events", "sub_filter_types text/event-stream; sub_filter_once off; "
               "sub_filter 'retry: 2000' 'x: 1';"),
    ),
    "slices may be played again": (
        {"slices"}, inside("/slices/", f'{HIDDEN} "public, max-age=30";'),
    ),
    "what says no-store is kept": (
        {"no-store"},
        inside("/slices/", "proxy_ignore_headers Cache-Control X-Accel-Expires; "
               "proxy_cache_valid any 60s;"),
    ),
    "a page that cannot be is kept": (
        {"no-store"}, inside("/history", "proxy_ignore_headers Cache-Control X-Accel-Expires; "
                             "proxy_cache_valid any 60s;"),
    ),
    "the gateway is asked over HTTP/1.0": (
        {"http-1.0"}, replaced("proxy_http_version 1.1;", "proxy_http_version 1.0;"),
    ),
    "snapshots have no ETag": ({"etag"}, inside("/snapshots", "proxy_hide_header ETag;")),
    "snapshots are rewritten": (
        {"etag"},
        inside("/snapshots", "sub_filter_types application/json; sub_filter_last_modified on; "
               "sub_filter xyz abc;"),
    ),
    "snapshots are never 304": (
        {"etag"}, inside("/snapshots", "proxy_hide_header ETag; add_header ETag '\"1\"';"),
    ),
    "snapshots have no Vary": ({"vary"}, inside("/snapshots", "proxy_hide_header Vary;")),
    "snapshots may not be read from other sites": (
        {"cors-snapshots"},
        inside("/snapshots", "proxy_hide_header Access-Control-Allow-Origin;"),
    ),
    "codings are mixed up": ({"cache-key"}, replaced(KEY, '"$request_uri"')),
    "nothing is cached": ({"cached"}, inside("/snapshots", "proxy_no_cache 1; "
                                             "proxy_cache_bypass 1;")),
    "the life of snapshots is another": (
        {"cache-control"}, inside("/snapshots", f'{HIDDEN} "public, max-age=60";'),
    ),
    "a snapshot is too old": ({"stale", "clock"}, inside("/snapshots", "add_header Age 99999;")),
    "a 404 is replaced": (
        {"error-pages"},
        both(inside("/snapshots", "proxy_intercept_errors on; error_page 404 = @html;"),
             replaced("        location / {\n", f"        location @html {{ {HTML} }}\n"
                      "        location / {\n")),
    ),
    "long-polls are cut": (
        {"long-poll"},
        inside("/history", "proxy_read_timeout 500ms;", without="proxy_read_timeout"),
    ),
    "long-polls may not be kept": (
        {"long-poll"}, inside("/history", f"{HIDDEN} no-store;"),
    ),
}  # fmt: skip


WARNED: dict[str, tuple[set[str], Edit]] = {
    "snapshots come in one coding": (
        {"compression"}, inside("/snapshots", "proxy_set_header Accept-Encoding identity;",
                                without="proxy_set_header Accept-Encoding"),
    ),
    "nothing tells of the cache": (
        {"cached"}, inside("/snapshots", "proxy_cache off;", without="proxy_cache add_header"),
    ),
}  # fmt: skip


async def found_behind(
    origin: Worker,
    directory: Path,
    edits: Mapping[str, Edit],
    level: Level = Level.FAULT,
    idle: float = 1.0,
) -> Found:
    """Examine many broken configurations, some at a time, for most of it is waiting."""
    turns = asyncio.Semaphore(12)

    async def one(number: int, edit: Edit) -> dict[str, Finding]:
        async with (
            turns,
            nginx(directory / str(number), origin_of(origin.url), edit=edit) as edge,
        ):
            found = await look(edge.url, patience=10.0, idle=idle)
            return {one.check: one for one in found if one.level is level}

    found = await asyncio.gather(*[one(*pair) for pair in enumerate(edits.values())])
    return dict(zip(edits, found, strict=True))


async def test_each_fault_of_an_nginx_is_found_and_no_other(origin: Worker, tmp_path: Path) -> None:
    edits = {case: edit for case, (_, edit) in BROKEN.items()}
    found = await found_behind(origin, tmp_path, edits)
    expected = {case: checks for case, (checks, _) in BROKEN.items()}
    assert {case: set(checks) for case, checks in found.items()} == expected
    assert all(one.mend for checks in found.values() for one in checks.values())


async def test_codings_that_are_mixed_up_are_found_whatever_readers_asked_for_before(
    origin: Worker, tmp_path: Path
) -> None:
    edit = replaced(KEY, '"$request_uri"')
    async with (
        nginx(tmp_path, origin_of(origin.url), edit=edit) as edge,
        aiohttp.ClientSession() as session,
    ):
        headers = {"Accept-Encoding": "identity"}
        async with session.get(f"{edge.url}/snapshots/a/b", headers=headers) as answer:
            assert "Content-Encoding" not in answer.headers
        assert set(faults(await look(edge.url, **PATIENT))) == {"cache-key"}


async def test_what_costs_more_than_it_must_is_warned_of(origin: Worker, tmp_path: Path) -> None:
    edits = {case: edit for case, (_, edit) in WARNED.items()}
    found = await found_behind(origin, tmp_path, edits, Level.WARNING)
    expected = {case: {*checks, "http2"} for case, (checks, _) in WARNED.items()}
    assert {case: set(checks) for case, checks in found.items()} == expected


PARAMETERS = ("after", "limit", "wait", "cursor")


def keyed_without(parameter: str) -> Edit:
    rest = " ".join(f"$arg_{name}" for name in PARAMETERS if name != parameter)
    return inside("/history", f'proxy_cache_key "$uri {rest} $coding";', without="proxy_cache_key")


async def test_a_parameter_that_is_ignored_is_named(origin: Worker, tmp_path: Path) -> None:
    edits = {
        **{f"{name} is lost on the way": inside("/history", cut_out(name)) for name in PARAMETERS},
        **{f"{name} is missing from the cache's key": keyed_without(name) for name in PARAMETERS},
        "after, limit, wait, cursor are lost on the way": inside(
            "/history", "proxy_pass http://gateway$uri;", without="proxy_pass"
        ),
    }
    found = await found_behind(origin, tmp_path, edits)
    told = {case: checks["query"].text.partition(":")[0] for case, checks in found.items()}
    assert told == {case: f"{case} to the gateway" if "lost" in case else case for case in edits}


async def test_a_crowd_that_is_not_collapsed_is_warned_of(origin: Worker, tmp_path: Path) -> None:
    edit = inside("/history", "proxy_cache_lock off;", without="proxy_cache_lock")
    async with nginx(tmp_path, origin_of(origin.url), edit=edit) as edge, probing(edge) as probe:
        # They may come one by one on a machine that has much to do.
        for _ in range(10):
            [found] = await check_collapsing(probe, "a/b")
            if found.level is Level.WARNING:
                break
        assert found.level is Level.WARNING
        assert "reach the gateway" in found.text


CUT: dict[str, tuple[set[str], Edit]] = {
    "a quiet stream is cut": (
        {"idle"}, inside("/events", "proxy_read_timeout 4s;", without="proxy_read_timeout"),
    ),
    "a quiet slice is cut": (
        {"idle"}, inside("/slices/", "proxy_read_timeout 4s;", without="proxy_read_timeout"),
    ),
}  # fmt: skip
"""A time limit that cuts nothing but silence: the first answer may be held for two seconds."""


@asynccontextmanager
async def rare_heartbeats(directory: Path) -> AsyncIterator[Worker]:
    """Run a gateway that says nothing of its own accord while anybody looks."""
    settings = {
        **SETTINGS,
        "streams": {"heartbeat_seconds": 60.0},
        "namespaces": {**SETTINGS["namespaces"], "short": {"slice_seconds": 10}},
    }
    async with valkey(directory) as redis, worker(redis.url, settings) as running:
        yield running


async def first_about_to_end(running: Worker, directory: Path) -> list[Finding]:
    """Watch a quiet slice that is cut, but so late that its end comes before."""
    _, edit = CUT["a quiet slice is cut"]
    async with (
        nginx(directory, origin_of(running.url), edit=edit) as edge,
        probing(edge) as probe,
    ):
        greeting, _ = await greet(probe, "short/a", "short/quiet")
        async with asyncio.timeout(20):
            while current_slice(greeting)[1] > HELD_SECONDS:
                await asyncio.sleep(0.05)
        return await check_quiet_slice(probe, greeting, "short/quiet", patience=10.0, idle=10.0)


async def test_a_cut_is_found_however_busy_other_channels_and_however_soon_a_slice_ends(
    tmp_path: Path,
) -> None:
    edits = {case: edit for case, (_, edit) in CUT.items()}
    async with rare_heartbeats(tmp_path / "valkey") as running:
        await publish(running.url, "a/b", b"0")
        looking = asyncio.gather(
            found_behind(running, tmp_path, edits, idle=6.0),
            first_about_to_end(running, tmp_path / "ending"),
        )
        while not looking.done():
            await publish(running.url, "a/b", b"1")
            await asyncio.wait([looking], timeout=0.05)
        found, ending = await looking
    assert {case: set(checks) for case, checks in found.items()} == {
        case: checks for case, (checks, _) in CUT.items()
    }
    assert all("before a heartbeat came" in checks["idle"].text for checks in found.values())
    assert [one.check for one in ending] == ["idle"]
    assert "a quiet slice was cut" in ending[0].text


async def test_a_gateway_of_other_settings_is_no_fault(tmp_path: Path) -> None:
    """Below a path, with streams that it compresses itself, and with short waits."""
    settings = {
        **SETTINGS,
        "base_path": "/live",
        "history": {"wait_limit_seconds": 1},
        "namespaces": {"default": {**ENDLESS, "stream_codings": ["zstd"]}},
    }
    async with valkey(tmp_path) as redis, worker(redis.url, settings) as running:
        url = f"{origin_of(running.url)}/live"
        await publish(f"http://{url}", "a/b", b"1")
        found = await look(f"http://{url}", **PATIENT)
        # There is no cache before it.
        assert beyond_ok(found) == ["http2", "cached"]
        texts = {one.check: one.text for one in found}
        assert texts["stream-compression"] == "the gateway sends zstd"
        assert texts["long-poll"].startswith("one of 1 s is answered")


@pytest.mark.parametrize(
    "directives", [HTML, "default_type text/html; return 404 '<html>no such page</html>';"]
)
async def test_something_else_than_the_gateway_is_one_fault(
    tmp_path: Path, directives: str
) -> None:
    edit = both(*[inside(path, directives) for path in ("/events", "/snapshots", "/history")])
    async with nginx(tmp_path, f"127.0.0.1:{free_port()}", edit=edit) as edge:
        found = await look(edge.tls_url)
        assert beyond_ok(found) == ["gateway"]
        assert "it is not the gateway that answers" in found[-1].text


async def test_a_channel_without_a_state_is_warned_of(origin: Worker) -> None:
    found = await look(origin.url, channel="a/unheard", **PATIENT)
    assert faults(found) == {}
    assert {"snapshot", "collapsing"} <= set(beyond_ok(found))


async def test_a_server_without_http_2_is_warned_of(origin: Worker, tmp_path: Path) -> None:
    edit = replaced(" ssl http2;", " ssl;")
    async with nginx(tmp_path, origin_of(origin.url), edit=edit) as edge:
        assert beyond_ok(await look(edge.tls_url, **PATIENT)) == ["http2"]


async def test_what_a_varnish_does_wrong_is_found(origin: Worker, tmp_path: Path) -> None:
    wrong = 'unset resp.http.xkey;\n    set resp.http.Date = "Tue, 01 Jan 2030 00:00:00 GMT";'
    edits = {
        "clock": replaced("unset resp.http.xkey;", wrong),
        "no-store": replaced(
            ' || beresp.http.Cache-Control ~ "(?i)no-store|no-cache|private"', ""
        ),
    }  # fmt: skip

    async def one(check: str, edit: Edit) -> dict[str, Finding]:
        async with varnish(tmp_path / check, origin_of(origin.url), edit=edit) as edge:
            return faults(await look(edge.url, **PATIENT))

    found = await asyncio.gather(*[one(*pair) for pair in edits.items()])
    assert [set(one) for one in found] == [{check} for check in edits]
    assert "(404, Age " in found[1]["no-store"].text
    assert found[1]["no-store"].mend


async def test_a_channel_that_is_too_busy_for_its_ring_is_warned_of(origin: Worker) -> None:
    for number in range(10):
        await publish(origin.url, "busy/a", b"%d" % number)
    async with Probe(origin.url, timeout_seconds=10) as probe:
        [found] = await check_life(probe, "busy/a", 0.1)
        assert found.level is Level.WARNING
        assert "too busy for its ring" in found.text
        assert "no-store" in found.text
        # Nothing is blamed on what stands between.
        assert faults(await look(origin.url, channel="busy/a", **PATIENT)) == {}
        # The same ring, as if it reached back for half a minute; and it moves.
        ring = origin.gateway.tails["busy"].mirror.ring("busy/a")
        assert ring is not None
        before = await oldest(probe, "busy/a")
        await publish(origin.url, "busy/a", b"x")
        await until(lambda: ring.page(ORIGIN, 1)[0].id != before)
        ring.resumable_from = Position(ring.resumable_from.ms - 30_000, 0)
        answer = await probe.get("/snapshots/busy/a")
        [found] = judge_life("busy/a", answer, before, await oldest(probe, "busy/a"))
        assert found.level is Level.WARNING
        assert "its ring short" in found.text
        # One that does not move may be as young as that.
        [found] = judge_life("busy/a", answer, before, before)
        assert found.level is Level.OK

"""The doctor looks at what readers are told while the gateway is stopped."""

from pathlib import Path

import pytest

from tests.doctor.breaking import Edit, inside, replaced
from tests.doctor.looking import SETTINGS, beyond_ok, faults, look, probing, publish, until_ok
from tests.edge.running import nginx, varnish
from tests.running import Worker, free_port, valkey, worker

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_dead_gateway_is_told_from_lost_readers(tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with nginx(tmp_path / "careful", dead) as edge:
        assert set(faults(await look(edge.url))) == {"gateway"}
    careless = replaced("error_page 502 503 504 = @unavailable;", "")
    async with nginx(tmp_path / "careless", dead, edit=careless) as edge:
        assert set(faults(await look(edge.url))) == {"gateway", "dead-origin"}


async def test_a_gateway_that_runs_is_not_stopped(origin: Worker) -> None:
    found = faults(await look(origin.url, stopped=True))
    assert set(found) == {"gateway"}
    assert "is not stopped" in found["gateway"].text


@pytest.mark.parametrize("kind", ["nginx", "varnish"])
async def test_a_stopped_gateway_behind_a_shipped_edge_is_in_order(
    tmp_path: Path, kind: str
) -> None:
    port = free_port()
    edges = {"nginx": nginx, "varnish": varnish}
    async with edges[kind](tmp_path / "edge", f"127.0.0.1:{port}") as edge, probing(edge) as probe:
        async with (
            valkey(tmp_path / "valkey") as redis,
            worker(redis.url, SETTINGS, port=port) as running,
        ):
            await publish(running.url, "a/b", b"1")
            await until_ok(probe, "/snapshots/a/b")
        found = await look(edge.url, stopped=True)
        assert beyond_ok(found) == ["http2"]
        assert {one.check for one in found} == {
            "http2", "dead-origin", "dead-position", "dead-cache", "dead-fetch", "stale-if-error",
        }  # fmt: skip
        # Of this one the edge has nothing.
        found = await look(edge.url, channel="a/unheard", stopped=True)
        assert beyond_ok(found) == ["http2", "stale-if-error"]
        assert faults(found) == {}


DEAD: dict[str, tuple[str, Edit]] = {
    "an EventSource is lost for good": (
        "dead-origin", replaced("error_page 502 503 504 = @unavailable;", ""),
    ),
    "readers are told nothing": (
        "dead-origin", replaced('return 200 "retry: $retry_ms', 'return 200 "x: y'),
    ),
    "it is no stream": ("content-type", replaced("default_type text/event-stream;", "")),
    "the position is lost": ("dead-position", replaced("${known_position}event", "id\\nevent")),
    "all get the position of one": (
        "dead-position", replaced("${known_position}event", "id: 1700000000000-7\\nevent"),
    ),
    "the outage is cached": (
        "dead-cache", replaced('"no-store, no-transform" always', '"max-age=60" always'),
    ),
    "fetch takes it for an answer": (
        "dead-fetch", replaced("if ($wants_stream = 0) {", "if ($wants_stream = 2) {"),
    ),
    "a snapshot is replaced": (
        "stale-if-error",
        inside("/snapshots", "error_page 502 =404 /x.html;"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DEAD)
async def test_each_fault_of_a_stopped_gateways_edge_is_found(tmp_path: Path, case: str) -> None:
    expected, edit = DEAD[case]
    async with nginx(tmp_path, f"127.0.0.1:{free_port()}", edit=edit) as edge:
        found = faults(await look(edge.url, stopped=True))
        assert set(found) == {expected}
        assert found[expected].mend

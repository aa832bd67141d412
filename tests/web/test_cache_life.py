"""What may be cached can be resumed from: a channel too busy for its ring is kept less long."""

import time
from typing import Any

import pytest

from gateway.protocol.cache_control import NO_STALE_LIFE
from gateway.protocol.position import Position
from tests.web.client import Client
from tests.web.conftest import Start

EVENT_BYTES = 1000
STALE = "stale-while-revalidate=5, stale-if-error=60"
SHORTEST = f"public, max-age=0, s-maxage=1, {NO_STALE_LIFE}"


def settings(**namespace: Any) -> dict[str, Any]:
    return {"publish": {"event_limit_bytes": EVENT_BYTES}, "namespaces": {"default": namespace}}


async def publish(client: Client, number: int, channel: str = "a") -> list[str]:
    lines = [{"channel": channel, "data": "x" * (EVENT_BYTES - 2)} for _ in range(number)]
    ids = await client.publish_lines(lines)
    await client.settle()
    return ids


async def shortened(client: Client) -> int:
    return client.gateway.cache_life.shortened


async def set_ring_back(client: Client, channel: str, seconds: float) -> None:
    """Let the ring's last dropped event be some seconds old: tests do not wait for it to be."""
    ring = client.gateway.tails["default"].mirror.ring(channel)
    assert ring is not None
    ring.resumable_from = Position(ring.resumable_from.ms - int(seconds * 1000), 0)


async def test_a_ring_that_holds_all_changes_nothing(start: Start) -> None:
    client = await start(settings(ring_limit_bytes=10_000_000))
    await publish(client, 50)
    answer = await client.get("/snapshots/a")
    assert answer.headers["Cache-Control"] == f"public, max-age=0, s-maxage=1, {STALE}"
    assert await shortened(client) == 0


async def test_a_ring_that_is_filled_soon_shortens_what_caches_may_keep(start: Start) -> None:
    client = await start(settings(ring_limit_bytes=100_000))
    ids = await publish(client, 50)
    # Half of it came within a moment: a second later these may have left it.
    answer = await client.get("/snapshots/a")
    assert answer.headers["Cache-Control"] in ("no-store", SHORTEST)
    assert await shortened(client) == 1
    ring = client.gateway.tails["default"].mirror.ring("a")
    assert ring is not None
    assert (ring.complete, ring.cut_short) == (True, False)
    await publish(client, 60)
    assert (await client.get(f"/history/a?after={ids[0]}")).json["gap"] is True


async def test_a_ring_cut_short_by_its_bytes_shortens_what_caches_may_keep(start: Start) -> None:
    client = await start(settings(ring_limit_bytes=10_000))
    began = time.time()
    ids = await publish(client, 50)
    for number, headers in enumerate((None, {"If-None-Match": "*"}), start=1):
        answer = await client.get("/snapshots/a", headers or {})
        assert answer.status == (304 if headers else 200)
        # Ten events came within a moment: the next ten may, too.
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["CDN-Cache-Control"] == "no-store"
        assert await shortened(client) == number
    await set_ring_back(client, "a", 30)
    answer = await client.get("/snapshots/a")
    told, _, stale = answer.headers["Cache-Control"].rpartition("=")
    assert told == "public, max-age=0, s-maxage=1, stale-while-revalidate=5, stale-if-error"
    # 30 less a margin of 10, and less what is fresh.
    assert 10 < int(stale) < 20 + time.time() - began
    told = "max-age=1, stale-while-revalidate=5, stale-if-error"
    assert answer.headers["CDN-Cache-Control"] == f"{told}={stale}"
    await set_ring_back(client, "a", 60)
    answer = await client.get("/snapshots/a")
    assert answer.headers["Cache-Control"] == f"public, max-age=0, s-maxage=1, {STALE}"
    page = await client.get(f"/history/a?after={ids[-6]}&limit=5")
    assert len(page.json["events"]) == 5
    told = page.headers["Cache-Control"].partition("max-age=")[2].partition(",")[0]
    # 90 less a margin of 10, rounded, and what has passed since.
    assert 79 <= int(told) <= 80 + time.time() - began
    # What is still told is true: the position that may be kept can be resumed from.
    assert (await client.get(f"/history/a?after={page.json['next']}")).json["gap"] is False


async def test_another_channel_of_the_namespace_keeps_its_life(start: Start) -> None:
    client = await start(settings(ring_limit_bytes=10_000))
    await publish(client, 50)
    await client.publish("quiet", b"1")
    await client.settle()
    answer = await client.get("/snapshots/quiet")
    assert answer.headers["Cache-Control"] == f"public, max-age=0, s-maxage=1, {STALE}"


async def test_the_count_spares_what_caches_may_still_lead_to(start: Start) -> None:
    client = await start(settings(ring_limit_events=10, ring_limit_bytes=10_000_000))
    ids = await publish(client, 80)
    answer = await client.get("/snapshots/a")
    assert answer.headers["Cache-Control"] == f"public, max-age=0, s-maxage=1, {STALE}"
    page = await client.get(f"/history/a?after={ids[0]}&limit=1000")
    assert (page.json["gap"], len(page.json["events"])) == (False, 79)
    # A worker that reads the ring from the store has as much.
    late = await start(settings(ring_limit_events=10, ring_limit_bytes=10_000_000))
    page = await late.get(f"/history/a?after={ids[0]}&limit=1000")
    assert (page.json["gap"], len(page.json["events"])) == (False, 79)


async def test_a_count_that_spares_nothing_shortens_the_life(start: Start) -> None:
    client = await start(settings(ring_limit_events=10, ring_spares_young=False))
    await publish(client, 20)
    answer = await client.get("/snapshots/a")
    assert answer.headers["Cache-Control"] == "no-store"
    assert await shortened(client) == 1


async def test_a_worker_that_has_just_come_goes_by_the_pace(start: Start) -> None:
    busy = settings(ring_limit_bytes=10_000)
    client = await start(busy)
    await publish(client, 50)
    late = await start(busy)
    await publish(late, 8)
    ring = late.gateway.tails["default"].mirror.ring("a")
    assert ring is not None
    assert (ring.complete, ring.cut_short) == (False, False)
    answer = await late.get("/snapshots/a")
    assert answer.headers["Cache-Control"] != f"public, max-age=0, s-maxage=1, {STALE}"
    # With the ring read, it is known.
    await late.get("/history/a")
    assert (ring.complete, ring.cut_short) == (True, True)
    assert (await late.get("/snapshots/a")).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/snapshots/shut/a", "/history/shut/a", "/slices/e/1/shut/a", "/slices/current/shut/a"],
)
async def test_nothing_protected_is_ever_public(start: Start, path: str) -> None:
    client = await start({"namespaces": {"shut": {"visibility": "protected"}}})
    for query in ("", "?after=1-0&wait=1", "?x=1"):
        answer = await client.get(path + query)
        assert (answer.status, answer.headers["Cache-Control"]) == (403, "private, no-store")
        assert "CDN-Cache-Control" not in answer.headers
        assert "Surrogate-Key" not in answer.headers

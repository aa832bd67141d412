"""`/metrics`, `/livez`, `/readyz`: every figure, none of them labelled with what users name."""

from prometheus_client.parser import text_string_to_metric_families

from tests.running import Valkey, until
from tests.web.client import RawStream, event, first_id, open_raw
from tests.web.conftest import Start

FIGURES = {
    "subscribers": "gauge",
    "lagging": "gauge",
    "channels": "gauge",
    "mirror_bytes": "gauge",
    "events_published": "counter",
    "events": "counter",
    "deliveries": "counter",
    "delivered_bytes": "counter",
    "passes": "counter",
    "conflations": "counter",
    "lags": "counter",
    "gaps": "counter",
    "write_timeouts": "counter",
    "ring_reads": "counter",
    "snapshot_hits": "counter",
    "snapshot_renders": "counter",
    "snapshot_variants": "counter",
    "snapshot_not_modified": "counter",
    "snapshot_loads": "counter",
    "redis_errors": "counter",
    "cache_life_shortened": "counter",
    "waiting": "gauge",
    "http_requests": "counter",
    "slice_readers": "gauge",
    "slices_begun": "counter",
    "slices_ended": "counter",
    "slices_broken": "counter",
    "publish_seconds": "histogram",
    "delivery_seconds": "histogram",
    "purge_seconds": "histogram",
    "purges": "counter",
    "purge_failures": "counter",
    "purges_dropped": "counter",
    "purges_pending": "gauge",
    "purge_breakers_open": "gauge",
}


def read(text: str) -> dict[str, float]:
    """Return every sample that is no bucket, by its name without the prefix."""
    return {
        sample.name.removeprefix("sse_gateway_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


async def test_every_figure_is_there_and_counts(start: Start) -> None:
    client = await start(
        {"namespaces": {"default": {"ring_limit_events": 2, "ring_spares_young": False}}}
    )
    async with client.follow("/events/chan/a") as one, client.follow("/events/chan/*") as two:
        await first_id(one)
        await first_id(two)
        ids = [await client.publish("chan/a", b"%d" % n) for n in range(4)]
        for stream in (one, two):
            for id in ids:
                assert (await event(stream))[0] == id
        async with client.follow("/events/chan/a", ids[0]) as late:
            await first_id(late)
            await late.next()
        await until(lambda: client.gateway.hub.subscribers == 2)
        tag = (await client.get("/snapshots/chan/a", {"Accept-Encoding": "br"})).headers["ETag"]
        await client.get("/snapshots/chan/a", {"If-None-Match": tag})
        answer = await client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    text = answer.body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name.removeprefix("sse_gateway_"): f.type for name, f in families.items()} == FIGURES
    assert all(family.documentation for family in families.values())
    figures = read(text)
    expected = {
        "subscribers": 2, "lagging": 0, "channels": 1, "events_published_total": 4,
        "events_total": 4, "deliveries_total": 8, "gaps_total": 1, "lags_total": 0,
        "write_timeouts_total": 0, "snapshot_renders_total": 1, "snapshot_hits_total": 1,
        "snapshot_variants_total": 1, "snapshot_not_modified_total": 1, "snapshot_loads_total": 1,
        "redis_errors_total": 0, "publish_seconds_count": 4, "conflations_total": 0,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected
    # What was published within a few milliseconds goes out together.
    assert 2 <= figures["passes_total"] == figures["delivery_seconds_count"] <= 8
    assert figures["mirror_bytes"] > 0
    assert figures["delivered_bytes_total"] > 200
    assert 0 < figures["publish_seconds_sum"] < 60
    assert 0 <= figures["delivery_seconds_sum"] < 60


async def test_no_name_of_a_channel_a_key_or_a_namespace_is_in_the_metrics(start: Start) -> None:
    client = await start({"namespaces": {"tenant": {"reducer": "keyed"}}})
    await client.publish("tenant/room", b"payload", "?key=alice&type=kind")
    async with client.follow("/events/tenant/room") as stream:
        await first_id(stream)
        text = (await client.get("/metrics")).body.decode()
    for word in ("tenant", "room", "alice", "payload", "kind"):
        assert word not in text
    labels = {
        name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name in sample.labels
    }
    assert labels == {"le", "route"}


async def test_lags_and_ended_subscribers_are_counted(start: Start) -> None:
    client = await start(
        {
            "streams": {"write_timeout_seconds": 0.5},
            "namespaces": {"default": {"ring_limit_events": 5000, "ring_limit_bytes": 1 << 27}},
        }
    )
    async with open_raw(client.worker, "/events/a", receive_buffer_bytes=4096) as stuck:
        assert isinstance(stuck, RawStream)
        while not client.gateway.hub.counters.lags:
            await client.publish_lines([{"channel": "a", "data": "x" * 16_000}] * 50)
            await client.settle()
        await until(lambda: client.gateway.hub.counters.timeouts)
        figures = read((await client.get("/metrics")).body.decode())
    assert figures["lags_total"] == 1
    assert figures["write_timeouts_total"] == 1
    assert figures["subscribers"] == figures["lagging"] == 0


async def test_a_lost_store_is_counted_and_told(start: Start, redis: Valkey) -> None:
    client = await start({"namespaces": {"n": {}}})
    ready = await client.get("/readyz")
    assert ready.status == 200
    assert ready.json == {
        "ready": True,
        "draining": False,
        "following": {"default": True, "n": True},
    }
    await redis.stop()
    await until(lambda: not any(tail.connected for tail in client.gateway.tails.values()))
    assert (await client.get("/readyz")).status == 503
    assert (await client.get("/livez")).body == b"ok\n"
    assert (await client.post("/publish/a", b"1")).status == 503
    assert read((await client.get("/metrics")).body.decode())["redis_errors_total"] >= 3
    await redis.start()
    await until(lambda: all(tail.connected for tail in client.gateway.tails.values()))
    for path in ("/readyz", "/livez", "/metrics"):
        answer = await client.get(path)
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await client.ask("HEAD", path)).status == 200
    assert (await client.post("/publish/a", b"1")).status == 200

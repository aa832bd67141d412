"""The gateway put together: settings in, wired parts out; holds no rules and serves nothing."""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway import open_files
from gateway.hub.arrivals import Arrivals
from gateway.hub.hub import Hub, HubOptions
from gateway.hub.mirror import Mirror
from gateway.hub.rings import RingReader
from gateway.hub.slices import Slices
from gateway.hub.sockets import AVAILABLE as SOCKETS_AVAILABLE
from gateway.hub.sockets import Sockets
from gateway.hub.tail import Listener, Tail
from gateway.hub.tombstones import forget_ended
from gateway.protocol.batch import PublishLimits
from gateway.protocol.namespace import Namespace
from gateway.purging import Purging, build_purging
from gateway.settings import Settings
from gateway.snapshot.cache import Snapshots
from gateway.snapshot.pages import Pages
from gateway.store.connection import ConnectionOptions, open_server
from gateway.store.publisher import Publisher
from gateway.store.redis import RedisStore, StoreLimits
from gateway.telemetry.metrics import Metrics
from gateway.web.admin import ChannelsHandler
from gateway.web.caching import CacheLife
from gateway.web.client_module import ClientModuleHandler
from gateway.web.console import ConsoleHandler
from gateway.web.description import DescriptionHandler
from gateway.web.health import HealthHandler
from gateway.web.history import HistoryHandler, HistoryOptions
from gateway.web.publish import PublishHandler
from gateway.web.request import Names
from gateway.web.routes import Handlers
from gateway.web.slices import SliceHandler, SliceOptions
from gateway.web.snapshot import SnapshotHandler, SnapshotOptions
from gateway.web.stream import StreamOptions, Streams

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gateway:
    """One worker's parts, wired to each other."""

    settings: Settings
    store: RedisStore
    publisher: Publisher
    tails: Mapping[str, Tail]
    hub: Hub
    sockets: Sockets | None
    rings: RingReader
    snapshots: Snapshots
    slices: Slices
    metrics: Metrics
    handlers: Handlers
    arrivals: Arrivals
    cache_life: CacheLife
    purging: Purging
    requests: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Follow the store and serve subscribers until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for tail in self.tails.values():
                    tasks.create_task(tail.run())
                tasks.create_task(self.hub.run(self.rings, self.tails.values()))
                tasks.create_task(self.slices.run())
                for purger in self.purging.all:
                    tasks.create_task(purger.run())
                age_seconds = self.settings.store.tombstone_age_seconds
                tasks.create_task(forget_ended(self.store, self.tails.values(), age_seconds))
        finally:
            await self.purging.requests.aclose()

    def drain(self) -> None:
        """Take no new streams and end those that are open."""
        self.handlers.streams.draining = True
        self.handlers.slices.draining = True
        self.handlers.health.draining = True
        self.hub.drain()
        self.slices.drain()
        self.arrivals.drain()


def build_namespaces(settings: Settings) -> dict[str, Namespace]:
    """Return each configured namespace's rules."""
    return {
        name: Namespace(
            name=name,
            reducer=own.reducer,
            protected=own.visibility == "protected",
            ring_limit_events=own.ring_limit_events,
            ring_limit_bytes=own.ring_limit_bytes,
            ring_age_seconds=own.ring_age_seconds,
            channels_limit=own.channels_limit,
            state_limit_bytes=own.state_limit_bytes,
            keys_limit=own.keys_limit,
            conflate=own.conflate,
            stream_codings=own.stream_codings,
            slice_seconds=own.slice_seconds,
            ring_spare_seconds=own.ring_spare_seconds,
            cache=own.cache_policy,
        )
        for name, own in settings.namespaces.items()
    }


def build_gateway(settings: Settings, redis_url: str) -> Gateway:
    """Return a worker's parts for the Redis at `redis_url`; nothing is connected yet."""
    namespaces = build_namespaces(settings)
    metrics = Metrics()
    store = _build_store(settings, redis_url, namespaces)
    publisher = Publisher(store, namespaces, metrics.publish_seconds.observe)
    snapshots = _build_snapshots(settings, store)
    hub = _build_hub(settings, snapshots, metrics)
    rings = RingReader(store)
    slices = _build_slices(settings, store, rings)
    arrivals = Arrivals()
    streams = _stream_options(settings)
    cache_life = CacheLife()
    sockets = _build_sockets(settings, hub)
    purging = build_purging(settings, store, metrics.purge_seconds.observe)
    tails = _build_tails(settings, store, namespaces, purging, hub, snapshots, slices, arrivals)
    slices.follow(tails)
    names = Names(namespaces, settings.publish.channel_limit_bytes)

    def count_streams() -> int:
        return hub.subscribers + slices.readers + arrivals.waiting

    handlers = Handlers(
        streams=Streams(hub, tails, names, sockets, count_streams, streams),
        snapshots=SnapshotHandler(snapshots, tails, names, cache_life, _snapshot_options(settings)),
        history=HistoryHandler(
            rings,
            arrivals,
            tails,
            names,
            Pages(settings.history.cache_limit_bytes),
            cache_life,
            count_streams,
            _history_options(settings, streams.subscribers_limit),
        ),
        slices=SliceHandler(
            slices,
            tails,
            names,
            cache_life,
            count_streams,
            _slice_options(settings, streams.subscribers_limit),
        ),
        publish=PublishHandler(publisher, tails, names, _publish_limits(settings)),
        channels=ChannelsHandler(store, hub, tails, names),
        health=HealthHandler(tails, metrics.exposition),
        console=ConsoleHandler(),
        description=DescriptionHandler(),
        client_module=ClientModuleHandler(),
    )
    gateway = Gateway(
        settings, store, publisher, tails, hub, sockets, rings, snapshots, slices, metrics,
        handlers, arrivals, cache_life, purging,
    )  # fmt: skip
    _watch(gateway)
    return gateway


def _build_tails(
    settings: Settings,
    store: RedisStore,
    namespaces: Mapping[str, Namespace],
    purging: Purging,
    *listeners: Listener,
) -> dict[str, Tail]:
    return {
        name: Tail(
            store,
            Mirror(rules, settings.mirror.limit_bytes // len(namespaces)),
            [*listeners, *purging.purgers[name]],
            settings.store.block_ms,
        )
        for name, rules in namespaces.items()
    }


def _build_snapshots(settings: Settings, store: RedisStore) -> Snapshots:
    return Snapshots(
        store,
        min_interval_ms=settings.snapshots.min_interval_ms,
        limit_bytes=settings.snapshots.cache_limit_bytes,
    )


def _snapshot_options(settings: Settings) -> SnapshotOptions:
    return SnapshotOptions(
        wait_seconds=settings.snapshots.wait_seconds,
        inline_compression_limit_bytes=settings.snapshots.inline_compression_limit_bytes,
    )


def _build_hub(settings: Settings, snapshots: Snapshots, metrics: Metrics) -> Hub:
    return Hub(
        HubOptions(
            retry_ms=settings.streams.retry_ms,
            heartbeat_seconds=settings.streams.heartbeat_seconds,
            write_timeout_seconds=settings.streams.write_timeout_seconds,
            join_seconds=settings.streams.join_ms / 1000,
            snapshots=f"{settings.base_path}/snapshots/",
        ),
        snapshots,
        metrics.delivery_seconds.observe,
    )


def _build_slices(settings: Settings, store: RedisStore, rings: RingReader) -> Slices:
    return Slices(
        store,
        rings,
        retry_ms=settings.slices.retry_ms,
        heartbeat_seconds=settings.streams.heartbeat_seconds,
        wait_seconds=settings.snapshots.wait_seconds,
        limit_bytes=settings.slices.cache_limit_bytes,
    )


def _slice_options(settings: Settings, subscribers_limit: int) -> SliceOptions:
    return SliceOptions(
        subscribers_limit=subscribers_limit,
        write_timeout_seconds=settings.streams.write_timeout_seconds,
        retry_ms=settings.streams.retry_ms,
        snapshots=f"{settings.base_path}/snapshots/",
    )


def _history_options(settings: Settings, subscribers_limit: int) -> HistoryOptions:
    return HistoryOptions(
        limit_events=settings.history.limit_events,
        default_events=settings.history.default_events,
        reach_seconds=settings.snapshots.wait_seconds,
        wait_limit_seconds=settings.history.wait_limit_seconds,
        subscribers_limit=subscribers_limit,
        inline_compression_limit_bytes=settings.snapshots.inline_compression_limit_bytes,
    )


def _build_sockets(settings: Settings, hub: Hub) -> Sockets | None:
    if settings.streams.transport == "response" or not SOCKETS_AVAILABLE:
        return None
    return Sockets(hub, settings.streams.send_buffer_bytes)


def _build_store(
    settings: Settings, redis_url: str, namespaces: Mapping[str, Namespace]
) -> RedisStore:
    options = ConnectionOptions(
        connect_timeout_seconds=settings.store.connect_timeout_seconds,
        connections_limit=settings.store.connections_limit,
    )
    limits = StoreLimits(
        batch_limit_events=settings.publish.batch_limit_events,
        batch_limit_bytes=settings.publish.batch_limit_bytes,
        idempotency_ms=settings.publish.idempotency_seconds * 1000,
        cut_margin_ms=settings.store.cut_margin_ms,
        command_timeout_seconds=settings.store.command_timeout_seconds,
    )
    return RedisStore(open_server(redis_url, options), namespaces, limits)


def _stream_options(settings: Settings) -> StreamOptions:
    return StreamOptions(
        subscribers_limit=_bound_streams(settings.streams.subscribers_limit),
        selectors_limit=settings.streams.selectors_limit,
        buffer_limit_bytes=settings.streams.buffer_limit_bytes,
        send_buffer_bytes=settings.streams.send_buffer_bytes,
        reach_seconds=settings.snapshots.wait_seconds,
        write_timeout_seconds=settings.streams.write_timeout_seconds,
        retry_ms=settings.streams.retry_ms,
        base_path=settings.base_path,
    )


def _bound_streams(wanted: int) -> int:
    files_limit = open_files.raise_limit()
    bound = open_files.bound_streams(wanted, files_limit)
    if bound < wanted:
        _log.warning(
            "streams.subscribers_limit is %d, but the limit of open files, %s, leaves room for %d;"
            " raise that (ulimit -n, LimitNOFILE)", wanted, files_limit, bound,
        )  # fmt: skip
    return bound


def _publish_limits(settings: Settings) -> PublishLimits:
    own = settings.publish
    return PublishLimits(
        event_bytes=own.event_limit_bytes,
        batch_bytes=own.batch_limit_bytes,
        batch_events=own.batch_limit_events,
        channel_bytes=own.channel_limit_bytes,
        key_bytes=own.key_limit_bytes,
        type_bytes=own.type_limit_bytes,
    )


def _watch(gateway: Gateway) -> None:
    """Let the metrics read every part's counters."""
    hub, snapshots, tails = gateway.hub, gateway.snapshots, gateway.tails.values()
    done, made = hub.counters, snapshots.counters
    sliced = gateway.slices.counters
    purgers, purged = gateway.purging.all, gateway.purging.counters
    gateway.metrics.watch_labelled(
        "http_requests", "Requests by route.", "route", lambda: gateway.requests
    )
    gateway.metrics.watch(
        gauges={
            "subscribers": ("Open streams.", lambda: hub.subscribers),
            "lagging": ("Open streams that are behind.", hub.count_lagging),
            "channels": ("Channels known.", lambda: sum(len(t.mirror.index) for t in tails)),
            "slice_readers": ("Open slices.", lambda: gateway.slices.readers),
            "waiting": ("Requests that wait for an event.", lambda: gateway.arrivals.waiting),
            "purges_pending": (
                "Channels to be purged yet, in each cache.",
                lambda: sum(one.pending for one in purgers),
            ),
            "purge_breakers_open": (
                "Caches of namespaces that cannot be purged now.",
                lambda: sum(one.breaker.open for one in purgers),
            ),
            "mirror_bytes": ("Rings in memory.", lambda: sum(t.mirror.size_bytes for t in tails)),
        },
        counters={
            "events_published": ("Events stored here.", lambda: gateway.publisher.events),
            "events": ("Events tailed.", lambda: sum(tail.events for tail in tails)),
            "deliveries": ("Events written to subscribers.", lambda: done.deliveries),
            "delivered_bytes": ("Bytes written to subscribers.", lambda: done.delivered_bytes),
            "passes": ("Chunks written to all readers of a subscription.", lambda: done.passes),
            "conflations": ("States sent in place of events.", lambda: done.conflations),
            "lags": ("Times that a subscriber fell behind.", lambda: done.lags),
            "gaps": ("Positions that could not be resumed.", lambda: done.gaps),
            "write_timeouts": ("Subscribers that took nothing too long.", lambda: done.timeouts),
            "slices_begun": ("Slices begun.", lambda: sliced.begun),
            "slices_ended": ("Slices ended whole.", lambda: sliced.ended),
            "slices_broken": ("Slices cut off.", lambda: sliced.broken),
            "purges": ("Channels purged.", lambda: purged.purged),
            "purge_failures": ("Calls to purge that failed.", lambda: purged.failures),
            "purges_dropped": ("Channels that nobody purged.", lambda: purged.dropped),
            "ring_reads": ("Rings read from Redis.", lambda: gateway.rings.reads),
            "snapshot_hits": ("Snapshots that were rendered already.", lambda: made.hits),
            "snapshot_renders": ("Snapshots rendered.", lambda: made.renders),
            "snapshot_variants": ("Snapshots compressed.", lambda: made.variants),
            "snapshot_not_modified": ("Snapshots answered 304.", lambda: made.not_modified),
            "snapshot_loads": ("States read from Redis.", lambda: made.loads),
            "cache_life_shortened": (
                "Answers that caches may keep less long than the settings say.",
                lambda: gateway.cache_life.shortened,
            ),
            "redis_errors": ("Commands that Redis did not answer.", lambda: gateway.store.errors),
        },
    )

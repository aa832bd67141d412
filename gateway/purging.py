"""Which namespaces have their caches purged, and how: settings in, purgers out; purges nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.purge.edges import NginxTarget, VarnishTarget
from gateway.purge.purger import PurgeCounters, Purger
from gateway.purge.request import Requests
from gateway.purge.services import CloudflareTarget, FastlyTarget, WebhookTarget
from gateway.purge.target import Target
from gateway.settings import Settings
from gateway.store.redis import RedisStore


@dataclass(frozen=True, slots=True)
class Purging:
    """The purgers of the namespaces that have one, and what they share."""

    purgers: Mapping[str, Purger]
    counters: PurgeCounters
    requests: Requests

    def of(self, namespace: str) -> list[Purger]:
        """Return the namespace's purger, if it has one."""
        return [self.purgers[namespace]] if namespace in self.purgers else []


def build_purging(
    settings: Settings, store: RedisStore, observe_seconds: Callable[[float], None]
) -> Purging:
    """Return a purger for each namespace whose caches are to be purged."""
    own, base_path, counters = settings.purge, settings.base_path, PurgeCounters()
    requests = Requests(own.timeout_seconds)
    targets: dict[str, Callable[[], Target]] = {
        "nginx": lambda: NginxTarget(requests, own.nginx_urls, base_path),
        "varnish": lambda: VarnishTarget(requests, own.varnish_urls, base_path),
        "fastly": lambda: FastlyTarget(
            requests, own.fastly_url, own.fastly_service_id, own.fastly_token
        ),
        "cloudflare": lambda: CloudflareTarget(
            requests, own.cloudflare_url, own.cloudflare_zone_id, own.cloudflare_token
        ),
        "webhook": lambda: WebhookTarget(requests, own.webhook_url, own.webhook_secret),
    }
    purgers = {
        name: Purger(
            store,
            name,
            targets[namespace.purge](),
            counters,
            min_interval_seconds=own.min_interval_ms / 1000,
            observe_seconds=observe_seconds,
        )
        for name, namespace in settings.namespaces.items()
        if namespace.purge != "none"
    }
    return Purging(purgers, counters, requests)

"""Which namespaces have their caches purged, and how: settings in, purgers out; purges nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.protocol.errors import hide_password
from gateway.purge.edges import NginxTarget, VarnishTarget
from gateway.purge.purger import PurgeCounters, Purger
from gateway.purge.request import Requests
from gateway.purge.services import CloudflareTarget, FastlyTarget, WebhookTarget
from gateway.purge.target import Target
from gateway.settings import Settings
from gateway.store.redis import RedisStore


@dataclass(frozen=True, slots=True)
class Purging:
    """The purgers of the namespaces whose caches are purged, one a cache, and what they share."""

    purgers: Mapping[str, Sequence[Purger]]
    counters: PurgeCounters
    requests: Requests

    @property
    def all(self) -> list[Purger]:
        """The purgers of all namespaces."""
        return [purger for purgers in self.purgers.values() for purger in purgers]


def build_purging(
    settings: Settings, store: RedisStore, observe_seconds: Callable[[float], None]
) -> Purging:
    """Return the purgers of each namespace whose caches are to be purged.

    Each edge of one's own has a purger, so that one that is down keeps none of the others old.
    """
    own, base_path, counters = settings.purge, settings.base_path, PurgeCounters()
    requests = Requests(own.timeout_seconds)
    # By their leases.
    targets: dict[str, dict[str, Target]] = {
        "none": {},
        "nginx": {
            f"purge:{hide_password(url)}": NginxTarget(requests, url, base_path)
            for url in own.nginx_urls
        },
        "varnish": {
            f"purge:{hide_password(url)}": VarnishTarget(requests, url, base_path)
            for url in own.varnish_urls
        },
        "fastly": {
            "purge": FastlyTarget(requests, own.fastly_url, own.fastly_service_id, own.fastly_token)
        },
        "cloudflare": {
            "purge": CloudflareTarget(
                requests, own.cloudflare_url, own.cloudflare_zone_id, own.cloudflare_token
            )
        },
        "webhook": {"purge": WebhookTarget(requests, own.webhook_url, own.webhook_secret)},
    }
    purgers = {
        name: [
            Purger(
                store,
                name,
                target,
                counters,
                lease=lease,
                min_interval_seconds=own.min_interval_ms / 1000,
                observe_seconds=observe_seconds,
            )
            for lease, target in targets[namespace.purge].items()
        ]
        for name, namespace in settings.namespaces.items()
    }
    return Purging(purgers, counters, requests)

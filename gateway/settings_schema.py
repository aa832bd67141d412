"""The settings: every one with its type, default and rule; loading them is not done here.

`config/gateway.toml` gives their reasons, `gateway.settings` loads them.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.protocol.cache_control import (
    LIFE_MARGIN_SECONDS,
    CacheLifeTooLong,
    CachePolicy,
    check_policy,
    life_seconds,
)
from gateway.protocol.channel import CHANNEL_LIMIT_BYTES, DEFAULT_NAMESPACE, check_channel
from gateway.protocol.errors import InvalidField
from gateway.protocol.namespace import SLICES_KEPT, Reducer
from gateway.protocol.slice import HELD_SECONDS
from gateway.settings_types import (
    BasePath,
    Count,
    CountOrZero,
    DataDir,
    Number,
    PurgeUrl,
    RedisUrl,
    Seconds,
    SliceSeconds,
    Token,
    VanishedSeconds,
    Whole,
    WholeSeconds,
    WholeSecondsOrZero,
    Workers,
    default_data_dir,
)

PREFIX = "GATEWAY_"
DELIMITER = "__"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StreamSettings(_Table):
    """How streams are kept, and what one of them may cost."""

    heartbeat_seconds: Seconds = 15.0
    retry_ms: Count = 2000
    write_timeout_seconds: Seconds = 30.0
    vanished_seconds: VanishedSeconds = 60.0
    join_ms: CountOrZero = 5
    transport: Literal["auto", "socket", "response"] = "auto"
    send_buffer_bytes: CountOrZero = 0
    buffer_limit_bytes: Count = 65536
    subscribers_limit: Count = 10000
    selectors_limit: Count = 100


class PublishSettings(_Table):
    """What may be published at once."""

    event_limit_bytes: Count = 262144
    batch_limit_bytes: Count = 8388608
    batch_limit_events: Count = 10000
    channel_limit_bytes: Annotated[Whole, Field(ge=1, le=CHANNEL_LIMIT_BYTES)] = CHANNEL_LIMIT_BYTES
    key_limit_bytes: Count = 255
    type_limit_bytes: Count = 255
    idempotency_seconds: WholeSeconds = 86400


class SnapshotSettings(_Table):
    """How snapshots are rendered and kept."""

    min_interval_ms: CountOrZero = 0
    wait_seconds: Annotated[Number, Field(ge=0, le=3600, allow_inf_nan=False)] = 2.0
    cache_limit_bytes: Count = 268435456
    inline_compression_limit_bytes: CountOrZero = 16384


class HistorySettings(_Table):
    """The size of history's pages, and how long one may wait for them."""

    limit_events: Count = 1000
    default_events: Count = 100
    wait_limit_seconds: Annotated[Whole, Field(ge=1, le=3600)] = 30
    cache_limit_bytes: Count = 67108864


class SliceSettings(_Table):
    """Streams that end at a boundary, for caches to share."""

    retry_ms: Count = 500
    cache_limit_bytes: Count = 67108864


class PurgeSettings(_Table):
    """How caches are told that a snapshot changed."""

    min_interval_ms: Count = 1000
    timeout_seconds: Seconds = 5.0
    nginx_urls: tuple[PurgeUrl, ...] = ()
    varnish_urls: tuple[PurgeUrl, ...] = ()
    fastly_url: PurgeUrl = "https://api.fastly.com"
    fastly_service_id: Token = ""
    fastly_token: Token = ""
    cloudflare_url: PurgeUrl = "https://api.cloudflare.com/client/v4"
    cloudflare_zone_id: Token = ""
    cloudflare_token: Token = ""
    webhook_url: PurgeUrl = ""
    webhook_secret: Token = ""

    NEEDED: ClassVar[dict[str, tuple[str, ...]]] = {
        "none": (),
        "nginx": ("nginx_urls",),
        "varnish": ("varnish_urls",),
        "fastly": ("fastly_service_id", "fastly_token"),
        "cloudflare": ("cloudflare_zone_id", "cloudflare_token"),
        "webhook": ("webhook_url", "webhook_secret"),
    }
    SECRETS: ClassVar[tuple[str, ...]] = ("fastly_token", "cloudflare_token", "webhook_secret")


class MirrorSettings(_Table):
    """The copy of the rings in this worker's memory."""

    limit_bytes: Count = 268435456


class StoreSettings(_Table):
    """How the gateway talks to Redis."""

    connect_timeout_seconds: Seconds = 5.0
    command_timeout_seconds: Seconds = 10.0
    block_ms: Count = 5000
    connections_limit: Count = 64
    tombstone_age_seconds: WholeSeconds = 604800
    cut_margin_ms: Count = 1000


class NamespaceSettings(_Table):
    """What holds for all channels of one namespace."""

    reducer: Reducer = Reducer.LAST
    visibility: Literal["public", "protected"] = "public"
    ring_limit_events: Count = 1000
    ring_limit_bytes: Count = 8388608
    ring_age_seconds: WholeSeconds = 3600
    channels_limit: Count = 100000
    state_limit_bytes: Count = 1048576
    keys_limit: Count = 10000
    conflate: bool = False
    stream_codings: tuple[Literal["zstd", "gzip"], ...] = ()
    slice_seconds: SliceSeconds = 30
    ring_spares_young: bool = True
    browser_max_age_seconds: WholeSecondsOrZero = 0
    edge_max_age_seconds: WholeSecondsOrZero = 1
    stale_while_revalidate_seconds: WholeSecondsOrZero = 5
    stale_if_error_seconds: WholeSecondsOrZero = 60
    purge: Literal["none", "nginx", "varnish", "fastly", "cloudflare", "webhook"] = "none"

    CACHE_AGES: ClassVar[tuple[str, ...]] = (
        "edge_max_age_seconds",
        "browser_max_age_seconds",
        "stale_while_revalidate_seconds",
        "stale_if_error_seconds",
    )

    @property
    def ring_spare_seconds(self) -> int:
        """Return how long an event stays in its ring, however many follow it.

        As long as some cache may lead a reader to it.
        """
        if not self.ring_spares_young:
            return 0
        cached_seconds = life_seconds(self.cache_policy) + LIFE_MARGIN_SECONDS
        return max(cached_seconds, self.slices_kept_seconds)

    @property
    def slices_kept_seconds(self) -> int:
        """Return how much time a ring must cover, so that slices can be read one after the other.

        With a margin: a slice that has just ended is kept by caches for what is left.
        """
        return SLICES_KEPT * self.slice_seconds + LIFE_MARGIN_SECONDS

    @property
    def cache_policy(self) -> CachePolicy:
        """Return how long this namespace's snapshots may be kept, and by whom."""
        return CachePolicy(
            browser_max_age_seconds=self.browser_max_age_seconds,
            edge_max_age_seconds=self.edge_max_age_seconds,
            stale_while_revalidate_seconds=self.stale_while_revalidate_seconds,
            stale_if_error_seconds=self.stale_if_error_seconds,
        )


def _broken(
    path: tuple[str, ...], value: object, rule: str, *others: tuple[str, ...]
) -> PydanticCustomError:
    """Return the error that says the setting at `path` breaks `rule`; it is bound to `others`."""
    context = {"paths": (path, *others), "value": value, "rule": rule}
    # The rule stands in the context: a template would read braces in it.
    return PydanticCustomError("bound", "{rule}", context)


def _check_namespaces(value: object) -> object:
    if not isinstance(value, dict):
        return value
    for name in value:
        try:
            check_channel(str(name))
        except InvalidField:
            name_is_valid = False
        else:
            name_is_valid = "/" not in str(name)
        if not name_is_valid:
            raise _broken(
                ("namespaces", str(name)),
                value[name],
                "the name must be one segment of a channel's name",
            )
    return {DEFAULT_NAMESPACE: {}} | value


class Settings(BaseSettings):
    """All settings, checked; equal to their defaults unless given. Reads no file, no environment.

    Raises pydantic's ValidationError; `gateway.settings.load_settings` turns it into one line.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter=DELIMITER
    )

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[Whole, Field(ge=0, le=65535)] = 8080
    redis: RedisUrl = "embedded"
    data_dir: DataDir = Field(default_factory=default_data_dir)
    workers: Workers = 1
    base_path: BasePath = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    streams: StreamSettings = StreamSettings()
    publish: PublishSettings = PublishSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    history: HistorySettings = HistorySettings()
    slices: SliceSettings = SliceSettings()
    purge: PurgeSettings = PurgeSettings()
    mirror: MirrorSettings = MirrorSettings()
    store: StoreSettings = StoreSettings()
    namespaces: Annotated[dict[str, NamespaceSettings], BeforeValidator(_check_namespaces)] = Field(
        default_factory=lambda: {DEFAULT_NAMESPACE: NamespaceSettings()}
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: Any,
        **_named: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what the caller gives and nothing else."""
        return (init_settings,)

    @model_validator(mode="after")
    def check_together(self) -> Self:
        """Hold the rules that bind several settings."""
        if self.history.default_events > self.history.limit_events:
            raise _broken(
                ("history", "default_events"),
                self.history.default_events,
                f"must not exceed history.limit_events ({self.history.limit_events})",
                ("history", "limit_events"),
            )
        event_limit_bytes = self.publish.event_limit_bytes
        if self.publish.batch_limit_bytes < event_limit_bytes:
            raise _broken(
                ("publish", "batch_limit_bytes"),
                self.publish.batch_limit_bytes,
                f"must hold one event: publish.event_limit_bytes is {event_limit_bytes}",
                ("publish", "event_limit_bytes"),
            )
        # Every namespace's tail keeps one to itself.
        if self.store.connections_limit <= len(self.namespaces):
            raise _broken(
                ("store", "connections_limit"),
                self.store.connections_limit,
                f"must exceed the number of namespaces ({len(self.namespaces)})",
                ("namespaces",),
            )
        for name, namespace in self.namespaces.items():
            self._check_namespace(("namespaces", name), namespace)
        return self

    def _check_namespace(self, table: tuple[str, str], namespace: NamespaceSettings) -> None:
        if namespace.conflate and namespace.reducer is not Reducer.KEYED:
            raise _broken(
                (*table, "conflate"),
                namespace.conflate,
                f"is for the reducer keyed, not {namespace.reducer}",
                (*table, "reducer"),
            )
        for needed in PurgeSettings.NEEDED[namespace.purge]:
            if not getattr(self.purge, needed):
                raise _broken(
                    (*table, "purge"),
                    namespace.purge,
                    f"needs purge.{needed}",
                    ("purge", needed),
                )
        event_limit_bytes = self.publish.event_limit_bytes
        if namespace.ring_limit_bytes < event_limit_bytes:
            raise _broken(
                (*table, "ring_limit_bytes"),
                namespace.ring_limit_bytes,
                f"must hold one event: publish.event_limit_bytes is {event_limit_bytes}",
                ("publish", "event_limit_bytes"),
            )
        if namespace.ring_age_seconds < namespace.slices_kept_seconds:
            raise _broken(
                (*table, "slice_seconds"),
                namespace.slice_seconds,
                f"{SLICES_KEPT} slices and a margin of {LIFE_MARGIN_SECONDS} s must fit into"
                f" ring_age_seconds ({namespace.ring_age_seconds})",
                (*table, "ring_age_seconds"),
            )
        if self.slices.retry_ms > (namespace.slice_seconds - HELD_SECONDS) * 1000:
            raise _broken(
                (*table, "slice_seconds"),
                namespace.slice_seconds,
                f"must exceed slices.retry_ms ({self.slices.retry_ms}) by {HELD_SECONDS:g} s"
                ": who comes back later than that misses a slice",
                ("slices", "retry_ms"),
            )
        try:
            check_policy(namespace.cache_policy, namespace.ring_age_seconds)
        except CacheLifeTooLong as error:
            raise _broken(
                (*table, "ring_age_seconds"),
                namespace.ring_age_seconds,
                str(error),
                *((*table, key) for key in NamespaceSettings.CACHE_AGES),
            ) from None

"""The table of paths."""

from collections import Counter
from dataclasses import dataclass

from aiohttp import web

from gateway.web.admin import ChannelsHandler
from gateway.web.client_module import ClientModuleHandler
from gateway.web.console import ConsoleHandler
from gateway.web.description import DescriptionHandler
from gateway.web.health import HealthHandler
from gateway.web.history import HistoryHandler
from gateway.web.middleware import complete_heads, count_requests, guard, preflight
from gateway.web.publish import PublishHandler
from gateway.web.slices import SliceHandler
from gateway.web.snapshot import SnapshotHandler
from gateway.web.stream import Streams


@dataclass(frozen=True, slots=True)
class Handlers:
    """All handlers, ready to be called."""

    streams: Streams
    snapshots: SnapshotHandler
    history: HistoryHandler
    slices: SliceHandler
    publish: PublishHandler
    channels: ChannelsHandler
    health: HealthHandler
    console: ConsoleHandler
    description: DescriptionHandler
    client_module: ClientModuleHandler


def build_application(
    handlers: Handlers, *, base_path: str, requests: Counter[str]
) -> web.Application:
    """Return the aiohttp application with every path under `base_path`; it counts `requests`."""
    application = web.Application(middlewares=[count_requests(requests, base_path), guard])
    application.on_response_prepare.append(
        complete_heads(base_path, lambda: handlers.health.draining)
    )
    router = application.router

    def add(method: str, path: str, handler: object) -> None:
        router.add_route(method, base_path + path, handler)  # type: ignore[arg-type]

    anything = "{channel:.+}"
    readers = (
        ("/events", handlers.streams.get),
        (f"/events/{anything}", handlers.streams.get),
        (f"/snapshots/{anything}", handlers.snapshots.get),
        (f"/history/{anything}", handlers.history.get),
        (f"/slices/current/{anything}", handlers.slices.current),
        (f"/slices/{{epoch}}/{{number}}/{anything}", handlers.slices.numbered),
        ("/openapi.json", handlers.description.get),
        ("/client.js", handlers.client_module.get),
    )
    for path, handler in readers:
        add("GET", path, handler)
        add("HEAD", path, handler)
        add("OPTIONS", path, preflight)
    for path in ("/events", f"/events/{anything}"):
        add("POST", path, handlers.streams.post)
    add("POST", "/publish", handlers.publish.post_batch)
    add("POST", f"/publish/{anything}", handlers.publish.post_one)
    add("DELETE", f"/channels/{anything}", handlers.publish.delete)
    for path, handler in (
        ("/channels", handlers.channels.get),
        ("/livez", handlers.health.livez),
        ("/readyz", handlers.health.readyz),
        ("/metrics", handlers.health.metrics),
        ("/console", handlers.console.page),
        ("/console/{name}", handlers.console.asset),
        ("/", handlers.console.home),
        *([("", handlers.console.home)] if base_path else ()),
    ):
        add("GET", path, handler)
        add("HEAD", path, handler)
    return application

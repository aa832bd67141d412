"""`sse-gateway nginx-config`: the NGINX configuration of nginx/, filled in from the settings."""

import math
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import Config
from gateway.cli.terminal import command, output
from gateway.protocol.errors import GatewayError
from gateway.settings import load_settings
from gateway.settings_schema import Settings

_CHECKOUT = Path(__file__).parents[2] / "nginx"
_INSTALLED = Path(sysconfig.get_path("data")) / "share" / "sse-gateway" / "nginx"
_INCLUDE = re.compile(r"^( *)include (\w+\.conf);\n", re.MULTILINE)
_COMFORT_SECONDS = 15
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class NoTemplate(GatewayError):
    """The files of nginx/ are not where they were installed."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What the settings do not know: addresses as in `listen`, and files.

    Of `http` and `https` a port alone is that of all addresses, IPv4 and IPv6; `0.0.0.0:80` is
    that of IPv4.
    `origin` is the gateway's `host:port`, empty for that of the settings.
    """

    origin: str = ""
    http: str = "80"
    https: str = "443"
    internal: str = "127.0.0.1:8081"
    certificate: str = "/etc/nginx/tls/fullchain.pem"
    key: str = "/etc/nginx/tls/privkey.pem"
    cache: str = "/var/lib/nginx/sse-gateway"
    logs: str = "/var/log/nginx"
    pid: str = "/run/nginx.pid"
    trusted: tuple[str, ...] = ("127.0.0.1",)
    allowed: tuple[str, ...] = ("127.0.0.1",)


def template_directory() -> Path:
    """Return where the files of nginx/ are: in a checkout, or where they were installed."""
    for directory in (_CHECKOUT, _INSTALLED):
        if (directory / "nginx.conf").is_file():
            return directory
    raise NoTemplate(f"nginx.conf is neither in {_CHECKOUT} nor in {_INSTALLED}")


def render(settings: Settings, edge: Edge) -> str:
    """Return one complete NGINX configuration."""
    directory = template_directory()
    text = (directory / "nginx.conf").read_text(encoding="utf-8")
    text = text[text.index("worker_processes") :]
    text = _INCLUDE.sub(lambda found: _included(directory, found[2], found[1]), text)
    for old, new in _changes(settings, edge):
        if old not in text:
            raise NoTemplate(f"{directory} has no {old!r}: it is not of this version")
        text = text.replace(old, new)
    return (
        f"# Made by `sse-gateway nginx-config`; what each choice is for stands beside it.\n\n{text}"
    )


def _included(directory: Path, name: str, indent: str) -> str:
    lines = (directory / name).read_text(encoding="utf-8").splitlines()
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)


def _changes(settings: Settings, edge: Edge) -> list[tuple[str, str]]:
    host = _ANY.get(settings.host, settings.host)
    origin = edge.origin or f"{f'[{host}]' if ':' in host.strip('[]') else host}:{settings.port}"
    base = settings.base_path
    streams = max(60, math.ceil(4 * settings.streams.heartbeat_seconds))
    wait = settings.history.wait_limit_seconds + _COMFORT_SECONDS
    snapshot = math.ceil(settings.snapshots.wait_seconds) + 1
    longest = max(own.ring_age_seconds for own in settings.namespaces.values())
    trusted = "".join(f"        set_real_ip_from {one};\n" for one in edge.trusted)
    allowed = "".join(f"        allow {one};\n" for one in edge.allowed)
    body = math.ceil(settings.publish.batch_limit_bytes / 2**20)
    return [
        ("server 127.0.0.1:8080;", f"server {origin};"),
        *_listening("80", edge.http, ""),
        *_listening("443", edge.https, " ssl http2"),
        ("listen 127.0.0.1:8081;", f"listen {edge.internal};"),
        ("/etc/nginx/tls/fullchain.pem", edge.certificate),
        ("/etc/nginx/tls/privkey.pem", edge.key),
        ("/var/lib/nginx/sse-gateway ", f"{edge.cache} "),
        ("/var/log/nginx/", f"{edge.logs}/"),
        ("/run/nginx.pid", edge.pid),
        ("        set_real_ip_from 127.0.0.1;\n", trusted),
        ("        allow 127.0.0.1;\n", allowed),
        ("inactive=70m", f"inactive={math.ceil(longest / 60) + 10}m"),
        ("proxy_read_timeout 60s;", f"proxy_read_timeout {max(streams, wait)}s;"),
        ("proxy_cache_lock_timeout 3s;", f"proxy_cache_lock_timeout {snapshot}s;"),
        ("proxy_cache_lock_timeout 45s;", f"proxy_cache_lock_timeout {wait}s;"),
        ("proxy_cache_lock_age 45s;", f"proxy_cache_lock_age {wait}s;"),
        ("client_max_body_size 8m;", f"client_max_body_size {body}m;"),
        ("location /events {", f"location {base}/events {{"),
        ("location /slices/ {", f"location {base}/slices/ {{"),
        ("location /slices/current/ {", f"location {base}/slices/current/ {{"),
        ("location /snapshots/ {", f"location {base}/snapshots/ {{"),
        ("location /history/ {", f"location {base}/history/ {{"),
        ("location = /client.js {", f"location = {base}/client.js {{"),
        ("location = /openapi.json {", f"location = {base}/openapi.json {{"),
        ("location ~ ^/(", f"location ~ ^{re.escape(base)}/("),
    ]


def _listening(port: str, place: str, kind: str) -> list[tuple[str, str]]:
    """A port alone stands for all addresses, those of IPv6 included; anything else for itself."""
    other = f"        listen [::]:{place}{kind};\n" if place.isdecimal() else ""
    return [
        (f"listen {port}{kind};", f"listen {place}{kind};"),
        (f"        listen [::]:{port}{kind};\n", other),
    ]


def _option(name: str, help: str) -> object:
    return typer.Option(name, help=help, metavar=name.strip("-").upper())


@command
def nginx_config(
    config: Config = None,
    origin: Annotated[
        str, _option("--origin", "The gateway's host and port, where NGINX sees another.")
    ] = "",
    http: Annotated[
        str, _option("--http", "Where to listen for HTTP; a port alone: over IPv4 and IPv6.")
    ] = "80",
    https: Annotated[str, _option("--https", "The same for HTTPS.")] = "443",
    internal: Annotated[
        str, _option("--internal", "Where to listen for publishers and operators.")
    ] = "127.0.0.1:8081",
    certificate: Annotated[
        str, _option("--certificate", "The certificate's file, with its chain.")
    ] = "/etc/nginx/tls/fullchain.pem",
    key: Annotated[str, _option("--key", "The file of its key.")] = "/etc/nginx/tls/privkey.pem",
    cache: Annotated[
        str, _option("--cache", "The cache's directory.")
    ] = "/var/lib/nginx/sse-gateway",
    trusted: Annotated[
        list[str] | None,
        _option("--trusted", "A proxy, or network, that is believed about addresses; repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        _option("--allow", "Who may publish, operate and refresh; repeatable."),
    ] = None,
) -> None:
    """Print an NGINX configuration for this gateway, complete, filled in from the settings."""
    edge = Edge(
        origin=origin, http=http, https=https, internal=internal, certificate=certificate, key=key,
        cache=cache, trusted=tuple(trusted or Edge().trusted),
        allowed=tuple(allow or Edge().allowed),
    )  # fmt: skip
    text = render(load_settings(config, {}), edge)
    output().file.write(text)

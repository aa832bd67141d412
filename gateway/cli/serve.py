"""`sse-gateway serve` and `demo`: the gateway itself, and what is said when it starts."""

import asyncio
import ipaddress
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from gateway.cli.options import Config
from gateway.cli.terminal import command, messages, output
from gateway.settings import Settings, load_settings

# All as text: the settings check them, so that a wrong one reads alike wherever it stands.
Host = Annotated[
    str | None, typer.Option(help="Address to listen on. \\[env: GATEWAY_HOST]", metavar="ADDRESS")
]
Port = Annotated[str | None, typer.Option(help="TCP port. \\[env: GATEWAY_PORT]", metavar="PORT")]
Redis = Annotated[
    str | None,
    typer.Option(help="embedded, or a Redis URL. \\[env: GATEWAY_REDIS]", metavar="URL"),
]
DataDir = Annotated[
    str | None,
    typer.Option(help="The embedded store's data. \\[env: GATEWAY_DATA_DIR]", metavar="DIRECTORY"),
]
Workers = Annotated[
    str | None, typer.Option(help="Processes, 1 for now. \\[env: GATEWAY_WORKERS]", metavar="N")
]
BasePath = Annotated[
    str | None,
    typer.Option(help="Path before every route. \\[env: GATEWAY_BASE_PATH]", metavar="PATH"),
]
LogLevel = Annotated[
    str | None,
    typer.Option(help="debug, info, warning or error. \\[env: GATEWAY_LOG_LEVEL]", metavar="LEVEL"),
]


def starting(*, demo: bool) -> Callable[..., None]:
    """Return the command that serves, with this machine's figures when it is the `demo`."""

    @command
    def start(
        host: Host = None,
        port: Port = None,
        redis: Redis = None,
        data_dir: DataDir = None,
        config: Config = None,
        workers: Workers = None,
        base_path: BasePath = None,
        log_level: LogLevel = None,
    ) -> None:
        options = {
            "host": host,
            "port": port,
            "redis": redis,
            "data_dir": data_dir,
            "workers": workers,
            "base_path": base_path,
            "log_level": log_level,
        }
        given: dict[str, object] = {
            name: value for name, value in options.items() if value is not None
        }
        run(config, given, demo=demo)

    return start


def run(config: Path | None, overrides: dict[str, object], *, demo: bool) -> None:
    """Serve until told to stop."""
    settings = load_settings(config, overrides)
    # Here, so that the other commands start without the server's imports.
    from gateway.serving import serve as serve_forever

    if not is_loopback(settings.host):
        messages().print(
            f"[bold yellow]Warning:[/] listening on {escape(settings.host)}, beyond this machine:"
            " whoever reaches it may publish to every channel and read the public ones."
        )
    _runner()(serve_forever(settings, demo=demo, ready=_announce(settings, demo=demo)))


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    if sys.platform == "win32":
        return asyncio.run
    import uvloop

    return uvloop.run


def is_loopback(host: str) -> bool:
    """Tell whether `host` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(settings: Settings, *, demo: bool) -> Callable[[str], None]:
    def announce(url: str) -> None:
        url = url.rstrip("/")
        path = "events/host/cpu/0" if demo else "events/news"
        page = "console#host/*" if demo else "console"
        console = output()
        console.print(f"\n  [bold green]sse-gateway[/] serves [bold]{escape(url)}[/]\n")
        console.print(f"  [dim]look at it[/]   {escape(url)}/{page}")
        console.print(f"  [dim]follow[/]       curl -N {escape(url)}/{path}")
        if not demo:
            console.print(f"  [dim]publish[/]      curl -d 'hello' {escape(url)}/publish/news")
        store = f"{settings.data_dir}" if settings.redis == "embedded" else "Redis"
        console.print(f"  [dim]events in[/]    {escape(store)}")
        console.print("  [dim]stop[/]         Ctrl-C\n")
        sys.stdout.flush()

    return announce

"""`sse-gateway doctor`: says what stands between readers and the gateway, and what mends it."""

import asyncio
from typing import Annotated

import orjson
import typer
from rich.markup import escape

from gateway.cli.options import AsJson
from gateway.cli.terminal import EXIT_FAILURE, EXIT_USAGE, command, output, show_error
from gateway.doctor.examine import Examination, examine, worst
from gateway.doctor.finding import Finding, Level
from gateway.doctor.probe import NotReached
from gateway.protocol.channel import check_channel
from gateway.protocol.errors import GatewayError

_MARKS = {
    Level.OK: "[green]ok     [/]",
    Level.WARNING: "[yellow]warning[/]",
    Level.FAULT: "[bold red]fault  [/]",
}


@command
def doctor(
    url: Annotated[str, typer.Argument(help="The public address, as readers use it.")],
    channel: Annotated[
        str, typer.Option("--channel", help="A public channel that has events.", metavar="NAME")
    ] = "host/cpu/0",
    idle: Annotated[
        float, typer.Option("--idle", help="Seconds to watch a quiet stream.", metavar="SECONDS")
    ] = 20.0,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for an answer.", metavar="SECONDS")
    ] = 10.0,
    publish_url: Annotated[
        str,
        typer.Option(
            "--publish-url",
            help="Where to publish to a channel of its own, to see when events arrive.",
            metavar="URL",
        ),
    ] = "",
    stopped: Annotated[
        bool, typer.Option("--stopped", help="The gateway is stopped: look at what readers get.")
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Believe any certificate.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a public address as a browser does, and end with 1 when something is wrong."""
    if stopped and publish_url:
        raise typer.BadParameter("--stopped goes without --publish-url")
    try:
        check_channel(channel)
    except GatewayError as error:
        raise typer.BadParameter(str(error)) from None
    what = Examination(
        url=url, channel=channel, idle=idle, timeout=timeout, insecure=insecure,
        publish_url=publish_url, stopped=stopped,
    )  # fmt: skip
    try:
        found = asyncio.run(examine(what))
    except NotReached as error:
        show_error(error)
        raise typer.Exit(EXIT_USAGE) from None
    if as_json:
        findings = [
            {"check": one.check, "level": one.level, "text": one.text, "mend": list(one.mend)}
            for one in found
        ]
        document = {"url": url, "channel": channel, "worst": worst(found), "findings": findings}
        output().print(orjson.dumps(document).decode(), markup=False)
    else:
        for one in found:
            _show(one)
    if worst(found) is Level.FAULT:
        raise typer.Exit(EXIT_FAILURE)


def _show(one: Finding) -> None:
    console = output()
    console.print(f"{_MARKS[one.level]} [bold]{one.check:<18}[/] {escape(one.text)}")
    for line in one.mend:
        console.print(f"{'':<27}[dim]→ {escape(line)}[/]")

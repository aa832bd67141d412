"""`sse-gateway publish`: one event from the command line, or a file of them."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.cli.client import GatewayClient
from gateway.cli.event_file import Template, read_events
from gateway.cli.file_sender import FileSender
from gateway.cli.options import DEFAULT_URL, AsJson, Url
from gateway.cli.terminal import command, messages, output
from gateway.protocol.errors import InvalidField
from gateway.protocol.json_value import parse_json

Channel = Annotated[
    str,
    typer.Argument(
        metavar="CHANNEL", help="The channel; not needed when the file's lines name theirs."
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="The event's data; - or nothing reads standard input."),
]
File = Annotated[
    Path | None,
    typer.Option("--from", help="Publish the lines of FILE.ndjson or rows of FILE.csv."),
]
Rate = Annotated[
    float | None, typer.Option(min=0.001, help="Events a second of the file; else all at once.")
]
Type = Annotated[str, typer.Option("--type", help="The type: what a browser listens to by name.")]
Key = Annotated[str, typer.Option("--key", help="The key, for channels whose state is keyed.")]
KeyColumn = Annotated[
    str, typer.Option(metavar="NAME", help="The column, or member of the data, that is the key.")
]
IdempotencyKey = Annotated[
    str,
    typer.Option(help="Store it once, however often it is sent; line N of a file gets KEY:N."),
]
IfMatch = Annotated[
    str, typer.Option(metavar="ID", help="Only if this is the channel's last position.")
]
AsText = Annotated[
    bool, typer.Option("--text", help="The data is text, even if it looks like JSON.")
]


@command
def publish(
    channel: Channel = "",
    data: Data = None,
    file: File = None,
    rate: Rate = None,
    type: Type = "",
    key: Key = "",
    key_column: KeyColumn = "",
    idempotency_key: IdempotencyKey = "",
    if_match: IfMatch = "",
    as_text: AsText = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Publish one event, or a file of them.

    Data that is JSON is published as JSON, any other as text.
    """
    if file is not None:
        if data is not None or if_match or as_text:
            raise typer.BadParameter("--from goes with neither DATA, --if-match nor --text")
        template = Template(channel, type, key, key_column, idempotency_key)
        size_bytes = file.stat().st_size if file.is_file() else None
        asyncio.run(
            _publish_file(url, file, template, rate, size_bytes=size_bytes, as_json=as_json)
        )
        return
    if not channel:
        raise typer.BadParameter("a CHANNEL is needed, or --from FILE")
    if rate is not None or key_column:
        raise typer.BadParameter("--rate and --key-column go with --from")
    body = sys.stdin.buffer.read() if data is None or data == "-" else data.encode()
    options = {
        "json": not as_text and _is_json(body),
        "type": type,
        "key": key,
        "idempotency_key": idempotency_key,
        "if_match": if_match,
    }
    answer = asyncio.run(_publish_one(url, channel, body, options))
    if as_json:
        output().print(json.dumps(answer), markup=False)
    else:
        output().print(f"[green]{answer['id']}[/] {escape(channel)}")


def _is_json(body: bytes) -> bool:
    try:
        parse_json(body)
    except InvalidField:
        return False
    return True


async def _publish_one(
    url: str, channel: str, body: bytes, options: dict[str, Any]
) -> dict[str, Any]:
    async with GatewayClient(url) as client:
        return await client.publish(channel, body, **options)


async def _publish_file(
    url: str,
    file: Path,
    template: Template,
    rate: float | None,
    *,
    size_bytes: int | None,
    as_json: bool,
) -> None:
    started = time.monotonic()
    with _progress_bar() as progress:
        task = progress.add_task(file.name, total=size_bytes, events=0)

        def advance(_events: int, at_bytes: int) -> None:
            progress.update(task, completed=at_bytes, events=sender.stored)

        async with GatewayClient(url) as client:
            sender = FileSender(client, advance)
            lines = read_events(file, template)
            await (sender.send(lines) if rate is None else sender.send_at(lines, rate))
    if as_json:
        answer = {
            "count": sender.stored,
            "replayed": sender.replayed,
            "last": sender.last_id,
        }
        output().print(json.dumps(answer), markup=False)
        return
    seconds = max(time.monotonic() - started, 1e-6)
    before = f"; {sender.replayed:,} of them were there before" if sender.replayed else ""
    last = f", the last at [green]{sender.last_id}[/]" if sender.last_id else ""
    output().print(
        f"Published {sender.stored:,} events in {seconds:.1f} s"
        f" ({sender.stored / seconds:,.0f} a second){last}{before}."
    )


def _progress_bar() -> Progress:
    console = messages()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[events]:,} events"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

"""`sse-gateway tail`, `snapshot` and `channels`: what readers of the gateway see."""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.cli.client import GatewayClient
from gateway.cli.options import DEFAULT_URL, AsJson, Url
from gateway.cli.terminal import command, messages, output, printable
from gateway.protocol.channel import check_channel
from gateway.protocol.json_value import dump_json, parse_json
from gateway.protocol.position import ORIGIN, Position
from gateway.protocol.stream_reader import Block

Selectors = Annotated[
    list[str], typer.Argument(metavar="CHANNEL...", help="Channels, or wildcards: 'prefix/*'.")
]
After = Annotated[
    str, typer.Option("--from", metavar="ID", help="Replay what came after this position.")
]
Since = Annotated[
    str, typer.Option(metavar="AGE", help="Replay what came in the last 30s, 5m, 2h or 1d.")
]
NoFollow = Annotated[
    bool, typer.Option("--no-follow", help="Replay, by default all that is kept, and end.")
]
Prefix = Annotated[
    str, typer.Argument(metavar="PREFIX", help="Only channels whose name begins with this.")
]

EVER = "3650d"


@command
def tail(
    selectors: Selectors,
    after: After = "",
    since: Since = "",
    no_follow: NoFollow = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow channels: print each event as it comes, and resume by itself after a cut.

    With --json each event is a line that `publish --from` reads again. A `reset` is the state of
    a channel, in place of events that came faster than they were read.
    """
    if after and since:
        raise typer.BadParameter("give --from or --since, not both")
    if no_follow and not (after or since):
        since = EVER
    asyncio.run(_tail(url, selectors, after, since, no_follow=no_follow, as_json=as_json))


async def _tail(
    url: str, selectors: list[str], after: str, since: str, *, no_follow: bool, as_json: bool
) -> None:
    out, notes = output(), messages()

    def note(text: str) -> None:
        notes.print(f"[yellow]{escape(printable(text))}[/]")

    async with GatewayClient(url) as client:
        end = await _newest(client, selectors, note) if no_follow else None
        stream = client.follow(
            selectors,
            after=after,
            since=since,
            on_reconnect=lambda reason: note(f"{reason}; reconnecting"),
        )
        async with aclosing(stream) as blocks:
            async for block in blocks:
                if block.data is not None:
                    _print_block(block, out, note, as_json=as_json)
                if end is not None and block.id and Position.parse(block.id) >= end:
                    return


async def _newest(
    client: GatewayClient, selectors: list[str], note: Callable[[str], None]
) -> Position:
    """Return the last position that any of the selected channels has."""
    newest = ORIGIN
    for selector in selectors:
        known = False
        prefix = selector.removesuffix("*")
        wild = prefix != selector
        # The channel itself comes first of those that begin with its name.
        async with aclosing(client.channels(prefix, limit=1000 if wild else 1)) as channels:
            async for one in channels:
                if wild or one["channel"] == selector:
                    newest, known = max(newest, Position.parse(one["id"])), True
                if not wild:
                    break
        if not known:
            note(f"{selector}: there is no such channel")
    return newest


def _print_block(block: Block, out: Console, note: Callable[[str], None], *, as_json: bool) -> None:
    data = block.data or ""
    if block.type == "reset" and not as_json:
        out.print(reset_line(data), markup=True)
        return
    if block.type == "reset":
        sys.stdout.write(f"{reset_record(block, data)}\n")
        sys.stdout.flush()
        return
    # Only events stand in envelopes; what the gateway itself says does not.
    if not data.startswith('{"channel":'):
        note(notice(block))
        return
    if as_json:
        # Spliced, so that numbers stay spelled as they were published.
        named = "" if block.type == "message" else f'"type":{json.dumps(block.type)},'
        sys.stdout.write(f'{{"id":"{block.id}",{named}{data[1:]}\n')
        sys.stdout.flush()
        return
    out.print(event_line(block, data), markup=True)


def reset_record(block: Block, data: str) -> str:
    """Return a reset as JSON, with the members of an event: its data is the snapshot as it came.

    Its id is where the stream is: of several channels only the last one's reset moves that.
    """
    snapshot = parse_json(data.encode())
    assert isinstance(snapshot, dict)
    channel = json.dumps(snapshot["channel"])
    return f'{{"id":"{block.id}","type":"reset","channel":{channel},"data":{data}}}'


def reset_line(data: str) -> str:
    """Return a reset for people: the state, and the position of the last event in it."""
    snapshot = parse_json(data.encode())
    assert isinstance(snapshot, dict)
    state = printable(dump_json(snapshot["state"]).decode())
    position, channel = snapshot["id"], escape(snapshot["channel"])
    return (
        f"[dim]{position}[/] {_clock(Position.parse(position))} [cyan]{channel}[/]"
        f" [magenta]reset[/] {escape(state)}"
    )


def event_line(block: Block, data: str) -> str:
    envelope = parse_json(data.encode())
    assert isinstance(envelope, dict)
    value = envelope["data"]
    text = value if isinstance(value, str) else dump_json(value).decode()
    parts = [
        f"[dim]{block.id}[/]",
        _clock(Position.parse(block.id)),
        f"[cyan]{escape(envelope['channel'])}[/]",
    ]
    if block.type != "message":
        parts.append(f"[magenta]{escape(printable(block.type))}[/]")
    if "key" in envelope:
        parts.append(f"[yellow]{escape(printable(envelope['key']))}[/]")
    parts.append(escape(printable(text)))
    return " ".join(parts)


def _clock(position: Position) -> str:
    seconds, milliseconds = divmod(position.ms, 1000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{milliseconds:03}"


def notice(block: Block) -> str:
    """Return in words what the gateway itself says on a stream."""
    try:
        said = json.loads(block.data or "")
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return f"{block.type}: {block.data}"
    reason = said.get("reason", "no reason given")
    if block.type == "gap":
        return (
            f"gap ({reason}): events after {said.get('requested')} are gone,"
            f" the stream goes on after {block.id}; oldest kept: {said.get('oldest')}"
        )
    return f"{block.type} ({reason})"


@command
def snapshot(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel.")],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print a channel's current state, and the position it is true at."""
    body = asyncio.run(_snapshot(url, channel))
    if as_json:
        sys.stdout.write(f"{body.decode().rstrip()}\n")
        return
    document = parse_json(body)
    assert isinstance(document, dict)
    messages().print(f"[cyan]{escape(channel)}[/] at [green]{escape(str(document.get('id')))}[/]")
    text = json.dumps(document.get("state"), indent=2, ensure_ascii=False)
    # JSON escapes C0 controls by itself, the others not.
    text = "\n".join(printable(line) for line in text.split("\n"))
    output().print(text, markup=False, highlight=True)


async def _snapshot(url: str, channel: str) -> bytes:
    async with GatewayClient(url) as client:
        return await client.snapshot(check_channel(channel))


@command
def channels(prefix: Prefix = "", as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List the channels: last position, events kept, age of the last one, open streams here."""
    asyncio.run(_channels(url, prefix, as_json=as_json))


async def _channels(url: str, prefix: str, *, as_json: bool) -> None:
    table = Table("Channel", "Namespace", "Position", box=None, header_style="bold", pad_edge=False)
    for name in ("Events", "Age", "Streams"):
        table.add_column(name, justify="right")
    async with GatewayClient(url) as client, aclosing(client.channels(prefix)) as listed:
        async for one in listed:
            if as_json:
                sys.stdout.write(f"{orjson.dumps(one).decode()}\n")
                continue
            table.add_row(
                f"[cyan]{escape(one['channel'])}[/]",
                escape(one["namespace"]),
                f"[green]{one['id']}[/]",
                f"{one['events']:,}",
                age_text(one.get("age_seconds")),
                f"{one.get('subscribers', 0):,}",
            )
    if as_json:
        return
    if table.row_count:
        output().print(table)
    else:
        messages().print("There are no channels yet.")


def age_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""`sse-gateway config`: what the settings are, where they come from, and what is wrong."""

import json
from collections.abc import Iterator
from typing import Any

import orjson
import typer
from rich.markup import escape

from gateway.cli.options import AsJson, Config
from gateway.cli.terminal import command, output
from gateway.protocol.errors import hide_password
from gateway.settings import LoadedSettings, load_with_sources
from gateway.settings_schema import PurgeSettings

app = typer.Typer(no_args_is_help=True)


@app.command()
@command
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Say whether the settings are right; if not, what is wrong, and end with 2."""
    loaded = load_with_sources(config, {})
    sources = [name for name, given in loaded.sources if given]
    if as_json:
        output().print(json.dumps({"valid": True, "sources": sources}), markup=False)
    else:
        read = escape(", ".join(sources)) or "nothing given, all defaults"
        output().print(f"[green]The settings are right[/] ({read}).")


@app.command()
@command
def show(config: Config = None, as_json: AsJson = False) -> None:
    """Print every setting in force, as TOML, with the source of each that is no default."""
    loaded = load_with_sources(config, {})
    values = loaded.settings.model_dump(mode="json")
    values["redis"] = hide_password(values["redis"])
    for name, value in values["purge"].items():
        if name in PurgeSettings.SECRETS:
            values["purge"][name] = "***" if value else ""
        elif isinstance(value, str):
            values["purge"][name] = hide_password(value)
        elif isinstance(value, list):
            values["purge"][name] = [hide_password(url) for url in value]
    if as_json:
        output().print(orjson.dumps(values).decode(), markup=False)
        return
    console = output()
    for line, source in toml_lines(values, loaded):
        note = "" if source == "default" else f"  [dim]# {escape(source)}[/]"
        console.print(f"{escape(line)}{note}")


def toml_lines(
    values: dict[str, Any], loaded: LoadedSettings, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each line of the settings as TOML, and the name of the source that gave it."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    for key, value in values.items():
        if key not in tables:
            # A JSON string or number is a TOML one.
            text = json.dumps(value, ensure_ascii=False)
            yield f"{key} = {text}", loaded.source_of((*path, key))
    for key, table in tables.items():
        below = (*path, key)
        if any(not isinstance(value, dict) for value in table.values()):
            yield "", "default"
            yield f"[{'.'.join(map(_toml_key, below))}]", "default"
        yield from toml_lines(table, loaded, below)


def _toml_key(name: str) -> str:
    # A bare key has neither dots nor tildes; both may stand in a namespace's name.
    return name if name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'

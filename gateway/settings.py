"""Loading the settings: file, environment and command line into one checked value.

A later source wins: default, TOML file, environment, command line. What is wrong with them
is said in one line.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_settings
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from gateway.protocol.errors import GatewayError, hide_password
from gateway.settings_schema import (
    DELIMITER,
    PREFIX,
    HistorySettings,
    MirrorSettings,
    NamespaceSettings,
    PublishSettings,
    Settings,
    SnapshotSettings,
    StoreSettings,
    StreamSettings,
)

__all__ = [
    "HistorySettings",
    "LoadedSettings",
    "MirrorSettings",
    "NamespaceSettings",
    "PublishSettings",
    "Settings",
    "SettingsError",
    "SnapshotSettings",
    "StoreSettings",
    "StreamSettings",
    "load_settings",
    "load_with_sources",
]

DEFAULT_FILE = Path("config/gateway.toml")
_VALUE_LIMIT = 120  # Characters of a wrong value that its line repeats.

_Tree = dict[str, Any]
_Path = tuple[str, ...]


class SettingsError(GatewayError):
    """A setting that breaks a rule: where it was given, its key and value, and the rule.

    `key` is empty when the whole source is at fault, as a file that is no TOML.
    """

    def __init__(self, where: str, key: str, value: object, rule: str) -> None:
        setting = f"{key} = {_shown(value)}: " if key else ""
        super().__init__(f"{where}: {setting}{rule}")
        self.where = where
        self.key = key
        self.value = value
        self.rule = rule


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings and the sources they came from, in rising order: (name, what it gives)."""

    settings: Settings
    sources: tuple[tuple[str, _Tree], ...]

    def source_of(self, path: _Path) -> str:
        """Return the name of the source that gives the setting at `path`, else `default`."""
        return _source_of(self.sources, path) or "default"


def load_settings(config: Path | None, overrides: Mapping[str, object]) -> Settings:
    """Return the settings of file, environment and `overrides` (the command line's).

    The file is `config`, else $GATEWAY_CONFIG, else config/gateway.toml when it exists.
    Raises SettingsError.
    """
    return load_with_sources(config, overrides).settings


def load_with_sources(config: Path | None, overrides: Mapping[str, object]) -> LoadedSettings:
    """Return what `load_settings` returns, and where each setting came from."""
    sources: list[tuple[str, _Tree]] = []
    file = _find_file(config)
    if file is not None:
        sources.append((str(file), _read_file(file)))
    sources.append(("environment", _read_environment(os.environ)))
    sources.append(("command line", dict(overrides)))
    merged: _Tree = {}
    for where, tree in sources:
        for key in tree:
            if key not in Settings.model_fields:
                raise _unknown(where, (key,), tree[key])
        merged = _merge(merged, tree)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise _translate(error.errors(include_url=False)[0], sources) from None
    return LoadedSettings(settings, tuple(sources))


def _find_file(config: Path | None) -> Path | None:
    if config is not None:
        return config
    if given := os.environ.get(f"{PREFIX}CONFIG"):
        return Path(given)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _read_file(file: Path) -> _Tree:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(str(file), "", None, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8: byte {error.start}"
        raise SettingsError(str(file), "", None, rule) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(str(file), "", None, f"is not TOML: {error}") from None


def _read_environment(environment: Mapping[str, str]) -> _Tree:
    for name, value in environment.items():
        # Other names with our prefix are none of our business: container platforms set
        # GATEWAY_SERVICE_HOST and the like for a service called "gateway".
        table, nested, _ = name.removeprefix(PREFIX).partition(DELIMITER)
        if name.startswith(PREFIX) and nested and not _is_table(table.lower()):
            names = (f"{PREFIX}{table.upper()}" for table in Settings.model_fields)
            rule = "is not a setting" + _suggestion(f"{PREFIX}{table}", names)
            raise SettingsError("environment", name, value, rule)
    try:
        return EnvSettingsSource(Settings)()
    except pydantic_settings.SettingsError as error:
        field = re.search(r'"(\w+)"', str(error))
        name = f"{PREFIX}{field[1].upper()}" if field else ""
        rule = "must be a JSON object"
        raise SettingsError("environment", name, environment.get(name), rule) from None


def _is_table(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return name == "namespaces" or hasattr(field and field.annotation, "model_fields")


def _merge(below: _Tree, above: _Tree) -> _Tree:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merge(under, value)
        merged[key] = value
    return merged


def _source_of(sources: Iterable[tuple[str, _Tree]], path: _Path) -> str | None:
    found = None
    for where, tree in sources:
        node: Any = tree
        for key in path:
            if not isinstance(node, dict) or key not in node:
                break
            node = node[key]
        else:
            found = where
    return found


def _translate(error: ErrorDetails, sources: list[tuple[str, _Tree]]) -> SettingsError:
    context = error.get("ctx", {})
    if error["type"] == "bound":
        paths: tuple[_Path, ...] = context["paths"]
        # The source is that of what was given: a default is not wrong by itself.
        where = next((found for path in paths if (found := _source_of(sources, path))), "default")
        return SettingsError(where, ".".join(paths[0]), context["value"], context["rule"])
    # A member of a list is named by its value.
    path = tuple(part for part in error["loc"] if isinstance(part, str))
    where = _source_of(sources, path) or "default"
    if error["type"] == "extra_forbidden":
        return _unknown(where, path, error["input"])
    return SettingsError(where, _name(where, path), error["input"], _rule(error))


def _rule(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "literal_error" | "enum":
            return f"must be {context['expected'].replace(chr(39), '')}"
        case "string_type" | "path_type":
            return "must be text"
        case "string_too_short":
            return "must not be empty"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table"
    return error["msg"]


def _unknown(where: str, path: _Path, value: object) -> SettingsError:
    known: Iterable[str] = Settings.model_fields
    if path[:1] == ("namespaces",):
        known = NamespaceSettings.model_fields
    elif len(path) > 1:
        known = getattr(Settings.model_fields[path[0]].annotation, "model_fields", {})
    rule = "is not a setting" + _suggestion(path[-1], known)
    return SettingsError(where, _name(where, path), value, rule)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _name(where: str, path: _Path) -> str:
    if where == "environment":
        return PREFIX + DELIMITER.join(path).upper()
    if where == "command line" and len(path) == 1:
        return f"--{path[0].replace('_', '-')}"
    return ".".join(path)


def _shown(value: object) -> str:
    if isinstance(value, dict | list | str | bool):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    text = hide_password(text)
    return text if len(text) <= _VALUE_LIMIT else f"{text[:_VALUE_LIMIT]}…"

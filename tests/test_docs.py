"""README and docs: what they name exists, and what they show happens."""

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from gateway.app import build_gateway
from gateway.cli import app
from gateway.demo import publish_host_figures
from gateway.protocol.event import RESERVED_TYPES, NewEvent
from gateway.settings import NamespaceSettings, Settings
from gateway.settings_schema import DELIMITER, PREFIX
from gateway.web.routes import build_application
from tests.running import Worker, until

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
README, HTTP, CLI = ROOT / "README.md", ROOT / "docs/http.md", ROOT / "docs/cli.md"
ADDRESS = "localhost:8080"

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

every_document = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


@dataclass(frozen=True)
class Document:
    """A Markdown file: its text outside of code blocks, and the blocks by language."""

    prose: str
    blocks: list[tuple[str, str]]

    @property
    def spans(self) -> list[str]:
        return SPAN.findall(self.prose)

    @property
    def code(self) -> list[str]:
        """Every span, and every line of the blocks, those that go on in the next one joined."""
        blocks = [block.replace("\\\n", "") for _, block in self.blocks]
        return self.spans + [line for block in blocks for line in block.splitlines()]


def read(path: Path) -> Document:
    text = path.read_text(encoding="utf-8")
    blocks = [(language, block) for _, language, block in FENCE.findall(text)]
    return Document(FENCE.sub("", text), blocks)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


# -- links ------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """Return what GitHub calls the headings."""
    titles = HEADING.findall(read(path).prose)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(read(path).prose):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# -- settings ---------------------------------------------------------------------------------

TABLES = {
    name: set(field.annotation.model_fields)
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
TABLES["namespaces"] = set(NamespaceSettings.model_fields)
KEYS = set[str]().union(*TABLES.values())
FILES = {"publish.lua", "mirror.py", "store.sock", "store.log", "store.log.old"}
DOTTED = re.compile(r"([a-z]+)\.([a-z_<>.]+)")
BARE = re.compile(r"(?<![\w.])[a-z]+(?:_[a-z]+)*_(?:seconds|bytes|ms|events|limit)\b")
VARIABLE = re.compile(rf"\b{PREFIX}[A-Z][A-Z_]*")
DEFAULT = re.compile(r"`([a-z]+\.[a-z_]+)` \((\d+)\)")
OF_AN_ANSWER = {"age_seconds"}
OF_THE_COMMAND_LINE = {f"{PREFIX}CONFIG", f"{PREFIX}URL"}


def is_setting(table: str, key: str) -> bool:
    if table == "namespaces":
        key = key.rpartition(".")[2]
    return key in TABLES.get(table, ())


@every_document
def test_settings_exist(path: Path) -> None:
    document = read(path)
    for span in document.spans:
        match = DOTTED.fullmatch(span)
        if match and match[1] in TABLES and span not in FILES:
            assert is_setting(match[1], match[2]), span
    for code in document.code:
        for name in BARE.findall(code):
            assert name in KEYS | OF_AN_ANSWER or name.startswith("sse_gateway_"), name


@every_document
def test_variables_exist(path: Path) -> None:
    for name in VARIABLE.findall(path.read_text(encoding="utf-8")):
        table, _, key = name.removeprefix(PREFIX).lower().partition(DELIMITER)
        if key:
            assert is_setting(table, key.replace(DELIMITER, ".")), name
        else:
            assert table in Settings.model_fields or name in OF_THE_COMMAND_LINE, name


@every_document
def test_defaults_are_told_as_they_are(path: Path) -> None:
    told = DEFAULT.findall(read(path).prose)
    defaults = Settings().model_dump()
    assert [defaults[table][key] for table, key in (name.split(".") for name, _ in told)] == [
        int(number) for _, number in told
    ]


def test_the_readme_tells_the_defaults_of_its_settings() -> None:
    defaults = Settings().model_dump(mode="json")
    seen = 0
    for row in re.findall(r"^\| (`[a-z].*)$", README.read_text(encoding="utf-8"), re.MULTILINE):
        names, values, *_ = row.split("|")
        told = [value.strip(" `") for value in values.split(",")]
        for name, value in zip(SPAN.findall(names), told, strict=False):
            found: Any = defaults
            for part in name.split("."):
                found = found[part]
            # As TOML has it, but for the quotes of a text.
            spelled = found if isinstance(found, str) else json.dumps(found)
            assert name == "data_dir" or spelled == value, name
            seen += 1
    assert seen > 5


# -- commands ---------------------------------------------------------------------------------

CALL = re.compile(r"(?:^|[\s/])sse-gateway ([a-z][^|>;]*)")


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name."""
    stack: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while stack:
        name, command = stack.pop()
        below = getattr(command, "commands", {})
        stack += [(f"{name} {one}".strip(), child) for one, child in below.items()]
        if not below:
            yield name, command


OPTIONS = {
    name: {option for one in command.params for option in one.opts if option.startswith("--")}
    for name, command in commands()
}


@every_document
def test_commands_and_their_options_exist(path: Path) -> None:
    for line in read(path).code:
        for call in CALL.findall(line):
            words = shlex.split(call)
            name = next((n for n in (words[0], " ".join(words[:2])) if n in OPTIONS), words[0])
            # A group of commands may stand for all of them.
            group = len(words) == 1 and any(full.startswith(f"{name} ") for full in OPTIONS)
            assert name in OPTIONS or group, call
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= OPTIONS.get(name, set()) | {"--help"}, call


def test_every_command_is_described_with_every_option() -> None:
    _, *sections = re.split(r"^## sse-gateway ", CLI.read_text(encoding="utf-8"), flags=re.M)
    told = {}
    for section in sections:
        spans = SPAN.findall(FENCE.sub("", section))
        told[section.partition("\n")[0]] = {s.split()[0] for s in spans if s.startswith("--")}
    assert told == OPTIONS


# -- HTTP and metrics -------------------------------------------------------------------------


def test_every_path_is_described() -> None:
    gateway = build_gateway(Settings(), "redis://127.0.0.1:6379/0")
    routes = build_application(
        gateway.handlers, base_path="", requests=gateway.requests
    ).router.routes()
    offered = {f"{r.method} {r.resource.canonical}" for r in routes if r.resource is not None}
    told = {s for s in read(HTTP).spans if re.fullmatch(r"(GET|POST|DELETE) /\S*", s)}
    assert told == {one for one in offered if one.startswith(("GET", "POST", "DELETE"))}


def test_reserved_types_are_described() -> None:
    line = next(one for one in read(HTTP).prose.splitlines() if "**Reserved types**" in one)
    assert set(SPAN.findall(line)) == RESERVED_TYPES


def test_every_metric_is_described() -> None:
    exposed = build_gateway(Settings(), "redis://127.0.0.1:6379/0").metrics.exposition()[0]
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(sse_gateway_\w+)` \| (\w+) \|", text, re.MULTILINE)
    found = re.findall(r"^# TYPE (\w+) (\w+)$", exposed.decode(), re.MULTILINE)
    assert sorted(told) == sorted(found)


# -- what is shown, done ----------------------------------------------------------------------

POSITION = re.compile(r"\b[0-9]{13}-[0-9]+\b")
EPOCH = re.compile(r'(?<="epoch":")[0-9a-f]{16}')


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program for as long as the block at most."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, **options
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def lines(process: asyncio.subprocess.Process, number: int = 1) -> list[str]:
    """Return the next lines of a program's output, fewer at its end."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        read = [await process.stdout.readline() for _ in range(number)]
    return [line.decode().removesuffix("\n") for line in read if line]


def calls(path: Path) -> list[tuple[str, list[str]]]:
    """Return each call of curl in the document's sessions, and what it is said to print."""
    text = "".join(block for language, block in read(path).blocks if language == "console")
    found = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *output = part.strip().splitlines()
        if command.startswith("curl "):
            found.append((command, output))
    return found


def pattern(line: str) -> re.Pattern[str]:
    """Return what matches the line with any position and epoch, and anything for `…`."""
    line = EPOCH.sub("<epoch>", POSITION.sub("<position>", line))
    return re.compile(re.escape(line).replace("…", ".*"))


async def test_sessions_with_curl_are_true(gateway: Worker) -> None:
    session = [*calls(README), *calls(HTTP)]
    assert len(session) > 6
    positions: dict[str, str] = {}
    for command, expected in session:
        given = POSITION.sub(lambda match: positions[match[0]], command)
        given = given.replace(ADDRESS, gateway.url.removeprefix("http://"))
        name, *arguments = shlex.split(given)
        async with running(name, "-sS", *arguments) as process:
            output = await lines(process, len(expected))
        assert len(output) == len(expected), (command, output)
        for told, true in zip(expected, output, strict=True):
            plain = EPOCH.sub("<epoch>", POSITION.sub("<position>", true))
            assert pattern(told).fullmatch(plain), (command, true)
            # One position of the text is always the same one here.
            for old, new in zip(POSITION.findall(told), POSITION.findall(true), strict=False):
                assert positions.setdefault(old, new) == new, (command, true)


async def test_the_first_stream_of_the_readme_shows_figures(gateway: Worker) -> None:
    command = next(
        line
        for language, block in read(README).blocks
        for line in block.splitlines()
        if language == "sh" and line.startswith("curl ")
    )

    async def publish(channel: str, data: bytes) -> object:
        event = NewEvent(channel, data, json=True)
        return await gateway.gateway.publisher.publish("default", [event])

    given = command.replace(ADDRESS, gateway.url.removeprefix("http://"))
    figures = asyncio.create_task(publish_host_figures(publish, interval_seconds=0.05))
    try:
        name, *arguments = shlex.split(given)
        async with running(name, "-sS", *arguments) as process:
            output = await lines(process, 5)
    finally:
        figures.cancel()
    assert output[0].startswith("retry: ")
    assert output[4].startswith('data: {"percent":'), output


async def test_the_script_of_the_readme_shows_every_state(gateway: Worker) -> None:
    script = next(block for language, block in read(README).blocks if language == "js")
    script = script.replace(f"http://{ADDRESS}", gateway.url)
    load = "import { EventSource } from 'eventsource'; globalThis.EventSource = EventSource;\n"
    server = gateway.gateway

    async def publish(price: int) -> None:
        data = f'{{"price": {price}}}'.encode()
        await server.publisher.publish("default", [NewEvent("stocks/acme", data, json=True)])

    await publish(1)
    async with running(
        "node", "--input-type=module", "-e", load + script, cwd=ROOT / "tests/js"
    ) as process:
        assert await lines(process) == ["{ price: 1 }"]
        await publish(2)
        assert await lines(process) == ["{ price: 2 }"]
        # A gap: it begins with the snapshot again.
        await server.publisher.delete("default", "stocks/acme")
        await until(lambda: not server.hub.subscribers)
        await publish(3)
        assert await lines(process) == ["{ price: 3 }"]

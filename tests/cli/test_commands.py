"""The command line without a gateway: options, settings, and errors in plain words."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from gateway import cli
from gateway.cli import read, terminal
from gateway.cli.client import Problem, Refused
from gateway.cli.file_sender import PublishingStopped
from gateway.cli.serve import is_loopback
from gateway.protocol.stream_reader import Block
from gateway.settings import Settings


class Result(NamedTuple):
    """What a command left behind."""

    code: int | str | None
    out: str
    err: str


class CommandLine:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.app(list(args))
        out, err = self._capsys.readouterr()
        return Result(ended.value.code, out, err)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    return CommandLine(capsys)


@pytest.mark.parametrize(
    "command",
    [[], ["serve"], ["demo"], ["publish"], ["tail"], ["snapshot"], ["channels"], ["config"]],
)
def test_every_command_explains_itself(run: CommandLine, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert "Usage:" in result.out


def test_every_setting_above_the_tables_is_an_option_of_serve_and_demo(run: CommandLine) -> None:
    shown = {name: run(name, "--help").out for name in ("serve", "demo")}
    for name, field in Settings.model_fields.items():
        if not hasattr(field.annotation, "model_fields") and name != "namespaces":
            assert all(f"--{name.replace('_', '-')} " in out for out in shown.values()), name


def test_without_a_command_the_commands_are_listed(run: CommandLine) -> None:
    assert "snapshot" in (result := run()).out
    assert result.code == 2


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_wrong_option_stops_the_start_with_one_line(run: CommandLine, command: str) -> None:
    result = run(command, "--port", "http")
    assert result == (2, "", 'Error: command line: --port = "http": must be a whole number\n')


def test_a_wrong_file_stops_the_start_with_one_line(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[streams]\nretry_ms = 0\n")
    result = run("serve", "--config", "my.toml")
    assert result == (2, "", "Error: my.toml: streams.retry_ms = 0: must be at least 1\n")


def test_config_check_says_what_was_read(run: CommandLine, tmp_path: Path) -> None:
    result = run("config", "check")
    assert result == (0, "The settings are right (nothing given, all defaults).\n", "")
    (tmp_path / "my.toml").write_text("port = 1")
    result = run("config", "check", "--config", "my.toml", "--json")
    assert json.loads(result.out) == {"valid": True, "sources": ["my.toml"]}


def test_config_check_says_what_is_wrong(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("prot = 1")
    result = run("config", "check", "--config", "my.toml")
    assert result == (2, "", "Error: my.toml: prot = 1: is not a setting; did you mean port?\n")


def test_config_show_prints_a_file_that_gives_the_same_settings(
    run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.toml").write_text("[namespaces.'a.b']\nkeys_limit = 7\n[namespaces.c-d]\n")
    monkeypatch.setenv("GATEWAY_PORT", "9")
    monkeypatch.setenv("GATEWAY_CONFIG", "my.toml")
    result = run("config", "show")
    assert 'host = "127.0.0.1"\n' in result.out
    assert "port = 9  # environment\n" in result.out
    assert '[namespaces."a.b"]\n' in result.out
    assert "[namespaces.c-d]\n" in result.out
    assert "keys_limit = 7  # my.toml\n" in result.out
    document = tomllib.loads(result.out)
    assert document == json.loads(run("config", "show", "--json").out)
    assert Settings(**document).namespaces["a.b"].keys_limit == 7


def test_config_show_hides_the_password(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_REDIS", "redis://me:hidden@localhost:6379/0")
    monkeypatch.setenv("GATEWAY_PURGE__VARNISH_URLS", '["http://me:hidden@10.0.0.1:6082"]')
    monkeypatch.setenv("GATEWAY_PURGE__WEBHOOK_URL", "https://me:hidden@example.org/hook")
    monkeypatch.setenv("GATEWAY_PURGE__WEBHOOK_SECRET", "hidden")
    out = run("config", "show").out + run("config", "show", "--json").out
    assert "hidden" not in out
    assert "redis://***@localhost:6379/0" in out
    assert "http://***@10.0.0.1:6082" in out
    assert "https://***@example.org/hook" in out


@pytest.mark.parametrize(
    ("args", "rule"),
    [
        (["publish"], "a CHANNEL is needed"),
        (["publish", "a", "1", "--rate", "1"], "go with --from"),
        (["publish", "a", "1", "--from", "a.csv"], "--from goes with neither"),
        (["publish", "a", "--from", "a.csv", "--rate", "0"], "--rate"),
        (["tail"], "Missing argument"),
        (["tail", "a", "--from", "1-0", "--since", "5m"], "not both"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: CommandLine, args: list[str], rule: str
) -> None:
    result = run(*args)
    assert result.code == 2
    assert rule in " ".join(result.err.replace("│", " ").split())


@pytest.mark.parametrize("command", [["snapshot", "a"], ["publish", "a", "1"], ["channels"]])
def test_no_gateway_is_said_in_one_line(run: CommandLine, command: list[str]) -> None:
    url = "http://127.0.0.1:1"
    line = f"Error: cannot reach {url}: Connection refused (does the gateway run there?)\n"
    assert run(*command, "--url", url) == (1, "", line)


def test_a_file_that_is_not_there_is_said_in_one_line(run: CommandLine) -> None:
    result = run("publish", "a", "--from", "a.csv", "--url", "http://127.0.0.1:1")
    assert result == (1, "", "Error: a.csv: cannot be read: No such file or directory\n")


def test_a_refusal_is_shown_by_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    errors = ({"line": 3, "field": "channel", "value": "a b", "rule": "must be [x]"},)
    refused = Refused(Problem(422, "Unprocessable", "not valid", "data", "\x1b[2J", "r", errors))
    terminal.show_error(PublishingStopped(9, 5, refused))
    assert capsys.readouterr().err == (
        "Error: stopped at line 9 after 5 stored events: not valid\n"
        "  status 422 Unprocessable\n"
        "  field  data\n"
        "  value  \\x1b[2J\n"
        "  rule   r\n"
        "  line   3: channel = a b: must be [x]\n"
    )


def failing(error: BaseException) -> Any:
    @terminal.command
    def fail() -> None:
        raise error

    return fail


def test_errors_of_tasks_are_shown_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("tasks", [OSError(98, "in use"), ExceptionGroup("", [OSError("b")])])
    with pytest.raises(typer.Exit) as ended:
        failing(group)()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "Error: [Errno 98] in use\nError: b\n"


def test_an_error_that_nobody_expected_keeps_its_traceback() -> None:
    with pytest.raises(ExceptionGroup):
        failing(ExceptionGroup("tasks", [OSError("a"), KeyError("b")]))()
    with pytest.raises(KeyError):
        failing(KeyError("b"))()


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        failing(KeyboardInterrupt())()
    assert ended.value.exit_code == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_went_away_is_no_error() -> None:
    # The pipe's reading end is closed before the first byte is written.
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "config", "show"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def event_line(block: Block) -> str:
    assert block.data is not None
    return read.event_line(block, block.data)


def test_an_event_is_one_line_that_a_terminal_cannot_be_fooled_with() -> None:
    block = Block(
        "9007199254740991-0", "ty\x07pe", '{"channel":"a/b","key":"k\\r","data":"x\\n[b]"}'
    )
    assert event_line(block).endswith(
        ".991 [cyan]a/b[/] [magenta]ty\\x07pe[/] [yellow]k\\r[/] x\\n\\[b]"
    )


def test_an_event_shows_its_time() -> None:
    line = event_line(Block("1764025200123-0", data='{"channel":"a","data":{"x":[1,2.50]}}'))
    assert line.startswith("[dim]1764025200123-0[/] ")
    assert line.endswith(':00.123 [cyan]a[/] {"x":[1,2.5]}')


RESET = '{"channel":"a/b","id":"1764025200123-0","epoch":"0f","state":{"k":"x\\u001b[b]","l":2.50}}'


def test_a_reset_shows_the_state_and_its_position() -> None:
    line = read.reset_line(RESET)
    assert line.startswith("[dim]1764025200123-0[/] ")
    assert line.endswith(r':00.123 [cyan]a/b[/] [magenta]reset[/] {"k":"x\u001b\[b]","l":2.5}')


def test_a_reset_is_a_record_with_the_position_of_the_stream() -> None:
    record = read.reset_record(Block("9-0", "reset", RESET), RESET)
    assert record == f'{{"id":"9-0","type":"reset","channel":"a/b","data":{RESET}}}'
    assert json.loads(record)["data"] == json.loads(RESET)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "gap",
            '{"reason":"trimmed","requested":"1-0","oldest":"3-0","newest":"9-0"}',
            "gap (trimmed): events after 1-0 are gone, the stream goes on after 9-0;"
            " oldest kept: 3-0",
        ),
        ("unavailable", '{"reason":"draining"}', "unavailable (draining)"),
        ("unavailable", "{}", "unavailable (no reason given)"),
        ("other", "text", "other: text"),
        ("other", "[]", "other: []"),
    ],
)
def test_what_the_gateway_says_on_a_stream_is_put_in_words(
    kind: str, data: str, words: str
) -> None:
    assert read.notice(Block("9-0", kind, data)) == words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.4, "0 s"), (59.0, "59 s"), (61, "1 m"), (7200, "2 h"), (200000, "2 d")],
)
def test_an_age_is_short(seconds: float | None, text: str) -> None:
    assert read.age_text(seconds) == text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_what_is_reached_from_elsewhere_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback

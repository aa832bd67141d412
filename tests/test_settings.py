"""Settings: defaults, sources and their order, and one line for whatever is wrong."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.protocol.errors import hide_password
from gateway.protocol.namespace import Reducer
from gateway.settings import Settings, SettingsError, load_settings
from gateway.settings import load_with_sources as load
from gateway.settings_schema import NamespaceSettings

FILE = Path(__file__).parents[1] / "config" / "gateway.toml"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GATEWAY_CONFIG", "GATEWAY_PORT", "GATEWAY_REDIS"):
        monkeypatch.delenv(name, raising=False)


@dataclasses.dataclass
class Written:
    """A settings file, and what loading it says."""

    path: Path

    def line(self, text: str) -> str:
        self.path.write_text(text)
        with pytest.raises(SettingsError) as raised:
            load_settings(self.path, {})
        line = str(raised.value)
        assert "\n" not in line
        where, _, rest = line.partition(": ")
        assert where == str(self.path)
        return rest


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "gateway.toml")


def environment_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings(None, {})
    return str(raised.value)


def keys(table: dict[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for key, value in table.items():
        path = (*above, key)
        found |= keys(value, path) if isinstance(value, dict) else {path}
    return found


def test_the_shipped_file_says_exactly_the_defaults() -> None:
    assert load_settings(FILE, {}) == Settings()


def test_no_setting_is_missing_in_the_shipped_file() -> None:
    assert keys(tomllib.loads(FILE.read_text())) == keys(Settings().model_dump())


def test_every_setting_of_the_shipped_file_stands_below_a_comment() -> None:
    for block in FILE.read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("[")]
        if any(not line.startswith("#") for line in lines):
            assert lines[0].startswith("# "), block


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings(None, {}) == Settings()


def test_the_file_below_the_working_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.toml").write_text("port = 9001")
    assert load_settings(None, {}).port == 9001


def test_the_file_of_the_environment_wins_over_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.toml").write_text("port = 9001")
    (tmp_path / "other.toml").write_text("port = 9002")
    monkeypatch.setenv("GATEWAY_CONFIG", "other.toml")
    assert load_settings(None, {}).port == 9002


def test_a_later_source_wins(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    written.path.write_text('port = 9001\nhost = "::1"\nbase_path = "/live"\n')
    monkeypatch.setenv("GATEWAY_PORT", "9002")
    monkeypatch.setenv("GATEWAY_HOST", "127.0.0.2")
    loaded = load(written.path, {"port": 9003})
    settings = loaded.settings
    assert (settings.port, settings.host, settings.base_path) == (9003, "127.0.0.2", "/live")
    assert loaded.source_of(("port",)) == "command line"
    assert loaded.source_of(("host",)) == "environment"
    assert loaded.source_of(("base_path",)) == str(written.path)
    assert loaded.source_of(("workers",)) == "default"


def test_tables_are_merged_key_by_key(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    written.path.write_text(
        "[streams]\nretry_ms = 7\n[namespaces.prices]\nreducer = 'keyed'\nkeys_limit = 3\n"
    )
    monkeypatch.setenv("GATEWAY_STREAMS__HEARTBEAT_SECONDS", "0.5")
    monkeypatch.setenv("GATEWAY_NAMESPACES__PRICES__KEYS_LIMIT", "4")
    settings = load_settings(written.path, {})
    assert (settings.streams.retry_ms, settings.streams.heartbeat_seconds) == (7, 0.5)
    assert settings.namespaces == {
        "default": NamespaceSettings(),
        "prices": NamespaceSettings(reducer=Reducer.KEYED, keys_limit=4),
    }


def test_an_empty_data_dir_is_the_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert load_settings(None, {"data_dir": ""}).data_dir == Path("/var/state/sse-gateway")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/someone")
    assert Settings().data_dir == Path("/home/someone/.local/state/sse-gateway")
    assert Settings(data_dir=Path("~/data")).data_dir == Path("/home/someone/data")


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///s", "redis+sentinel://h/m"])
def test_urls_of_a_redis_are_accepted(url: str) -> None:
    assert Settings(redis=url).redis == url


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b", "is not TOML: Expected '=' after a key in a key/value pair (at line 1, column 3)"),
        ("prot = 1", "prot = 1: is not a setting; did you mean port?"),
        ("_env_file = 'x'", '_env_file = "x": is not a setting'),
        ("port = 'x'", 'port = "x": must be a whole number'),
        ("port = true", "port = true: must be a number"),
        ("port = 65536", "port = 65536: must be at most 65535"),
        ("port = -1", "port = -1: must be at least 0"),
        ("host = ''", 'host = "": must not be empty'),
        ("host = 1", "host = 1: must be text"),
        ("data_dir = 3", "data_dir = 3: must be text"),
        ("workers = 2", "workers = 2: must be 1; this version runs one worker"),
        ("log_level = 'loud'", 'log_level = "loud": must be debug, info, warning or error'),
        (
            "base_path = 'live'",
            'base_path = "live": must be empty, or start with / and not end with it',
        ),
        (
            "base_path = '/live/'",
            'base_path = "/live/": must be empty, or start with / and not end with it',
        ),
        (
            "redis = 'http://me:secret@h'",
            'redis = "http://***@h": must be embedded or a URL such as redis://host:6379/0',
        ),
        ("streams = 3", "streams = 3: must be a table"),
        (
            "[streams]\nheartbeat_second = 3",
            "streams.heartbeat_second = 3: is not a setting; did you mean heartbeat_seconds?",
        ),
        (
            "[streams]\nheartbeat_seconds = 0",
            "streams.heartbeat_seconds = 0: must be more than 0",
        ),
        (
            "[streams]\nheartbeat_seconds = 'soon'",
            'streams.heartbeat_seconds = "soon": must be a number',
        ),
        ("[streams]\nretry_ms = 1.5", "streams.retry_ms = 1.5: must be a whole number"),
        ("[streams]\nretry_ms = 0", "streams.retry_ms = 0: must be at least 1"),
        (
            "[publish]\nchannel_limit_bytes = 256",
            "publish.channel_limit_bytes = 256: must be at most 255",
        ),
        ("namespaces = 3", "namespaces = 3: must be a table"),
        (
            "[namespaces.prices]\nreducer = 'lst'",
            'namespaces.prices.reducer = "lst": must be last, merge, keyed or none',
        ),
        (
            "[namespaces.prices]\nreducr = 'last'",
            'namespaces.prices.reducr = "last": is not a setting; did you mean reducer?',
        ),
        (
            "[streams]\ntransport = 'tls'",
            'streams.transport = "tls": must be auto, socket or response',
        ),
        ("[streams]\njoin_ms = -1", "streams.join_ms = -1: must be at least 0"),
        (
            "[namespaces.prices]\nconflate = true",
            "namespaces.prices.conflate = true: is for the reducer keyed, not last",
        ),
        (
            "[namespaces.prices]\nstream_codings = ['gzip', 'br']",
            'namespaces.prices.stream_codings = "br": must be zstd or gzip',
        ),
        (
            "[namespaces.'a/b']",
            "namespaces.a/b = {}: the name must be one segment of a channel's name",
        ),
        (
            "[namespaces.'ä']",
            "namespaces.ä = {}: the name must be one segment of a channel's name",
        ),
    ],
)
def test_a_wrong_file_is_one_line_with_key_value_and_rule(
    written: Written, text: str, line: str
) -> None:
    assert written.line(text) == line


def test_a_file_that_cannot_be_read_is_one_line(written: Written, tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(SettingsError) as raised:
        load_settings(missing, {})
    assert str(raised.value) == f"{missing}: cannot be read: No such file or directory"
    written.path.write_bytes(b"host = '\xff'")
    with pytest.raises(SettingsError) as raised:
        load_settings(written.path, {})
    assert str(raised.value) == f"{written.path}: is not UTF-8: byte 8"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("GATEWAY_PORT", "tcp://10.0.0.1:80", '"tcp://10.0.0.1:80": must be a whole number'),
        ("GATEWAY_STREAMS__RETRY_MS", "x", '"x": must be a whole number'),
        ("GATEWAY_STREAM__RETRY_MS", "1", '"1": is not a setting; did you mean GATEWAY_STREAMS?'),
        ("GATEWAY_STREAMS__RETRYMS", "1", '"1": is not a setting; did you mean retry_ms?'),
        ("GATEWAY_NAMESPACES", "{", '"{": must be a JSON object'),
        ("GATEWAY_NAMESPACES__PRICES__REDUCER", "x", '"x": must be last, merge, keyed or none'),
    ],
)
def test_a_wrong_variable_is_one_line_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    assert environment_line(monkeypatch, name, value) == f"environment: {name} = {line}"


def test_variables_that_a_container_platform_sets_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GATEWAY_PORT_8080_TCP", "tcp://10.0.0.1:8080")
    assert load_settings(None, {}) == Settings()


def test_a_wrong_option_is_one_line_with_its_name() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(None, {"data_dir": 3})
    error = raised.value
    assert str(error) == "command line: --data-dir = 3: must be text"
    assert (error.where, error.key, error.value, error.rule) == (
        "command line",
        "--data-dir",
        3,
        "must be text",
    )


def test_a_ring_must_hold_the_largest_event(written: Written) -> None:
    assert (
        written.line("[publish]\nevent_limit_bytes = 9000000\nbatch_limit_bytes = 9000000")
        == "namespaces.default.ring_limit_bytes = 8388608: must hold one event:"
        " publish.event_limit_bytes is 9000000"
    )


def test_a_batch_must_hold_the_largest_event(written: Written) -> None:
    assert (
        written.line("[publish]\nbatch_limit_bytes = 1000")
        == "publish.batch_limit_bytes = 1000: must hold one event:"
        " publish.event_limit_bytes is 262144"
    )


def test_a_page_that_asks_for_no_number_is_no_larger_than_the_largest(written: Written) -> None:
    assert (
        written.line("[history]\nlimit_events = 10")
        == "history.default_events = 100: must not exceed history.limit_events (10)"
    )


def test_each_namespace_has_a_connection_to_follow_by(written: Written) -> None:
    assert (
        written.line("[store]\nconnections_limit = 2\n[namespaces.scores]")
        == "store.connections_limit = 2: must exceed the number of namespaces (2)"
    )


def test_a_cached_snapshot_must_be_one_that_a_stream_can_follow(written: Written) -> None:
    ages = "edge_max_age_seconds = 1\nbrowser_max_age_seconds = 2\n"
    ages += "stale_while_revalidate_seconds = 30\nstale_if_error_seconds = 20\n"
    line = written.line(f"[namespaces.'a.b']\nring_age_seconds = 43\nslice_seconds = 5\n{ages}")
    assert line.startswith("namespaces.a.b.ring_age_seconds = 43: edge_max_age_seconds (1) + ")
    assert line.endswith(" = 43 must be below ring_age_seconds (43)")
    written.path.write_text(f"[namespaces.'a.b']\nring_age_seconds = 44\nslice_seconds = 5\n{ages}")
    assert load_settings(written.path, {}).namespaces["a.b"].ring_age_seconds == 44


def test_three_slices_must_fit_into_the_ring(written: Written) -> None:
    line = written.line("[namespaces.a]\nslice_seconds = 1197")
    rule = "3 slices and a margin of 10 s must fit into ring_age_seconds (3600)"
    assert line == f"namespaces.a.slice_seconds = 1197: {rule}"
    written.path.write_text("[namespaces.a]\nslice_seconds = 1196")
    assert load_settings(written.path, {}).namespaces["a"].slice_seconds == 1196
    assert written.line("[namespaces.a]\nslice_seconds = 4").endswith("must be at least 5")


def test_a_reader_of_slices_must_come_back_in_time_for_the_next(written: Written) -> None:
    slices = "[slices]\nretry_ms = 3001\n[namespaces.a]\nslice_seconds ="
    assert written.line(f"{slices} 5") == (
        "namespaces.a.slice_seconds = 5: must exceed slices.retry_ms (3001) by 2 s:"
        " who comes back later than that misses a slice"
    )
    written.path.write_text(f"{slices} 6")
    assert load_settings(written.path, {}).slices.retry_ms == 3001


@pytest.mark.parametrize("value", ["127.0.0.1:80", "http://", "http://a:port", "ftp://a"])
def test_a_purge_url_that_leads_nowhere_is_refused(written: Written, value: str) -> None:
    line = written.line(f'[purge]\nwebhook_url = "{value}"')
    assert line == f'purge.webhook_url = "{value}": must be a URL such as http://127.0.0.1:8081'


@pytest.mark.parametrize("value", ["to ken", "token\\n", "tökén"])
def test_a_token_that_no_header_can_carry_is_refused(written: Written, value: str) -> None:
    line = written.line(f'[purge]\nfastly_token = "{value}"')
    assert line.startswith("purge.fastly_token")
    assert line.endswith("must be ASCII without blanks or line ends")


def test_a_ring_spares_what_caches_may_lead_to() -> None:
    spared = NamespaceSettings().ring_spare_seconds
    assert spared == 3 * 30 + 10
    longest = NamespaceSettings(stale_if_error_seconds=600, browser_max_age_seconds=60)
    assert longest.ring_spare_seconds == 600 + 60 + 1 + 10
    assert NamespaceSettings(ring_spares_young=False).ring_spare_seconds == 0


def test_a_rule_that_a_variable_breaks_names_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "GATEWAY_NAMESPACES__DEFAULT__EDGE_MAX_AGE_SECONDS"
    line = environment_line(monkeypatch, name, "4000")
    assert line.startswith("environment: namespaces.default.ring_age_seconds = 3600: edge_max")


def test_a_long_value_is_cut_short(written: Written) -> None:
    line = written.line(f"log_level = '{'x' * 1000}'")
    assert line == f'log_level = "{"x" * 119}…: must be debug, info, warning or error'


def test_passwords_are_not_shown() -> None:
    assert hide_password("rediss://me:secret@host:1/0") == "rediss://***@host:1/0"
    assert hide_password("redis://host:1/0") == "redis://host:1/0"

"""The command line against a real gateway with its embedded store."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vega_datasets import local_data

ROOT = Path(__file__).parents[2]
STOCKS = Path(local_data.stocks.filepath)
SETTINGS = """
[streams]
# Of what a slow reader does not take, the kernel is to hold little.
send_buffer_bytes = 4096
[namespaces.boards]
reducer = "keyed"
conflate = true
[namespaces.prices]
reducer = "keyed"
[namespaces.short]
ring_limit_events = 3
ring_spares_young = false
"""


RUNNING: set[subprocess.Popen[str]] = set()


class Command:
    """A command in a process of its own, read line by line."""

    def __init__(self, *args: str, url: str = "", cwd: Path = ROOT) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        environment |= {"GATEWAY_URL": url} if url else {}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=cwd,
        )
        if args[0] not in ("serve", "demo") or "gateway.toml" not in args:
            RUNNING.add(self.process)
        self.err: list[str] = []
        # Read by itself, so that a full pipe never stops the process.
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.err.extend(self.process.stderr)

    def line(self, pattern: str = "") -> str:
        """Wait for the next line that `pattern` is found in."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if re.search(pattern, line):
                return line.rstrip("\n")
        self._reader.join()
        raise AssertionError(f"ended without {pattern!r}: {''.join(self.err)}")

    def close_output(self) -> None:
        """Stop reading what it prints."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal and wait; return the exit code, the rest of the output, and errors."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code, the rest of the output, and errors."""
        assert self.process.stdout is not None
        rest = ""
        if not self.process.stdout.closed:
            with self.process.stdout as out:
                rest = out.read()
        code = self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code, rest, "".join(self.err)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """End what a failed test left behind; a kept gateway is its fixture's business."""
    before = set(RUNNING)
    yield
    for process in RUNNING - before:
        if process.poll() is None:
            process.kill()
            process.wait()


class Gateway:
    """A gateway process that can be killed and started again at the same address."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = "0"
        (directory / "gateway.toml").write_text(SETTINGS)
        self.start()

    def start(self) -> None:
        self._server = Command(
            "serve", "--config", "gateway.toml", "--data-dir", "data", "--port", self._port,
            cwd=self._directory,
        )  # fmt: skip
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self._server.line("serves"))
        assert found is not None
        self.url, self._port = found[0], found[1]

    def kill(self) -> None:
        self._server.end(signal.SIGKILL)

    def stop(self) -> tuple[int, str, str]:
        return self._server.end(signal.SIGTERM)

    def run(self, *args: str) -> tuple[int, str, str]:
        return Command(*args, url=self.url).wait()

    def json(self, *args: str) -> Any:
        code, out, err = self.run(*args, "--json")
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    started = Gateway(tmp_path_factory.mktemp("gateway"))
    yield started
    assert started.stop()[0] == 0


def test_an_event_is_published_and_seen_in_the_snapshot(gateway: Gateway) -> None:
    code, out, err = gateway.run("publish", "one/json", '{"price": 39.810}')
    assert (code, err) == (0, "")
    position, channel = out.split()
    assert channel == "one/json"
    code, out, err = gateway.run("snapshot", "one/json")
    assert (code, json.loads(out)) == (0, {"price": 39.81})
    assert err == f"one/json at {position}\n"
    [document] = gateway.json("snapshot", "one/json")
    assert document.keys() == {"channel", "id", "epoch", "reducer", "slice_seconds", "state"}
    assert (document["id"], document["state"]) == (position, {"price": 39.81})


@pytest.mark.parametrize(
    ("args", "state"), [(["42"], 42), (["42", "--text"], "42"), (["hello"], "hello")]
)
def test_data_is_json_when_it_can_be_unless_told_otherwise(
    gateway: Gateway, args: list[str], state: object
) -> None:
    [answer] = gateway.json("publish", "one/kind", *args)
    [document] = gateway.json("snapshot", "one/kind")
    assert (document["id"], document["state"]) == (answer["id"], state)


def test_data_comes_from_standard_input(gateway: Gateway) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "publish", "one/input", "-", "--url", gateway.url],
        input=b"line 1\nline 2",
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert ended.stderr == b""
    [document] = gateway.json("snapshot", "one/input")
    assert document["state"] == "line 1\nline 2"


def test_an_idempotency_key_stores_once(gateway: Gateway) -> None:
    args = ("publish", "one/once", "1", "--idempotency-key", "k")
    assert gateway.json(*args) == gateway.json(*args)
    code, _, err = gateway.run("publish", "one/once", "2", "--idempotency-key", "k")
    assert code == 1
    assert "status 409" in err


def test_a_condition_on_the_position_holds(gateway: Gateway) -> None:
    [first] = gateway.json("publish", "one/match", "1")
    assert gateway.run("publish", "one/match", "2", "--if-match", first["id"])[0] == 0
    code, out, err = gateway.run("publish", "one/match", "3", "--if-match", first["id"])
    assert (code, out) == (1, "")
    assert "status 412" in err
    assert "field  If-Match" in err
    assert gateway.run("publish", "one/match", "4", "--if-match", "*")[0] == 0


def test_a_refusal_names_field_value_and_rule(gateway: Gateway) -> None:
    code, out, err = gateway.run("publish", "one/bad", "1", "--type", "a\nb")
    assert (code, out) == (1, "")
    assert "field  type" in err
    assert "value  a\\nb" in err
    assert "rule   must not contain CR, LF or NUL" in err


def test_an_unknown_channel_is_a_failure(gateway: Gateway) -> None:
    code, out, err = gateway.run("snapshot", "one/unknown")
    assert (code, out) == (1, "")
    assert "status 404" in err


def test_a_public_data_set_is_published_and_its_snapshot_is_its_fold(gateway: Gateway) -> None:
    code, out, err = gateway.run(
        "publish", "prices/stocks", "--from", str(STOCKS), "--key-column", "symbol"
    )
    assert (code, err) == (0, "")
    assert out.startswith("Published 560 events in ")
    with STOCKS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    fold = {row["symbol"]: {**row, "price": float(row["price"])} for row in rows}
    [document] = gateway.json("snapshot", "prices/stocks")
    assert document["state"] == fold


def test_a_file_that_is_sent_again_is_stored_once(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("n\n" + "".join(f"{number}\n" for number in range(1200)))
    args = ("publish", "one/again", "--from", str(path), "--idempotency-key", "rows")
    [first] = gateway.json(*args)
    [second] = gateway.json(*args)
    assert (first["count"], first["replayed"]) == (1200, 0)
    assert second == {"count": 1200, "replayed": 1200, "last": first["last"]}
    assert "1,200 of them were there before" in gateway.run(*args)[1]


def test_what_tail_prints_can_be_published_again(gateway: Gateway, tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    lines = [
        '{"channel":"again/a","key":"k","data":{"big":123456789012345678901234567890,"f":1.5}}',
        '{"channel":"prices/b","type":"t","key":"x","data":"two\\nlines"}',
        '{"channel":"again/c","data":[1,null]}',
    ]
    source.write_text("\n".join(lines))
    assert gateway.run("publish", "--from", str(source))[0] == 0
    copy = tmp_path / "copy.ndjson"
    texts = []
    for _ in range(2):
        code, first, err = gateway.run("tail", "again/*", "--no-follow", "--json")
        assert (code, err) == (0, "")
        code, second, err = gateway.run("tail", "prices/b", "--no-follow", "--json")
        assert (code, err) == (0, "")
        texts.append(
            [re.sub(r'"id":"[0-9-]+",', "", line) for line in (first + second).split("\n")]
        )
        copy.write_text(first + second)
        assert gateway.run("publish", "--from", str(copy))[0] == 0
    once = [lines[0], lines[2], lines[1].replace('"channel":"prices/b","type":"t"', "")]
    assert [line.replace('"type":"t","channel":"prices/b"', "") for line in texts[0][:3]] == once
    assert sorted(texts[1]) == sorted(texts[0][:3] * 2 + [""])


def test_a_bad_line_of_a_file_stops_it_and_is_named(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "bad.ndjson"
    path.write_text('\n{"channel":"one/x","data":1}\n\n{"channel":"one/x","data":1,"typo":2}\n')
    code, out, err = gateway.run("publish", "--from", str(path))
    assert (code, out) == (1, "")
    assert "stopped at line 4 after 0 stored events" in err
    assert gateway.run("snapshot", "one/x")[0] == 1


def test_a_file_is_sent_at_a_rate(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("n\n1\n2\n3\n")
    [answer] = gateway.json("publish", "one/rate", "--from", str(path), "--rate", "2")
    events = gateway.json("tail", "one/rate", "--no-follow")
    first, last = (int(event["id"].partition("-")[0]) for event in (events[0], events[-1]))
    # Two intervals of 500 ms by the store's clock, if the first one was not late.
    assert last - first >= 300
    assert (answer["count"], len(events)) == (3, 3)


def test_tail_replays_after_a_position_and_ends(gateway: Gateway) -> None:
    [first, *rest] = [gateway.json("publish", "one/replay", str(n))[0]["id"] for n in range(3)]
    events = gateway.json("tail", "one/replay", "--from", first, "--no-follow")
    assert [(event["id"], event["data"]) for event in events] == [(rest[0], 1), (rest[1], 2)]
    assert gateway.json("tail", "one/replay", "--from", rest[1], "--no-follow") == []
    assert len(gateway.json("tail", "one/replay", "--since", "1h", "--no-follow")) == 3


def test_tail_of_what_is_not_there_says_so_and_ends(gateway: Gateway) -> None:
    notes = "one/nothing: there is no such channel\nnowhere/*: there is no such channel\n"
    ended = gateway.run("tail", "one/nothing", "nowhere/*", "--no-follow")
    assert ended == (0, "", notes)
    code, out, err = gateway.run("tail", "one/nothing", "prices/*", "--no-follow")
    assert (code, out) == (1, "")
    assert "namespace" in err


def test_a_gap_is_told_beside_the_events(gateway: Gateway) -> None:
    ids = [gateway.json("publish", "short/a", str(number))[0]["id"] for number in range(5)]
    code, out, err = gateway.run("tail", "short/a", "--from", ids[0], "--no-follow", "--json")
    assert (code, out) == (0, "")
    assert err.startswith("gap (")
    assert f"events after {ids[0]} are gone, the stream goes on after {ids[4]}" in err
    code, out, err = gateway.run("tail", "short/a", "--no-follow", "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ids[2:]
    assert err.startswith("gap (")


def test_a_bad_position_is_refused(gateway: Gateway) -> None:
    code, out, err = gateway.run("tail", "one/json", "--from", "yesterday", "--no-follow")
    assert (code, out) == (1, "")
    assert "field  last_event_id" in err


def test_tail_resumes_when_the_gateway_was_killed(gateway: Gateway) -> None:
    tail = Command("tail", "live/a", "live/b/*", "--json", "--since", "1h", url=gateway.url)
    published = [gateway.json("publish", "live/a", "1")[0]["id"]]
    assert json.loads(tail.line()) == {"id": published[0], "channel": "live/a", "data": 1}
    gateway.kill()
    gateway.start()
    published += [gateway.json("publish", f"live/b/{n}", "x")[0]["id"] for n in range(3)]
    seen = [json.loads(tail.line())["id"] for _ in range(3)]
    assert seen == published[1:]
    code, out, err = tail.end(signal.SIGINT)
    assert (code, out) == (130, "")
    assert "reconnecting" in err
    assert "Traceback" not in err


def test_tail_for_people_is_one_line_an_event(gateway: Gateway) -> None:
    [answer] = gateway.json(
        "publish", "one/people", '{"a":"\\u001b[2J"}', "--type", "t", "--key", "k"
    )
    code, out, err = gateway.run("tail", "one/people", "--no-follow")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        re.escape(answer["id"]) + r" \d\d:\d\d:\d\d\.\d{3} one/people t k "
        r'\{"a":"\\u001b\[2J"\}\n',
        out,
    )


def test_a_tail_that_is_read_too_slowly_gets_the_state(gateway: Gateway, tmp_path: Path) -> None:
    def publish(lines: list[dict[str, str]]) -> None:
        body = "\n".join(map(json.dumps, lines)).encode()
        headers = {"Content-Type": "application/x-ndjson"}
        request = urllib.request.Request(f"{gateway.url}/publish", body, headers)
        urllib.request.urlopen(request, timeout=20).close()

    def figures() -> dict[str, float]:
        with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=20) as answer:
            rows = [line.split() for line in answer.read().decode().splitlines()]
        return {row[0]: float(row[1]) for row in rows if len(row) == 2}

    publish([{"channel": "boards/a", "key": key, "data": key} for key in ("gone", "kept", "many")])
    tail = Command("tail", "boards/a", "--json", "--since", "1h", url=gateway.url)
    assert [json.loads(tail.line())["key"] for _ in range(3)] == ["gone", "kept", "many"]
    # From here on nobody reads what it prints: it waits, and so does what is on its way to it.
    many = {"channel": "boards/a", "key": "many", "data": "x" * 2000}
    before, idle, deadline = figures(), 0, time.monotonic() + 60
    while idle < 5:
        assert time.monotonic() < deadline, before
        publish([many] * 100)
        after = figures()
        same = all(before[name] == after[name] for name in before if name.endswith("bytes_total"))
        idle = idle + 1 if same and after["sse_gateway_lagging"] else 0
        before = after
    publish([{"channel": "boards/a", "key": "gone", "data": ""}, {**many, "data": "last"}])
    state, line = dict.fromkeys(("gone", "kept", "many"), ""), ""
    while state != {"kept": "kept", "many": "last"}:
        event = json.loads(printed := tail.line())
        if event.get("type") == "reset":
            line, state = printed, event["data"]["state"]
            assert event["channel"] == event["data"]["channel"] == "boards/a"
        elif event["data"] == "":
            del state[event["key"]]
        else:
            state[event["key"]] = event["data"]
    assert line, "it got every event"
    assert tail.end(signal.SIGINT)[0] == 130
    # The events are not in it, so what was printed cannot stand for them.
    path = tmp_path / "board.ndjson"
    path.write_text(line)
    code, out, err = gateway.run("publish", "--from", str(path))
    assert (code, out) == (1, "")
    assert "stopped at line 1" in err
    assert "reset" in err


def test_tail_ends_quietly_when_its_reader_has_seen_enough(gateway: Gateway) -> None:
    for number in range(3):
        gateway.json("publish", "one/head", str(number))
    tail = Command("tail", "one/head", "--since", "1h", "--json", url=gateway.url)
    assert json.loads(tail.line())["data"] == 0
    tail.close_output()
    # Whatever it writes next has no reader: it may take one more event to notice.
    gateway.json("publish", "one/head", "3")
    assert tail.wait() == (141, "", "")


def test_channels_are_listed(gateway: Gateway) -> None:
    [answer] = gateway.json("publish", "listed/a", "1")
    gateway.json("publish", "listed/b", "1")
    listed = gateway.json("channels", "listed/")
    assert [one["channel"] for one in listed] == ["listed/a", "listed/b"]
    assert (listed[0]["id"], listed[0]["namespace"]) == (answer["id"], "default")
    code, out, err = gateway.run("channels", "listed/")
    assert (code, err) == (0, "")
    assert re.search(rf"(?m)^listed/a +default +{answer['id']} +1 +\d+ s +0 *$", out)
    assert gateway.run("channels", "none/") == (0, "", "There are no channels yet.\n")


def test_a_taken_port_stops_the_start_with_one_line(gateway: Gateway, tmp_path: Path) -> None:
    port = gateway.url.rpartition(":")[2]
    args = ("serve", "--data-dir", str(tmp_path / "other"), "--log-level", "error")
    code, out, err = Command(*args, "--port", port, cwd=tmp_path).wait()
    assert (code, out) == (1, "")
    assert re.fullmatch(r"Error: .*in use.*\n", err)


def test_a_taken_data_directory_stops_the_start_with_one_line(
    gateway: Gateway, tmp_path: Path
) -> None:
    directory = str(gateway._directory / "data")
    args = ("serve", "--data-dir", directory, "--port", "0", "--log-level", "error")
    code, out, err = Command(*args, cwd=tmp_path).wait()
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"Error: .*{re.escape(directory)}.*\n", err)


def test_listening_beyond_this_machine_is_warned_of(tmp_path: Path) -> None:
    # No Redis there, so that it ends before it listens.
    args = ("serve", "--host", "0.0.0.0", "--redis", "redis://127.0.0.1:1", "--log-level", "error")
    code, out, err = Command(*args, cwd=tmp_path).wait()
    assert (code, out) == (1, "")
    warning, error = err.splitlines()
    assert warning.startswith("Warning: listening on 0.0.0.0, beyond this machine: ")
    assert error.startswith("Error: ")


def test_the_demo_publishes_this_machines_figures(tmp_path: Path) -> None:
    demo = Command("demo", "--port", "0", "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    found = re.search(r"http://\S+", demo.line("serves"))
    assert found is not None
    assert demo.line("follow").split()[1:] == ["curl", "-N", f"{found[0]}/events/host/cpu/0"]
    tail = Command("tail", "host/*", "gateway/*", "--json", url=found[0])
    wanted = {"host/cpu/0", "host/memory", "host/load", "gateway/subscribers"}
    while wanted:
        wanted -= {json.loads(tail.line())["channel"]}
    assert tail.end(signal.SIGINT)[0] == 130
    code, _, err = demo.end(signal.SIGINT)
    assert code == 0
    assert "Traceback" not in err

"""Slow readers of a keyed channel hold its state at the end, and say when they do not."""

import os

import pytest

from benchmarks import keyed_reader
from benchmarks.bench import CHANNEL, Bench, Contender, open_session
from benchmarks.keyed_reader import KeyedReader, read_snapshot
from benchmarks.load import NUMBER
from benchmarks.metrics import read_metric
from benchmarks.scenarios.conflation import EVENT_BYTES, SETTINGS

KEYS = 20
ONE_CHANNEL = CHANNEL.replace(NUMBER, "0")
LOAD_CORE = (os.cpu_count() or 1) - 1
pytestmark = pytest.mark.skipif(
    bool(Contender("gateway").peer({}).missing()), reason="needs a Valkey"
)


def test_a_released_reader_holds_the_snapshot_and_no_other_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(load_core=LOAD_CORE)
    with open_session(bench, Contender("gateway"), SETTINGS) as session:
        session.load.command("events", size=EVENT_BYTES, keys=KEYS)
        # In a batch first, then one by one: both give the keys in turns.
        assert session.publish_joined(events=KEYS).problems == []
        with KeyedReader(
            session.server, ONE_CHANNEL, LOAD_CORE, bytes_per_second=1000, receive_buffer_bytes=4096
        ) as reader:
            assert session.publish(events=KEYS + 3).problems == []
            _, state = read_snapshot(session.server, ONE_CHANNEL)
            assert set(state) == {str(key) for key in range(KEYS)}
            reader.release()
            assert reader.problem(state) == ""
            monkeypatch.setattr(keyed_reader, "PATIENCE_SECONDS", 0.1)
            assert "1 of 20 keys wrong" in reader.problem({**state, "0": "another"})


def test_a_metric_that_is_not_there_is_an_error() -> None:
    with open_session(Bench(load_core=LOAD_CORE), Contender("gateway")) as session:
        assert read_metric(session.server, "conflations_total") == 0
        with pytest.raises(RuntimeError, match="no metric sse_gateway_luck"):
            read_metric(session.server, "luck_total")

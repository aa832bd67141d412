"""Slow readers of a keyed channel that conflates: part of `slow`, of this gateway alone."""

from contextlib import ExitStack

from benchmarks.bench import CHANNEL, Bench, Contender, Sample, open_session
from benchmarks.keyed_reader import KeyedReader, read_snapshot
from benchmarks.load import NUMBER
from benchmarks.machine import resident_bytes
from benchmarks.metrics import read_metric

KEYS = 200
CHANGES_PER_SECOND = 50
EVENT_BYTES = 60
CHECKED = 8  # Of the slow readers: they fold what they get into a state that is compared.
NAMESPACE = f"GATEWAY_NAMESPACES__{CHANNEL.split('/')[0].upper()}__"
SETTINGS = {
    f"{NAMESPACE}REDUCER": "keyed",
    f"{NAMESPACE}CONFLATE": "true",
    # What a system's buffers of mebibytes hold would be old news for an hour.
    "GATEWAY_STREAMS__SEND_BUFFER_BYTES": "16384",
}
TITLE = f"keyed, {KEYS} keys, {CHANGES_PER_SECOND}/s of {EVENT_BYTES} B, conflated"


def measure_conflation(
    bench: Bench,
    contender: Contender,
    settings: dict[str, str],
    *,
    subscribers: int,
    slow: int,
    bytes_per_second: int,
    receive_buffer_bytes: int,
    seconds: float,
) -> Sample:
    """Return the sample of so many subscribers, of which `slow` read slowly."""
    channel, checked = CHANNEL.replace(NUMBER, "0"), min(slow, CHECKED)
    with open_session(bench, contender, {**settings, **SETTINGS}) as session, ExitStack() as stack:
        server = session.server
        session.load.command("events", size=EVENT_BYTES, keys=KEYS)
        session.open(subscribers - slow)
        session.problems += session.publish_joined(events=KEYS).problems
        if slow:
            session.open(slow - checked, slow=True, receive_buffer=receive_buffer_bytes)
        readers = [
            stack.enter_context(
                KeyedReader(
                    server,
                    channel,
                    bench.load_core,
                    bytes_per_second=bytes_per_second,
                    receive_buffer_bytes=receive_buffer_bytes,
                )
            )
            for _ in range(checked)
        ]
        resets = read_metric(server, "conflations_total")
        before = resident_bytes(server.pid)
        measured = session.publish_joined(seconds=seconds, rate=CHANGES_PER_SECOND)
        after = resident_bytes(server.pid)
        resets = read_metric(server, "conflations_total") - resets
        for reader in readers:
            reader.release()
        _, state = read_snapshot(server, channel)
        problems = [problem for reader in readers if (problem := reader.problem(state))]
        if slow and not any(reader.resets for reader in readers):
            problems.append("no reader that is checked got a reset")
        sample = measured.sample(
            contender,
            f"{TITLE}, {slow or 'none'} slow",
            rss_before=before / 1e6,
            rss_after=after / 1e6,
            slow_closed=measured.report.slow_closed,
            resets=resets,
            checked=checked,
        )
        sample.problems.extend(problems)
        return sample
